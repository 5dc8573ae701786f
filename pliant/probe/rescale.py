"""Another size of the same function: weights are rescaled where the activation is positively homogeneous.

It separates large weights from what else has happened to a network: if only their size is at fault, the rescaled
network learns as fresh ones do, though it computes the same.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

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

_SAME = 1e-8  # relative change in float64 on a generic state: what rounding can do, far below what a mistake does
_SWEEPS = 8  # what one group gives away, the next one gets


@dataclass(frozen=True)
class Rescaled:
    """Made by :func:`rescaled`.

    Attributes:
        model: The rescaled copy.
        factors: Group to the factor of each unit's incoming weights, float64 ``[U]``; outgoing ones were divided by it.
        refused: Group to why it was left alone.
        norms: Weight tensor to its Frobenius norm before and after, of those that have changed.
        change: Largest relative change of the outputs on the given inputs, in evaluation mode.
    """

    model: nn.Module
    factors: Mapping[str, Tensor]
    refused: Mapping[str, str]
    norms: Mapping[str, tuple[float, float]]
    change: float

    def __str__(self) -> str:
        """A line per group, and what became of the norms."""
        lines = [f"outputs change by {self.change:.2g} (relative)"]
        for name, factor in self.factors.items():
            lines.append(f"{name}: incoming weights times {factor.min():.3g} to {factor.max():.3g}")
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
    tolerance: float = 1e-4,
    init: InitSpec = None,
) -> Rescaled:
    r"""A copy that computes the same function with incoming weights of their initial size.

    For an activation with :math:`\phi(c z) = c\,\phi(z)` for :math:`c > 0` (ReLU, leaky ReLU, none at all), the
    incoming weights and biases of a unit can be multiplied by :math:`c` and its outgoing weights divided by it:

    .. math:: \tfrac{1}{c}\, v\, \phi(c\,w^\top x + c\,b) = v\,\phi(w^\top x + b)

    Group after group, each unit gets the norm of incoming weights that is expected at its initialisation. What the
    hidden layers have grown ends in the last layer's weights, so their product stays: that is what "the same
    function" costs. Whether a group is homogeneous is not looked up but tried, in float64 on a random state near the
    network's own scale, in both modes; a group that fails (tanh, GELU, softmax, a norm behind the weights) is left
    alone, with the reason.

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
    groups, refused = _homogeneous(work, inputs, units, where)
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
            wanted = _wanted(group, tensors, inits) if factor is None else torch.full((group.size,), float(factor))
            by = torch.exp2(torch.log2(wanted).round()) if exact else wanted
            if bool((by == 1).all()) or bool(((by - 1).abs() < _SAME).all()):
                continue
            moved = True
            total[group.name] *= by
            with torch.no_grad():
                _apply(writer, group, by.to(next(iter(tensors.values())).device))
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
    return Rescaled(work, total, refused, norms, change)


def _homogeneous(
    model: nn.Module, inputs: Inputs, units: UnitGraph, where: str
) -> tuple[list[UnitGroup], dict[str, str]]:
    """The groups that can be rescaled, and why the others cannot."""
    with unrecorded():
        probe = Probe(model, inputs, 0, torch.float64)
        probe.baseline()
        found, refused = [], {}
        for group in units.select(where):
            if reason := _obstacle(group):
                refused[group.name] = reason
                continue
            state = {name: tensor.clone() for name, tensor in probe.state.items()}
            spread = torch.linspace(-1, 1, group.size, dtype=torch.float64).exp2()
            _apply(Writer(state, (0,), num_members=None), group, spread)
            change = probe.change(state)
            if change <= _SAME:
                found.append(group)
            else:
                refused[group.name] = (
                    f"its activation is not positively homogeneous, or a norm lies between (a trial rescaling changed "
                    f"the outputs by {change:.2g})"
                )
    return found, refused


def _obstacle(group: UnitGroup) -> str:
    if not group.role("outgoing"):
        return "it has no outgoing weights that could make up for it"
    if any(piece.role == "both" for piece in group.slices):
        return "the same weights come in and go out (tied)"
    if carried := group.role("carried"):
        return f"a norm or another state of its units ({carried[0].name}) lies between its weights and its activation"
    return ""


def _apply(writer: Writer, group: UnitGroup, factor_U: Tensor) -> None:
    for piece in group.slices:
        writer.multiply(piece, 1 / factor_U if piece.role == "outgoing" else factor_U, None)


def _wanted(group: UnitGroup, tensors: Mapping[str, Tensor], inits: Mapping[str, Init | None]) -> Tensor:
    """By what each unit's incoming weights must be multiplied to have their expected initial norm, float64 ``[U]``."""
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
    norm = square.sqrt()
    usable = (norm > 0) & torch.isfinite(norm)
    return torch.where(usable, math.sqrt(expected) / norm.where(usable, norm.new_ones(())), norm.new_ones(()))
