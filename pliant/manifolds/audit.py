r"""Which settings of a run leave the cloning manifold: measured, setting by setting, on copies.

What keeps clones together: gradient descent on any data in any order, momentum, element-wise adaptive steps, clipping
by norm, learning-rate schedules, and weight decay that is linear in the weights. Two starts are measured, because a
plain copy hides what a *redistributed* one shows: coupled weight decay under an element-wise adaptive optimizer
treats the unequal weights inside a block differently, and leaves. From plain copies nothing does that treats equal
weights equally. Where all blocks are pairs, even that stays: a block of 2 x 2 on the manifold is
[[a, b], [b, a]], and any element-wise map keeps that form.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from pliant.errors import IllegalConfiguration
from pliant.fresh import copy_of
from pliant.manifolds.confinement import AfterStep, Confinement, confinement, norm_of
from pliant.manifolds.partition import Partition
from pliant.manifolds.projection import normal_part, project
from pliant.manifolds.redistribution import redistributed
from pliant.manifolds.repetition import in_float64
from pliant.units.export import canonical_names
from pliant.units.verify import random_rates

__all__ = ["Audit", "Setting", "audit"]


@dataclass(frozen=True)
class Setting:
    """What one setting does.

    Attributes:
        name: The setting.
        from_clones: From plain copies (block-constant weights).
        from_leaf: From redistributed copies: same function, unequal weights inside blocks. ``None`` where there is no
            such leaf.
        verdict: ``"stays"``, ``"moves between leaves"``, ``"leaves from a redistributed leaf"`` or ``"leaves"``.
        reason: Why, in one sentence.

    Example:
        >>> import pliant
        >>> _ = torch.manual_seed(0)
        >>> model, x = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 1)).double(), torch.randn(8, 2).double()
        >>> wide = pliant.manifolds.clone(model, 2, x)
        >>> sgd = torch.optim.SGD(wide.model.parameters(), lr=0.1)
        >>> control = audit(wide.model, wide.partition, x, lambda y: y.square().mean(), sgd, steps=5).settings[0]
        >>> control.name, control.verdict, control.from_clones.distance < 1e-12
        ('plain SGD', 'stays', True)
        >>> control.from_leaf is None  # one hidden layer: no tensor has blocks on both sides
        True
    """

    name: str
    from_clones: Confinement
    from_leaf: Confinement | None
    verdict: str
    reason: str


@dataclass(frozen=True)
class Audit:
    """Every setting that was measured; ``print`` gives a table.

    Attributes:
        settings: One finding per setting, alone.
        steps: Number of optimizer steps.

    Example:
        >>> import pliant
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Dropout(0.5), nn.Linear(2, 1)).double()
        >>> x = torch.randn(8, 2).double()
        >>> wide = pliant.manifolds.clone(model, 2, x)
        >>> adam = torch.optim.Adam(wide.model.parameters())
        >>> report = audit(wide.model, wide.partition, x, lambda y: (y - 1).square().mean(), adam, steps=5)
        >>> [item.name for item in report.settings], report.breaking
        (['plain SGD', 'Adam', '2.p=0.5'], ('2.p=0.5',))
    """

    settings: tuple[Setting, ...]
    steps: int

    @property
    def breaking(self) -> tuple[str, ...]:
        """The settings that leave the manifold, from either start."""
        return tuple(item.name for item in self.settings if item.verdict.startswith("leaves"))

    def __str__(self) -> str:
        rows = [
            f"{'setting':<34} {'from clones':>11} {'from a leaf':>11} {'|R|/|R0|':>9}  verdict ({self.steps} steps)"
        ]
        for item in self.settings:
            leaf = item.from_leaf
            far = f"{leaf.distance:>11.1e} {leaf.residual_ratio:>9.6f}" if leaf else f"{'-':>11} {'-':>9}"
            rows.append(f"{item.name:<34} {item.from_clones.distance:>11.1e} {far}  {item.verdict}: {item.reason}")
        return "\n".join(rows)


def audit(
    model: nn.Module,
    partition: Partition,
    inputs: Any,
    loss: Callable[[Any], Tensor],
    optimizer: Optimizer,
    *,
    others: Mapping[str, Callable[[nn.Module], Optimizer]] | None = None,
    after_step: Mapping[str, AfterStep] | None = None,
    steps: int = 50,
    seed: int = 0,
    tolerance: float = 1e-9,
) -> Audit:
    """Which of the settings of a run break the symmetry between clones.

    Measured, each alone, in float64 on copies that are put onto the manifold first: plain SGD as the control, the
    optimizer with its options, its state where it differs between clones, every dropout rate, and what the caller adds.

    Args:
        model: The model with its dropout rates; it is not changed.
        partition: The blocks.
        inputs: A batch, or a function from the step to a batch and its loss.
        loss: From the model's output to a scalar.
        optimizer: Its optimizer.
        others: Name to what makes an optimizer for a copy of the model: other optimizers, or one to which a method has
            been attached (:func:`pliant.attach`).
        after_step: Name to what a method does after each step, with the model, the optimizer and the step.
        steps: Number of steps of each measurement.
        seed: Seed of redistribution and of what is random.
        tolerance: Largest relative distance that counts as rounding.

    Returns:
        The findings.

    Raises:
        IllegalConfiguration: If the partition is trivial or does not fit.

    Example:
        >>> import pliant
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 1)).double()
        >>> x = torch.randn(16, 2).double()
        >>> wide = pliant.manifolds.clone(model, 3, x)
        >>> adam = torch.optim.Adam(wide.model.parameters(), lr=1e-2, weight_decay=0.1)
        >>> report = audit(wide.model, wide.partition, x, lambda y: (y - 1).square().mean(), adam, steps=20)
        >>> [(item.name, item.verdict) for item in report.settings]
        [('plain SGD', 'stays'), ('Adam', 'leaves from a redistributed leaf')]
    """
    if partition.is_trivial:
        raise IllegalConfiguration("every block of the partition is a single unit: there are no clones to audit.")
    bare, batches = _prepared(model), _in_float64(inputs)
    starts = _starts(bare, partition, seed)
    lr = float(optimizer.param_groups[0]["lr"])

    def plain(wide: nn.Module) -> Optimizer:
        return SGD(wide.parameters(), lr=min(lr, 0.1))

    def measured(
        name: str,
        make: Callable[[nn.Module], Optimizer],
        reason: str,
        rates: tuple[str, str, float] | None = None,
        after: AfterStep | None = None,
    ) -> Setting:
        results: list[Confinement | None] = []
        for start in starts:
            if start is None:
                results.append(None)
                continue
            with _rate(start, rates):
                results.append(
                    confinement(start, partition, batches, loss, make, steps=steps, after_step=after, seed=seed)
                )
        assert results[0] is not None
        verdict = _verdict(results[0], results[1], tolerance)
        return Setting(name, results[0], results[1], verdict, reason if verdict != "stays" else _STAYS.get(verdict, ""))

    found = [measured("plain SGD", plain, "the manifold is affine, and the gradient is along it")]
    found.append(measured(_title(optimizer), _fresh(optimizer, model), _why(optimizer)))
    if _has_uneven_state(optimizer, model, partition, tolerance):
        found.append(
            measured("state of the optimizer", _kept(optimizer, model), "its moments differ between clones already")
        )
    for path, key, rate in random_rates(model):
        found.append(
            measured(f"{path or 'model'}.{key}={rate}", plain, "clones get different masks", (path, key, rate))
        )
    for name, make in (others or {}).items():
        found.append(measured(name, make, "it treats clones differently"))
    for name, after in (after_step or {}).items():
        found.append(measured(name, plain, "it treats clones differently", None, after))
    return Audit(tuple(found), steps)


_STAYS = {"stays": "equal weights are treated equally"}


def _verdict(clones: Confinement, leaf: Confinement | None, tolerance: float) -> str:
    def is_off(value: float) -> bool:
        return not value <= tolerance

    if is_off(clones.distance):
        return "leaves"
    if leaf is not None and is_off(leaf.distance):
        return "leaves from a redistributed leaf"
    if leaf is not None and is_off(leaf.residual_drift):
        return "moves between leaves"
    return "stays"


def _prepared(model: nn.Module) -> nn.Module:
    """A float64 copy without dropout."""
    bare = copy_of(model).double()
    for path, key, _ in random_rates(bare):
        setattr(bare.get_submodule(path), key, 0.0)
    return bare


def _in_float64(inputs: Any) -> Any:
    """A batch in double precision; of a function, what it returns."""
    if not callable(inputs):
        return in_float64(inputs)

    def made(step: int) -> tuple[Any, Callable[[Any], Tensor]]:
        batch, loss = inputs(step)
        return in_float64(batch), loss

    return made


def _starts(model: nn.Module, partition: Partition, seed: int) -> tuple[nn.Module, nn.Module | None]:
    clones = copy.deepcopy(model)
    clones.load_state_dict(project(clones, partition, "block_constant"), strict=False)
    leaf: nn.Module | None = copy.deepcopy(clones)
    assert leaf is not None
    try:
        leaf.load_state_dict(redistributed(leaf, partition, seed=seed), strict=False)
    except IllegalConfiguration:  # no tensor has blocks on both sides
        leaf = None
    return clones, leaf


class _rate:  # noqa: N801 (a context manager, used as a function)
    """A dropout rate, for a while."""

    def __init__(self, model: nn.Module, rate: tuple[str, str, float] | None) -> None:
        self.model, self.rate = model, rate

    def __enter__(self) -> None:
        if self.rate is not None:
            setattr(self.model.get_submodule(self.rate[0]), self.rate[1], self.rate[2])

    def __exit__(self, *error: object) -> None:
        if self.rate is not None:
            setattr(self.model.get_submodule(self.rate[0]), self.rate[1], 0.0)


def _kept(optimizer: Optimizer, model: nn.Module) -> Callable[[nn.Module], Optimizer]:
    """From a copy of the model to a copy of the optimizer, state included."""

    def make(wide: nn.Module) -> Optimizer:
        new = dict(wide.named_parameters())
        memo = {id(parameter): new[name] for name, parameter in model.named_parameters()}
        made = copy.deepcopy(optimizer, memo)
        for state in made.state.values():
            for key, value in state.items():
                if isinstance(value, Tensor) and value.is_floating_point() and value.ndim:
                    state[key] = value.double()
        return made

    return make


def _fresh(optimizer: Optimizer, model: nn.Module) -> Callable[[nn.Module], Optimizer]:
    """The same without its state."""

    def make(wide: nn.Module) -> Optimizer:
        made = _kept(optimizer, model)(wide)
        made.state.clear()
        return made

    return make


def _title(optimizer: Optimizer) -> str:
    return type(optimizer).__name__


def _why(optimizer: Optimizer) -> str:
    options = optimizer.param_groups[0]
    decay = max((float(group.get("weight_decay", 0.0)) for group in optimizer.param_groups), default=0.0)
    if not decay:
        return "it treats equal gradients differently"
    if isinstance(optimizer, torch.optim.AdamW) or options.get("decoupled_weight_decay"):
        return f"decoupled weight decay ({decay}) shrinks the differences inside blocks, and leaves clones equal"
    if isinstance(optimizer, SGD):
        return f"weight decay ({decay}) shrinks the differences inside blocks, and leaves clones equal"
    return f"weight decay ({decay}) is part of the gradient, and each weight has a step size of its own"


def _has_uneven_state(optimizer: Optimizer, model: nn.Module, partition: Partition, tolerance: float) -> bool:
    """Whether moments differ inside blocks."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    known = set(canonical_names(model).values())
    by_key: dict[str, dict[str, Tensor]] = {}
    for parameter, state in optimizer.state.items():
        name = names.get(id(parameter))
        for key, value in state.items():
            if name in known and isinstance(value, Tensor) and value.shape == parameter.shape and value.ndim:
                by_key.setdefault(key, {})[str(name)] = value
    for values in by_key.values():
        off = normal_part(model, partition, "block_constant", state=values)
        if norm_of(off) > tolerance * norm_of(values):
            return True
    return False
