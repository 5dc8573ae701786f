"""Where the old units of a group that has grown lie in its new tensors: first, or anywhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pliant.saving.names import plain
from pliant.units.group import UnitGroup

__all__ = ["old_units_lead"]


def old_units_lead(
    groups: Sequence[UnitGroup], sizes: Mapping[str, int], shapes: Mapping[str, Sequence[int]]
) -> tuple[frozenset[str], frozenset[str]]:
    """Which groups have grown so that the leading entries of every tensor are those of the old units.

    Of a plain layer the units lie one after the other, and new ones come after the old ones. Of a fused projection
    (queries, keys and values in one matrix) they do not: in the wider one the old units' keys lie elsewhere.

    Args:
        groups: The groups of the model as it is.
        sizes: Group to the number of units that it had, under its present name; groups that are new are left out.
        shapes: Tensor to the shape that it had, under its present name.

    Returns:
        Names of the groups that have grown in this way; and names of tensors whose leading entries are not what
        they were, because units that are new lie in between.
    """
    broken: set[str] = set()
    for (name, dim), pieces in _by_dimension(groups).items():
        shape = shapes.get(name)
        if (
            shape is None
            or len(shape) < -dim
            or not any(size != group.size for group, size, _ in _sized(pieces, sizes))
        ):
            continue
        kept = {p for _, size, table in _sized(pieces, sizes) for row in table[:size] for p in row}
        if any(position >= shape[dim] for position in kept):
            broken.add(name)
    changed = {group.name: group for group in groups if group.name in sizes and sizes[group.name] != group.size}
    apart = {name for name, group in changed.items() if broken.intersection(map(plain, group.tensors))}
    torn = frozenset(plain(tensor) for name in apart for tensor in changed[name].tensors) | broken
    grown = {name for name, group in changed.items() if group.size > sizes[name]} - apart
    return frozenset(grown), frozenset(torn)


_Piece = tuple[UnitGroup, tuple[tuple[int, ...], ...]]


def _by_dimension(groups: Sequence[UnitGroup]) -> dict[tuple[str, int], list[_Piece]]:
    found: dict[tuple[str, int], list[_Piece]] = {}
    for group in groups:
        for piece in group.slices:
            found.setdefault((plain(piece.name), piece.dim), []).append((group, piece.table))
    return found


def _sized(
    pieces: Sequence[_Piece], sizes: Mapping[str, int]
) -> list[tuple[UnitGroup, int, tuple[tuple[int, ...], ...]]]:
    """The pieces with the sizes that the groups had; a group that was not there had no unit."""
    return [(group, sizes.get(group.name, 0), table) for group, table in pieces]
