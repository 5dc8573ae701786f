r"""Wider copies of a network that compute the same, and back.

Every unit is taken several times: its incoming weights are repeated, its outgoing weights divided among the copies,

.. math:: \tilde W_{(v,c'),(u,c)} = \lambda_{u,c}\, W_{vu}, \qquad \sum_c \lambda_{u,c} = 1,

with :math:`\lambda = 1/k` unless told otherwise. What a unit carries (norm parameters, running statistics) is
repeated. The copies of a unit are neighbours, so that norm groups and heads stay whole. A matrix that is an embedding
and the head at once cannot be divided: there the last norm before the head is divided by ``k``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.optim import Optimizer

from pliant.errors import IllegalConfiguration, NotYetSupported
from pliant.manifolds.cloned_state import scaled_optimizer
from pliant.manifolds.partition import Partition, canonical
from pliant.manifolds.repetition import Repetition, check_norms, detached, difference, fill, units_of
from pliant.manifolds.resize import new_shapes, resized
from pliant.manifolds.scores import ScoreScale, score_scales
from pliant.units import UnitGraph, find_units

__all__ = ["Clone", "clone"]

_TOLERANCE = 1e-12


@dataclass(frozen=True)
class Clone:
    """A wider network that computes the same.

    Attributes:
        model: The wider model, with its own parameters.
        units: Its unit graph.
        partition: The copies of each unit as blocks.
        optimizer: A copy of the optimizer over the wider model's parameters, state included; ``None`` if none was
            given.
        change: Largest relative difference of the outputs to the base's, in float64 on generic parameters, inputs and
            buffers, in evaluation and in training mode with dropout off.
        scores: By what weights of queries and keys were multiplied, where dimensions inside heads are copied.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)).double()
        >>> wide = clone(model, 2, torch.randn(4, 2).double(), optimizer=torch.optim.Adam(model.parameters()))
        >>> wide.change < 1e-12, wide.partition.of("0")
        (True, (0, 0, 1, 1, 2, 2))
        >>> torch.equal(wide.model[0].weight[::2], model[0].weight)  # repeated
        True
        >>> torch.equal(wide.model[2].weight[:, ::2] * 2, model[2].weight)  # divided
        True
        >>> wide.optimizer.param_groups[0]["params"][0] is wide.model[0].weight
        True
    """

    model: nn.Module
    units: UnitGraph = field(repr=False)
    partition: Partition
    optimizer: Optimizer | None
    change: float
    scores: tuple[ScoreScale, ...] = field(default=(), repr=False)


def clone(
    model: nn.Module,
    factor: int | Mapping[str, int | Sequence[int]],
    example_inputs: Any,
    *,
    optimizer: Optimizer | None = None,
    units: UnitGraph | None = None,
    split: Mapping[str, Sequence[float]] | None = None,
    into: nn.Module | None = None,
) -> Clone:
    """A wider model that computes the same function, proved by running it.

    Args:
        model: Any model whose units are found; it is not changed.
        factor: Number of copies of every hidden unit, attention head and residual dimension; or by group, one number
            or one for each unit. Of nested groups (query heads in a key-value head) a single number multiplies the
            outer one. Dimensions inside heads are copied only when a group of them is named: with weights of queries
            and keys rescaled so that scores stay (:mod:`~pliant.manifolds.scores`). Name those of queries and keys and
            those of values together where the model has one width for all.
        example_inputs: One small batch, as for :func:`pliant.find_units`.
        optimizer: Optimizer of the model, to be copied along: first moments are divided by the number of copies of
            the receiving unit, second moments by its square, as the gradients of the copies are.
        units: The model's unit graph, if it has been found already.
        split: For a group, the share of the outgoing weights that each copy gets, ``[number of copies]``, in order;
            the shares of a unit's copies add up to one. Unequal shares leave the outgoing condition unfulfilled.
        into: A model of the wider shape to fill, where a copy of ``model`` cannot be widened by itself. It is changed.

    Returns:
        The clone.

    Raises:
        IllegalConfiguration: For unknown groups, numbers below one, unequal multiplicities under a norm across units.
        NotYetSupported: If no wider network of this kind computes the same, with the reason.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)).double()
        >>> wide = clone(model, {"0": [1, 2, 3]}, torch.randn(4, 2).double())
        >>> wide.model[0].weight.shape, wide.partition.block_sizes("0")
        (torch.Size([6, 2]), (1, 2, 3))
        >>> x = torch.randn(5, 2).double()
        >>> bool((model(x) - wide.model(x)).abs().max() < 1e-12)
        True
    """
    units = units or find_units(model, example_inputs)
    counts = _counts(units, factor)
    check_norms(model, units, counts)
    sizes = {name: sum(number) for name, number in counts.items()}
    wide = resized(model, units, new_shapes(model, units, counts), sizes) if into is None else into
    try:
        wide_units = units_of(wide, units, sizes, example_inputs, "wider")
    except NotYetSupported as error:
        raise NotYetSupported(f"{error}{_of_heads(units, counts)}") from error
    blocks = Partition(wide_units, {name: canonical(_owners(number)) for name, number in counts.items()})
    change = float("inf")
    for scores in score_scales(units, counts):
        view = Repetition(model, wide, units, blocks, split or {}, scores)
        change = difference(model, wide, example_inputs, view)
        if change <= _TOLERANCE:
            break
    if not change <= _TOLERANCE:
        raise NotYetSupported(
            f"a wider {type(model).__name__} with repeated units computes something else (outputs differ by "
            f"{change:.1e}): {_suspects(model)}. Clone some of its groups only, by name: {', '.join(counts)}."
        )
    fill(wide, {name: view.widened(name, tensor) for name, tensor in detached(model).items()})
    made = None
    if optimizer is not None:
        rates = {name: view.rate(name) for name, _ in model.named_parameters()}
        made = scaled_optimizer(optimizer, model, wide, view.transfer.expand, rates)
    return Clone(wide, wide_units, blocks, made, change, scores)


def _counts(units: UnitGraph, factor: int | Mapping[str, int | Sequence[int]]) -> dict[str, list[int]]:
    if not isinstance(factor, (int, Mapping)):
        raise IllegalConfiguration(f"factor={factor!r}: give a number of copies, or numbers by group.")
    if isinstance(factor, int):
        taken: set[tuple[str, int, int]] = set()
        chosen: dict[str, int | Sequence[int]] = {}
        for group in units:
            places = {(p.name, p.dim, at) for p in group.slices for row in p.table for at in row}
            if group.site != "head_dims" and not places & taken:
                chosen[group.name] = factor
                taken |= places
        factor = chosen
    counts = {}
    for name, number in factor.items():
        if name not in units:
            raise IllegalConfiguration(
                f"no unit group {name!r} to clone; there are: {', '.join(group.name for group in units)}."
                f"{_why_excluded(units, name)}"
            )
        each = [number] * units[name].size if isinstance(number, int) else [int(n) for n in number]
        if len(each) != units[name].size or min(each) < 1:
            raise IllegalConfiguration(
                f"{name!r} has {units[name].size} units: give one number of copies, or one for each, of 1 or more."
            )
        counts[name] = each
    return {name: each for name, each in counts.items() if max(each) > 1}


def _owners(number: Sequence[int]) -> list[int]:
    """For each new unit, the old one that it is a copy of: copies are neighbours."""
    return [unit for unit, copies in enumerate(number) for _ in range(copies)]


def _of_heads(units: UnitGraph, counts: Mapping[str, Sequence[int]]) -> str:
    """What to know where dimensions inside heads were to be copied."""
    names = [name for name in counts if units[name].site == "head_dims"]
    if not names:
        return ""
    others = [g.name for g in units if g.site == "head_dims" and g.name not in names]
    return (
        f" {', '.join(map(repr, names))} are dimensions inside heads: the module must keep their number in an "
        "attribute such as head_dim, and where queries, keys and values share one number, all of them must be "
        "copied together"
        + (f" (the others here: {', '.join(others)})" if others else "")
        + ". Rotary embeddings turn dimensions of queries and keys by angles that belong to their place in the head, "
        "so that none can be a copy of another: with them no wider head computes the same. Clone whole heads instead."
    )


def _why_excluded(units: UnitGraph, name: str) -> str:
    """Why a module has no group of head dimensions."""
    module, mark, _ = name.partition(":head_dims")
    reasons = [why for (tensor, _), why in units.excluded.items() if tensor.startswith(f"{module}.")]
    if not mark or not reasons:
        return ""
    return (
        f" {module!r}: {reasons[0]}. (Rotary embeddings turn dimensions of queries and keys by angles that belong to "
        "their place in the head: none can be a copy of another. Clone whole heads instead.)"
    )


def _suspects(model: nn.Module) -> str:
    names = sorted({type(module).__name__ for _, module in model.named_modules() if _ is not None})
    return f"some operation depends on how many units there are, in one of {', '.join(names)}"
