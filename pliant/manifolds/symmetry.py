r"""Units that are one feature up to its sign or its size: symmetries of single units, found by running the model.

Where a unit's activation function is odd, negating its incoming and its outgoing weights changes nothing; where it is
positively homogeneous (ReLU, leaky ReLU, none at all), neither does multiplying its incoming weights by :math:`c > 0`
and dividing its outgoing ones by it. Two units that differ by such a change only are clones *up to sign* or *up to
scale*. Under a norm of each unit by itself, its gain and offset take the place of the incoming weights.

What that means for training differs. A change of signs is orthogonal: it turns gradients as it turns weights, and
every optimizer that treats a weight and its negative alike commutes with it. So clones up to sign are held like clones.
A change of sizes is not: the gradient of the larger copy is the smaller one, so that gradient descent turns the two
apart. Clones up to scale are one feature twice, and no trap.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pliant.errors import IllegalConfiguration
from pliant.fresh import copy_of
from pliant.manifolds.structure import tensors_of
from pliant.metrics import clone_labels
from pliant.observation import observe
from pliant.quiet import unrecorded
from pliant.units import UnitGraph, UnitGroup
from pliant.units.verify import Probe

__all__ = ["Gauge", "Symmetry", "UnitSymmetries", "turned", "unit_symmetries"]

Symmetry = Literal["sign", "scale"]
_KINDS: tuple[Symmetry, ...] = ("sign", "scale")
_ALIKE = 0.9  # clones up to sign have cosines of plus or minus one; a sign is only needed among these


@dataclass(frozen=True)
class UnitSymmetries:
    """What single units of a group may be changed by, with what reads them undoing it.

    Attributes:
        kinds: ``"sign"``, ``"scale"`` or both.
        through: What is changed: ``"incoming"`` weights and biases, or the gain and offset of a ``"norm"`` after them.

    Example:
        >>> import pliant
        >>> x = torch.randn(4, 2)
        >>> def of(*layers):
        ...     model = nn.Sequential(nn.Linear(2, 3), *layers, nn.Linear(3, 1))
        ...     return unit_symmetries(model, pliant.find_units(model, x), x)["0"]
        >>> of(nn.ReLU())
        UnitSymmetries(kinds=('scale',), through='incoming')
        >>> of(nn.BatchNorm1d(3), nn.ReLU())  # the norm undoes what its inputs are multiplied by: its gain is changed
        UnitSymmetries(kinds=('scale',), through='norm')
    """

    kinds: tuple[Symmetry, ...]
    through: Literal["incoming", "norm"]


def unit_symmetries(
    model: nn.Module, units: UnitGraph, example_inputs: Any, *, tolerance: float = 1e-8
) -> dict[str, UnitSymmetries]:
    """The groups whose units may change sign or size without any effect on what the model computes.

    Hidden units only. It is tried, not looked up: in float64 on a generic state, in evaluation and in training mode
    with dropout off, with another sign or another factor for neighbouring units.

    Args:
        model: The model; it is not changed.
        units: Its unit graph.
        example_inputs: One small batch.
        tolerance: Largest relative change of the outputs that counts as rounding.

    Returns:
        Group name to its symmetries; groups without any are left out.

    Example:
        >>> import pliant
        >>> x = torch.randn(4, 2)
        >>> def kinds(activation):
        ...     model = nn.Sequential(nn.Linear(2, 3), activation, nn.Linear(3, 1))
        ...     return [item.kinds for item in unit_symmetries(model, pliant.find_units(model, x), x).values()]
        >>> kinds(nn.ReLU()), kinds(nn.Tanh()), kinds(nn.GELU()), kinds(nn.Identity())
        ([('scale',)], [('sign',)], [], [('sign', 'scale')])
    """
    with unrecorded():
        probe = Probe(model, example_inputs, 0, torch.float64)
        probe.baseline()
        found = {}
        for group in units:
            allowed = _allowed(probe, group, tolerance) if group.site == "hidden" else None
            if allowed is not None:
                found[group.name] = allowed
    return {name: item for name, item in found.items() if name in _follow(model, units, example_inputs, found)}


def _follow(
    model: nn.Module, units: UnitGraph, example_inputs: Any, found: Mapping[str, UnitSymmetries]
) -> frozenset[str]:
    """The groups whose activations change as their units do: not where a norm stands behind what is seen."""
    if not found:
        return frozenset()
    before = {name: tensor.detach() for name, tensor in tensors_of(model).items()}
    after, factors = dict(before), {}
    for name, item in found.items():
        factors[name] = torch.linspace(1, 2, units[name].size, dtype=torch.float64)
        if "scale" not in item.kinds:
            factors[name] = torch.where(torch.arange(units[name].size) % 2 == 0, -1.0, 1.0).double()
        after = turned(after, units[name], factors[name], item.through) or after
    seen = [_seen(model, state, units, example_inputs) for state in (before, after)]
    result = set()
    for name, factor in factors.items():
        if name in seen[0]:
            wanted, got = seen[0][name] * factor, seen[1][name]
            close = (wanted - got).abs().max() <= 1e-3 * wanted.abs().max()
            result.update([name] if bool(close) else [])
    return frozenset(result)


def _seen(model: nn.Module, state: Mapping[str, Tensor], units: UnitGraph, inputs: Any) -> dict[str, Tensor]:
    """Activations in evaluation mode with another state, float64 ``[N, U]`` by group."""
    other = copy_of(model)
    other.load_state_dict(dict(state), strict=False)
    groups = observe(other, inputs, units=units, mode="eval").groups
    return {name: group.act_NU.double().cpu() for name, group in groups.items()}


def _allowed(probe: Probe, group: UnitGroup, tolerance: float) -> UnitSymmetries | None:
    if not group.role("outgoing") or any(piece.role == "both" or piece.at is not None for piece in group.slices):
        return None
    steps = torch.linspace(-1, 1, group.size, dtype=torch.float64).exp2()
    signs = torch.tensor([-1.0, 1.0], dtype=torch.float64).repeat(group.size)[: group.size]
    factors = {"sign": signs, "scale": steps * 1.5}
    ways: tuple[Literal["incoming", "norm"], ...] = ("incoming", "norm")
    for through in ways:
        kinds = []
        for kind in _KINDS:
            state = turned(probe.state, group, factors[kind], through)
            if state is not None and probe.change(state) <= tolerance:
                kinds.append(kind)
        if kinds:
            return UnitSymmetries(tuple(kinds), through)
    return None


def turned(
    state: Mapping[str, Tensor], group: UnitGroup, factor_U: Tensor, through: Literal["incoming", "norm"]
) -> dict[str, Tensor] | None:
    """A state in which each unit is multiplied by a factor, and what reads it divides by it.

    Args:
        state: Name to tensor; it is not changed.
        group: Whose units.
        factor_U: One factor for each, none zero, ``[U]``.
        through: What makes the units larger.

    Returns:
        The state; ``None`` where there is nothing to go through.
    """
    result = dict(state)
    made = group.role("incoming") if through == "incoming" else _affine(group)
    if not made:
        return None
    for pieces, factor in ((made, factor_U), (group.role("outgoing"), 1 / factor_U)):
        for piece in pieces:
            value = result[piece.name]
            along = torch.ones(value.shape[piece.dim], dtype=torch.float64)
            where = piece.positions()
            along[where.flatten()] = factor.double()[:, None].expand(where.shape).flatten()
            result[piece.name] = value * along.to(value).view([-1] + [1] * (-piece.dim - 1))
    return result


def _affine(group: UnitGroup) -> tuple[Any, ...]:
    """Gains and offsets, without the statistics beside them."""
    return tuple(p for p in group.role("carried") if p.name.rpartition(".")[2] in ("weight", "bias"))


class Gauge:
    """Puts networks into a form in which clones up to sign and scale are plain ones."""

    def __init__(self, model: nn.Module, units: UnitGraph, example_inputs: Any, up_to: Collection[Symmetry]) -> None:
        if not up_to or any(kind not in _KINDS for kind in up_to):
            raise IllegalConfiguration(f"up_to={tuple(up_to)}: it may hold 'sign' and 'scale'.")
        if example_inputs is None:
            raise IllegalConfiguration(
                "clones up to sign or scale are looked for where the model allows these changes, which is found by "
                "running it: give example_inputs=, one small batch."
            )
        self.model, self.units, self.inputs = model, units, example_inputs
        self.allowed: dict[str, UnitSymmetries] = {}
        for name, item in unit_symmetries(model, units, example_inputs).items():
            kinds = tuple(kind for kind in item.kinds if kind in up_to)
            if kinds:
                self.allowed[name] = UnitSymmetries(kinds, item.through)

    def factors(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """By what each unit differs from its kind in that form, ``[U]`` by group: from activations in evaluation mode.

        Units that give zero throughout have the factor 1.
        """
        if not self.allowed:
            return {}
        seen = _seen(self.model, state, self.units, self.inputs)
        return {
            name: _factors(seen[name], item.kinds)
            for name, item in self.allowed.items()
            if name in seen and len(seen[name]) >= 2 and bool(torch.isfinite(seen[name]).all())
        }

    def changed(self, state: Mapping[str, Tensor], factors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The same function with units divided by these factors."""
        result = dict(state)
        for name, factor in factors.items():
            result = turned(result, self.units[name], 1 / factor, self.allowed[name].through) or result
        return result


def _factors(act_NU: Tensor, kinds: Collection[Symmetry]) -> Tensor:
    """The sign beside the first unit of the same feature, times the size beside the middle one."""
    result = torch.ones(act_NU.shape[1], dtype=torch.float64)
    if "scale" in kinds:
        size = act_NU.square().mean(0).sqrt()
        alive = size > 0
        if bool(alive.any()):
            result = torch.where(alive, size / size[alive].median(), result)
    if "sign" in kinds:
        first = clone_labels(act_NU, _ALIKE, "any", centred=False)
        along = (act_NU * act_NU[:, first]).sum(0)
        result = torch.where(along < 0, -result, result)
    return result
