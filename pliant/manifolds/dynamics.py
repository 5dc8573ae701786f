r"""The trajectory of a cloned network, from its base: the same steps with other step sizes.

A weight of the clone is :math:`\tilde w = s\,w`, its gradient :math:`\tilde g = r\,g`, with one :math:`s` and one
:math:`r` for each tensor where all its units are copied equally often. Weights from a layer copied :math:`k_{in}` times
to one copied :math:`k_{out}` times have :math:`s = 1/k_{in}` and :math:`r = 1/k_{out}`; biases :math:`s = 1`. A step of
the clone is then a step of the base with

=================  ================  =======================  =======================
optimizer          step size         epsilon                  decay
=================  ================  =======================  =======================
SGD, momentum      :math:`\eta r/s`  ..                       :math:`\lambda s/r`
Adam, RMSprop      :math:`\eta/s`    :math:`\epsilon/r`       :math:`\lambda s/r`
AdamW              :math:`\eta/s`    :math:`\epsilon/r`       :math:`\lambda s`
=================  ================  =======================  =======================

A clone that is trained with the base's own step size is therefore *not* the base: it follows a base with other step
sizes in its layers.

Where units are copied unequally often, :math:`s` and :math:`r` differ from entry to entry, which no options of an
optimizer express. Then the optimizer is handed what it would see of the other network, :math:`s\,w` and :math:`r\,g`,
around each of its steps. That is right for every optimizer that treats entries one by one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adadelta, Adagrad, Adam, Adamax, AdamW, NAdam, Optimizer, RAdam, RMSprop, Rprop

from pliant.errors import IllegalConfiguration, NotYetSupported
from pliant.manifolds.cloned_state import scaled_optimizer
from pliant.manifolds.cloning import Clone
from pliant.manifolds.repetition import Repetition
from pliant.units import UnitGraph

__all__ = ["matching_optimizer"]

_PLAIN: tuple[type[Optimizer], ...] = (SGD, Adam, AdamW, RMSprop)
_ELEMENTWISE: tuple[type[Optimizer], ...] = (*_PLAIN, Adagrad, Adadelta, Adamax, NAdam, RAdam, Rprop)


def matching_optimizer(
    optimizer: Optimizer,
    base: nn.Module,
    wide: Clone,
    units: UnitGraph,
    *,
    towards: Literal["base", "clone"] = "base",
) -> Optimizer:
    """An optimizer for one of a base and its clone that makes it follow the other, exactly.

    Args:
        optimizer: The optimizer of the one that is followed, with its options and its state.
        base: The base.
        wide: Its clone.
        units: The unit graph of the base.
        towards: ``"base"``: ``optimizer`` trains the clone, and the result trains the base as the clone trains.
            ``"clone"``: the other way round.

    Returns:
        A new optimizer of the same kind with the state converted. Where each tensor has one factor, of SGD, Adam, AdamW
        and RMSprop: one parameter group for each tensor, with options of its own. Elsewhere (units copied unequally
        often, other optimizers): with the options as they were, and hooks that rescale weights and gradients around
        each step; its state is then what the one that is followed has.

    Raises:
        IllegalConfiguration: If the optimizer trains neither.
        NotYetSupported: For optimizers that do not treat entries one by one, or whose state is not known.

    Example:
        >>> import pliant
        >>> base = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)).double()
        >>> x, y = torch.randn(8, 2).double(), torch.randn(8, 1).double()
        >>> units = pliant.find_units(base, x)
        >>> wide = pliant.manifolds.clone(base, 3, x, units=units)
        >>> adam = torch.optim.Adam(wide.model.parameters(), lr=1e-2)
        >>> like_clone = matching_optimizer(adam, base, wide, units)
        >>> for model, step in ((wide.model, adam), (base, like_clone)):
        ...     for _ in range(20):
        ...         step.zero_grad()
        ...         (model(x) - y).square().mean().backward()
        ...         step.step()
        >>> bool((base(x) - wide.model(x)).abs().max() < 1e-12)
        True
    """
    kind = type(optimizer)
    if kind not in _ELEMENTWISE:
        raise NotYetSupported(
            f"{kind.__name__}: how its steps scale with weights and gradients is known for "
            f"{', '.join(item.__name__ for item in _ELEMENTWISE)}."
        )
    if towards not in ("base", "clone"):
        raise IllegalConfiguration(f"towards={towards!r}: it is 'base' or 'clone'.")
    view = Repetition(base, wide.model, units, wide.partition, {}, wide.scores)
    source, target = (wide.model, base) if towards == "base" else (base, wide.model)
    convert = view.transfer.first if towards == "base" else view.transfer.expand
    numbers = {name: _factors(view, name) for name, _ in base.named_parameters()}
    if kind not in _PLAIN or any(item is None for item in numbers.values()):
        return _by_entry(optimizer, view, source, target, towards)
    factors = {name: item for name, item in numbers.items() if item is not None}
    if towards == "clone":
        factors = {name: (1 / s, 1 / r) for name, (s, r) in factors.items()}
    rates = {name: torch.tensor(1 / r, dtype=torch.float64) for name, (_, r) in factors.items()}
    made = scaled_optimizer(optimizer, source, target, convert, rates)
    names = {id(parameter): name for name, parameter in target.named_parameters()}
    groups = [
        {**_rescaled(kind, group, *factors[names[id(parameter)]]), "params": [parameter]}
        for group in made.param_groups
        for parameter in group["params"]
    ]
    made.param_groups[:] = groups
    return made


def _by_entry(
    optimizer: Optimizer, view: Repetition, source: nn.Module, target: nn.Module, towards: Literal["base", "clone"]
) -> Optimizer:
    """An optimizer with hooks that show it the other network's entries."""
    names = [name for name, _ in target.named_parameters()]
    if towards == "base":
        seen = {n: [view.transfer.first(n, f(n, full=True)) for f in (view.scale, view.rate)] for n in names}
        convert = view.transfer.first
    else:
        seen = {n: [1 / f(n, full=True) for f in (view.scale, view.rate)] for n in names}
        convert = view.transfer.expand
    one = torch.ones((), dtype=torch.float64)
    made = scaled_optimizer(optimizer, source, target, convert, dict.fromkeys(names, one))
    shown = _Shown([(p, seen[name][0].to(p), seen[name][1].to(p)) for name, p in target.named_parameters()])
    made.register_step_pre_hook(shown.before)
    made.register_step_post_hook(shown.after)
    return made


class _Shown:
    """What an optimizer sees instead of its own parameters, around each of its steps."""

    def __init__(self, entries: list[tuple[nn.Parameter, Tensor, Tensor]]) -> None:
        self.entries = entries
        self.gradients: list[Tensor | None] = []

    def before(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Weights and gradients of the other network."""
        if any(item is not None and item is not optimizer for item in (*args, *kwargs.values())):
            raise NotYetSupported(
                "a step with a closure computes gradients on rescaled weights: call backward() first, then step()."
            )
        self.gradients = [parameter.grad for parameter, _, _ in self.entries]
        with torch.no_grad():
            for parameter, s, r in self.entries:
                if parameter.grad is not None:
                    parameter.grad = parameter.grad * r
                    parameter.mul_(s)

    def after(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """The network's own again."""
        with torch.no_grad():
            for (parameter, s, _), gradient in zip(self.entries, self.gradients, strict=True):
                if gradient is not None:
                    parameter.div_(s)
                    parameter.grad = gradient
        self.gradients = []


def _factors(view: Repetition, name: str) -> tuple[float, float] | None:
    """S and r of a tensor; ``None`` where they differ from entry to entry."""
    scale, rate = view.scale(name), view.rate(name)
    if float(scale.min()) != float(scale.max()) or float(rate.min()) != float(rate.max()):
        return None
    return float(scale.max()), float(rate.max())


def _rescaled(kind: type[Optimizer], group: Mapping[str, Any], s: float, r: float) -> dict[str, Any]:
    options = dict(group)
    lr, decay = options["lr"], float(options.get("weight_decay", 0.0))
    if isinstance(lr, Tensor):
        raise NotYetSupported("a step size that is a tensor cannot be rescaled for each parameter; give a number.")
    options["lr"] = lr * r / s if kind is SGD else lr / s
    if kind is not SGD:
        options["eps"] = options["eps"] / r
    decoupled = kind is AdamW or bool(options.get("decoupled_weight_decay"))
    options["weight_decay"] = decay * s if decoupled else decay * s / r
    return options
