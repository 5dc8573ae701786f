"""Another size of the same function: weights are rescaled where what follows them allows it.

It separates large weights from what else has happened to a network: if only their size is at fault, the rescaled
network learns as fresh ones do, though it computes the same.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from pliant.errors import IllegalConfiguration, NoEffect
from pliant.forward import outputs, relative_change
from pliant.fresh import copy_of
from pliant.quiet import unrecorded
from pliant.units import UnitGraph, UnitGroup, find_units
from pliant.units.export import Inputs
from pliant.units.init import Init, InitSpec, initialisers
from pliant.units.verify import Probe
from pliant.write import Writer

__all__ = ["Rescaled", "rescaled"]

Kind = Literal["homogeneous", "normalised", "normalised together"]

# Largest relative change in float64 on a generic state: what rounding can do, or the epsilon of a norm. Mistakes change
# the outputs by percents.
_SAME: dict[Kind, float] = {"homogeneous": 1e-8, "normalised": 1e-4, "normalised together": 1e-4}
_NOTHING = 1e-8
_SWEEPS = 8  # what one group gives away, the next one gets


@dataclass(frozen=True)
class Rescaled:
    """Made by :func:`rescaled`.

    Attributes:
        model: The rescaled copy.
        factors: Group to the factor of each unit's incoming weights, float64 ``[U]``.
        kinds: Group to why that keeps the function: ``"homogeneous"``: outgoing weights were divided by the factor;
            ``"normalised"``: a norm takes it out, for each unit, or ``"normalised together"``, the same for all.
        refused: Group to why it was left alone.
        norms: Weight tensor to its Frobenius norm before and after, of those that have changed.
        change: Largest relative change of the outputs on the given inputs, in evaluation mode.
    """

    model: nn.Module
    factors: Mapping[str, Tensor]
    kinds: Mapping[str, Kind]
    refused: Mapping[str, str]
    norms: Mapping[str, tuple[float, float]]
    change: float

    def __str__(self) -> str:
        """A line per group, and what became of the norms."""
        lines = [f"outputs change by {self.change:.2g} (relative)"]
        for name, factor in self.factors.items():
            lines.append(
                f"{name} ({self.kinds[name]}): incoming weights times {factor.min():.3g} to {factor.max():.3g}"
            )
        lines += [f"{name}: left alone, {why}" for name, why in self.refused.items()]
        lines += [f"|{name}|: {before:.4g} -> {after:.4g}" for name, (before, after) in self.norms.items()]
        return "\n".join(lines)


def rescaled(
    model: nn.Module,
    inputs: Inputs,
    *,
    units: UnitGraph | None = None,
    where: str = "*",
    factor: float | None = None,
    exact: bool = True,
    tolerance: float = 1e-3,
    init: InitSpec = None,
) -> Rescaled:
    r"""A copy that computes the same function with incoming weights of their initial size.

    For an activation with :math:`\phi(c z) = c\,\phi(z)` for :math:`c > 0` (ReLU, leaky ReLU, none at all), the
    incoming weights and biases of a unit can be multiplied by :math:`c` and its outgoing weights divided by it:

    .. math:: \tfrac{1}{c}\, v\, \phi(c\,w^\top x + c\,b) = v\,\phi(w^\top x + b)

    Where a norm follows the weights, their size does not matter to the function at all, up to the norm's epsilon: they
    are rescaled alone, with the running statistics, for each unit (batch norm) or for all of a layer (layer norm).

    Group after group, each unit gets the norm of incoming weights that is expected at its initialisation. What
    homogeneous layers have grown ends in the last layer's weights, so their product stays: that is what "the same
    function" costs. What a group allows is not looked up but tried, in float64 on a random state near the network's own
    scale, in both modes; a group that allows neither (tanh, GELU, softmax) is left alone, with the reason.

    Args:
        model: The model; it is not changed.
        inputs: A small batch as the loop passes it.
        units: The unit groups, if they have been found before.
        where: Pattern of the groups.
        factor: One factor for all units instead of their initial norms.
        exact: Round factors to powers of two, so that the function is kept to the bit where kernels allow it; norms
            are then right within a factor of the square root of two.
        tolerance: Largest relative change of the outputs that is accepted.
        init: How parameters are initialised, see :func:`~pliant.fresh.fresh_twin`.

    Returns:
        The copy and what was done.

    Raises:
        NoEffect: If no group could be rescaled; the message has the reasons.
        IllegalConfiguration: If the outputs change by more than the tolerance, the factor is not positive, or an
            initial distribution is not known.

    Source:
        The rescaling symmetry of networks with ReLU: Neyshabur et al., Path-SGD (2015), arXiv:1506.02617.

    Example:
        >>> model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> x = torch.randn(5, 3)
        >>> with torch.no_grad():
        ...     _ = model[0].weight.mul_(64)
        >>> same = rescaled(model, x)
        >>> torch.equal(same.model(x), model(x)), bool(same.model[0].weight.norm() < model[0].weight.norm() / 32)
        (True, True)
    """
    if factor is not None and not (0 < factor < math.inf):
        raise IllegalConfiguration(f"factor must be a positive number, not {factor}.")
    work = copy_of(model)
    units = find_units(work, inputs) if units is None else units
    groups, kinds, refused = _what_they_allow(work, inputs, units, where)
    if not groups:
        why = "; ".join(f"{name}: {reason}" for name, reason in refused.items()) or f"no group matches {where!r}"
        raise NoEffect(f"nothing can be rescaled without changing the function. {why}")
    tensors = {**dict(work.named_parameters()), **dict(work.named_buffers())}
    before = {name: float(tensors[name].detach().norm()) for group in groups for name in group.tensors}
    reference = outputs(work, inputs)
    inits = {} if factor is not None else initialisers(work, init)
    writer = Writer(tensors, (0,), num_members=None)
    total = {group.name: torch.ones(group.size, dtype=torch.float64) for group in groups}
    for _ in range(_SWEEPS if factor is None else 1):
        moved = False
        for group in groups:
            wanted = torch.full((group.size,), float(factor or 1), dtype=torch.float64)
            if factor is None:
                wanted = _wanted(group, tensors, inits, together=kinds[group.name] == "normalised together")
            by = torch.exp2(torch.log2(wanted).round()) if exact else wanted
            if bool(((by - 1).abs() < _NOTHING).all()):
                continue
            moved = True
            total[group.name] *= by
            with torch.no_grad():
                _apply(writer, group, by.to(next(iter(tensors.values())).device), kinds[group.name])
        if not moved:
            break
    change = float(relative_change(reference, outputs(work, inputs)))
    if not change <= tolerance:
        raise IllegalConfiguration(
            f"the outputs changed by {change:.2g} (relative), more than the tolerance of {tolerance:.2g}: factors so "
            "far from 1 leave the range of the weights' data type. Try exact=True, factor=..., or model.double()."
        )
    after = {name: float(tensors[name].detach().norm()) for name in before}
    norms = {name: (before[name], after[name]) for name in before if before[name] != after[name]}
    return Rescaled(work, total, kinds, refused, norms, change)


def _what_they_allow(
    model: nn.Module, inputs: Inputs, units: UnitGraph, where: str
) -> tuple[list[UnitGroup], dict[str, Kind], dict[str, str]]:
    """The groups that can be rescaled, in which way, and why the others cannot."""
    groups: list[UnitGroup] = []
    kinds: dict[str, Kind] = {}
    refused: dict[str, str] = {}
    with unrecorded():
        probe = Probe(model, inputs, 0, torch.float64)
        probe.baseline()
        for group in units.select(where):
            if any(piece.role == "both" for piece in group.slices):
                refused[group.name] = "the same weights come in and go out (tied)"
                continue
            changes = {kind: _trial(probe, group, kind) for kind in _SAME if _fits(group, kind)}
            kind = next((kind for kind, change in changes.items() if change <= _SAME[kind]), None)
            if kind is not None:
                groups.append(group)
                kinds[group.name] = kind
                continue
            tried = ", ".join(f"{kind}: {change:.2g}" for kind, change in changes.items())
            refused[group.name] = (
                "its activation is not positively homogeneous, and no norm takes the size of its weights out "
                f"(relative change of the outputs in trials; {tried})"
            )
    return groups, kinds, refused


def _fits(group: UnitGroup, kind: Kind) -> bool:
    return kind != "homogeneous" or bool(group.role("outgoing") and not group.role("carried"))


def _trial(probe: Probe, group: UnitGroup, kind: Kind) -> float:
    state = {name: tensor.clone() for name, tensor in probe.state.items()}
    device = next(iter(state.values())).device
    spread = torch.linspace(-1, 1, group.size, dtype=torch.float64, device=device)
    factor_U = spread.exp2() if kind != "normalised together" else torch.full_like(spread, 2.0)
    _apply(Writer(state, (0,), num_members=None), group, factor_U, kind)
    return probe.change(state)


def _apply(writer: Writer, group: UnitGroup, factor_U: Tensor, kind: Kind) -> None:
    for piece in group.slices:
        if piece.role == "incoming":
            writer.multiply(piece, factor_U, None)
        elif kind == "homogeneous":
            writer.multiply(piece, 1 / factor_U, None)
        elif piece.role == "carried" and piece.name.endswith("running_mean"):
            writer.multiply(piece, factor_U, None)
        elif piece.role == "carried" and piece.name.endswith("running_var"):
            writer.multiply(piece, factor_U.square(), None)


def _wanted(
    group: UnitGroup, tensors: Mapping[str, Tensor], inits: Mapping[str, Init | None], *, together: bool
) -> Tensor:
    """By what incoming weights must be multiplied to have their expected initial norm, float64 ``[U]``.

    For each unit, or the same for all of them together.
    """
    square = torch.zeros(group.size, dtype=torch.float64)
    expected = 0.0
    for piece in group.role("incoming"):
        tensor = tensors[piece.name].detach()
        if tensor.ndim < 2:
            continue
        init = inits.get(piece.name)
        if init is None:
            raise IllegalConfiguration(
                f"how {piece.name!r} was initialised is not known, so its initial size is not: say it with "
                'init={"' + piece.name + '": "kaiming_uniform"}, or give factor=...'
            )
        rows = tensor.double().cpu().movedim(piece.dim, 0).flatten(1).square().sum(1)
        square += rows[piece.positions()].sum(1)
        expected += init.mean_square * piece.width * tensor.numel() / tensor.shape[piece.dim]
    norm = (square.mean().expand(group.size) if together else square).sqrt()
    usable = (norm > 0) & torch.isfinite(norm)
    return torch.where(usable, math.sqrt(expected) / norm.where(usable, norm.new_ones(())), norm.new_ones(()))
