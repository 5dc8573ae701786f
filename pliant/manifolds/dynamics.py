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
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop

from pliant.errors import IllegalConfiguration, NotYetSupported
from pliant.manifolds.cloned_state import scaled_optimizer
from pliant.manifolds.cloning import Clone
from pliant.manifolds.repetition import Repetition
from pliant.units import UnitGraph

__all__ = ["matching_optimizer"]


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
        A new optimizer of the same kind, one parameter group for each tensor, with the state converted.

    Raises:
        IllegalConfiguration: If the optimizer trains neither.
        NotYetSupported: For units copied unequally often, which need a step size for each entry, and for optimizers
            other than SGD, Adam, AdamW and RMSprop.

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
    if kind not in (SGD, Adam, AdamW, RMSprop):
        raise NotYetSupported(
            f"{kind.__name__}: how its steps scale with weights and gradients is known for SGD, Adam, AdamW and "
            "RMSprop."
        )
    if towards not in ("base", "clone"):
        raise IllegalConfiguration(f"towards={towards!r}: it is 'base' or 'clone'.")
    view = Repetition(base, wide.model, units, wide.partition, {})
    source, target = (wide.model, base) if towards == "base" else (base, wide.model)
    factors = {name: _factors(view, name) for name, _ in base.named_parameters()}
    if towards == "clone":
        factors = {name: (1 / s, 1 / r) for name, (s, r) in factors.items()}
    convert = view.transfer.first if towards == "base" else view.transfer.expand
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


def _factors(view: Repetition, name: str) -> tuple[float, float]:
    """S and r of a tensor, where each is one number."""
    scale, rate = view.scale(name), view.rate(name)
    if float(scale.min()) != float(scale.max()) or float(rate.min()) != float(rate.max()):
        raise NotYetSupported(
            f"the units of {name!r} are copied unequally often, so that its entries need different step sizes, which "
            "no optimizer of PyTorch has. Use one number of copies for each group."
        )
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
