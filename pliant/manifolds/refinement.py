"""Colour refinement of a partition: blocks are split until the units of each one look alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from pliant.manifolds.partition import Partition, canonical
from pliant.manifolds.structure import Side, block_structure
from pliant.units import UnitGroup
from pliant.units.group import Role

__all__ = ["SearchKind", "refine", "typical"]

SearchKind = Literal["both", "incoming"]
_MOST_COMPARED = 256  # units; the median distance of so many says that of all


def typical(group: UnitGroup, shuffles: list[dict[str, Tensor]]) -> dict[tuple[str, int], float]:
    """The median distance between two units of a shuffled network, place by place."""
    found: dict[tuple[str, int], float] = {}
    for piece in group.slices:
        middles = []
        for state in shuffles:
            rows = _rows(state[piece.name], piece.dim, piece.positions()[:_MOST_COMPARED])
            apart = torch.pdist(rows)
            middles.append(float(apart.median()) if len(apart) else 0.0)
        found[piece.name, piece.dim] = sum(middles) / len(middles)
    return found


def _rows(value: Tensor, dim: int, positions: Tensor) -> Tensor:
    """The entries that belong to each unit, ``[U, entries]``."""
    moved = value.movedim(dim, 0)
    return moved[positions.flatten().to(value.device)].reshape(len(positions), -1).double().cpu()


def refine(
    model: nn.Module,
    start: Partition,
    state: Mapping[str, Tensor],
    scales: Mapping[str, Mapping[tuple[str, int], float]],
    tolerance: float,
    kind: SearchKind,
) -> Partition:
    """Split blocks by signature until nothing changes."""
    partition, units = start, start.units
    while True:
        blocks = block_structure(model, partition)
        sums: dict[tuple[str, tuple[Side, ...]], Tensor] = {}
        labels: dict[str, tuple[int, ...]] = {}
        for name, old in partition.labels.items():
            if len(set(old)) == len(old):
                labels[name] = old
                continue
            parts = _blocks_of(old)
            same = [torch.ones(len(part), len(part), dtype=torch.bool) for part in parts]
            for piece in units[name].slices:
                scale = scales[name][piece.name, piece.dim]
                for side in _seen_from(piece.role, kind):
                    key = (piece.name, side)
                    if key not in sums:
                        sums[key] = blocks[piece.name].mean(state[piece.name].double(), *side)
                    for part, alike in zip(parts, same, strict=True):
                        rows = _rows(sums[key], piece.dim, piece.positions()[part])
                        alike &= _apart(rows, exact=tolerance == 0) <= tolerance * scale + 1e-9 * float(
                            rows.abs().max()
                        )
            labels[name] = _split(old, parts, same)
        if labels == dict(partition.labels):
            return Partition(units, {name: own for name, own in labels.items() if len(set(own)) < len(own)})
        partition = Partition(units, labels)


def _blocks_of(labels: Sequence[int]) -> list[Tensor]:
    """The units of each block of two or more."""
    members: dict[int, list[int]] = {}
    for unit, label in enumerate(labels):
        members.setdefault(label, []).append(unit)
    return [torch.tensor(part) for part in members.values() if len(part) > 1]


def _apart(rows: Tensor, *, exact: bool) -> Tensor:
    mode = "donot_use_mm_for_euclid_dist" if exact else "use_mm_for_euclid_dist_if_necessary"
    return torch.cdist(rows, rows, compute_mode=mode)


def _split(old: Sequence[int], parts: Sequence[Tensor], same: Sequence[Tensor]) -> tuple[int, ...]:
    """Blocks split into the connected components of what is alike."""
    labels = [(label, 0) for label in old]
    for part, alike in zip(parts, same, strict=True):
        for unit, component in zip(part.tolist(), _components(alike), strict=True):
            labels[unit] = (old[unit], component)
    numbers: dict[tuple[int, int], int] = {}
    return canonical(numbers.setdefault(label, len(numbers)) for label in labels)


def _seen_from(role: Role, kind: SearchKind) -> tuple[tuple[Side, ...], ...]:
    """What is summed before units are compared: the other side of the weights, in blocks."""
    if kind == "incoming":
        return () if role == "outgoing" else (("sending",),)
    table: dict[Role, tuple[tuple[Side, ...], ...]] = {
        "incoming": (("sending",),),
        "outgoing": (("receiving",),),
        "carried": (("sending",), ("receiving",)),
        "both": (("sending",), ("receiving",)),
    }
    return table[role]


def _components(same: Tensor) -> tuple[int, ...]:
    """Connected components of a symmetric relation, numbered by their first member."""
    label = torch.arange(len(same))
    while True:
        lowest = torch.where(same, label[None, :], len(same)).min(1).values
        lowest = torch.minimum(lowest, label)
        if torch.equal(lowest, label):
            return canonical(label.tolist())
        label = lowest
