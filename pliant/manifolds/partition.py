r"""Partitions of hidden units into blocks, and what they mean for the entries of every tensor.

A partition gives every unit of a group of the unit graph a block. A group is everything that must be indexed alike:
the two branches of a residual sum are one group, a flattened channel owns many columns, tied weights are one tensor.
So a partition of the groups is a partition of all interfaces of the network, and profiles cannot mismatch once it
exists; :func:`partition` refuses those that would.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pliant.errors import IllegalConfiguration, NotYetSupported
from pliant.units import UnitGraph, UnitGroup
from pliant.units.group import TensorSlice

__all__ = ["Partition", "partition"]

_PLACE = re.compile(r"(?P<name>.+)\[(?P<dim>-\d+)\]")


@dataclass(frozen=True)
class Partition:
    """Blocks of units, group by group.

    Attributes:
        units: The unit graph whose groups are partitioned.
        labels: Group name to the block of each unit, ``[U]``; blocks are numbered by their first unit. Groups that
            are left out have one block per unit.

    Example:
        >>> import pliant
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.ReLU(), torch.nn.Linear(4, 1))
        >>> units = pliant.find_units(model, torch.randn(3, 2))
        >>> blocks = Partition(units, {"0": (0, 1, 0, 0)})
        >>> blocks.num_blocks("0"), blocks.block_sizes("0"), blocks.cloned_fraction("0"), blocks.is_trivial
        (2, (3, 1), 0.75, False)
        >>> Partition(units, {}).is_trivial  # one block per unit
        True
    """

    units: UnitGraph = field(repr=False)
    labels: Mapping[str, tuple[int, ...]]

    def __post_init__(self) -> None:
        """Refuse labels of other units.

        Raises:
            IllegalConfiguration: If a name is no group of the graph, or its labels are too many or too few.
        """
        for name, own in self.labels.items():
            if name not in self.units:
                names = ", ".join(group.name for group in self.units)
                raise IllegalConfiguration(f"{name!r} is no unit group of this graph; there are: {names}.")
            if len(own) != self.units[name].size:
                raise IllegalConfiguration(
                    f"group {name!r} has {self.units[name].size} units, and the partition gives {len(own)} labels."
                )

    def of(self, group: str) -> tuple[int, ...]:
        """The block of each unit of a group, ``[U]``."""
        return self.labels.get(group) or tuple(range(self.units[group].size))

    def num_blocks(self, group: str) -> int:
        """Number of blocks of a group."""
        return len(set(self.of(group)))

    def block_sizes(self, group: str) -> tuple[int, ...]:
        """Number of units in each block of a group, in the order of the blocks."""
        labels = self.of(group)
        return tuple(labels.count(block) for block in range(self.num_blocks(group)))

    def cloned_fraction(self, group: str) -> float:
        """Share of the group's units that are in a block with another one."""
        sizes = self.block_sizes(group)
        return sum(size for size in sizes if size > 1) / sum(sizes)

    @property
    def is_trivial(self) -> bool:
        """Whether every block is a single unit."""
        return not any(self._blocks())

    def _blocks(self) -> Iterable[str]:
        return (name for name, labels in self.labels.items() if len(set(labels)) < len(labels))

    def slices(self) -> dict[str, list[tuple[UnitGroup, TensorSlice]]]:
        """Tensor name to the slices of it that belong to groups with a block of two or more."""
        found: dict[str, list[tuple[UnitGroup, TensorSlice]]] = {}
        for name in self._blocks():
            for piece in self.units[name].slices:
                if piece.at is not None:
                    raise NotYetSupported(
                        f"the units of {name!r} are those of one expert of a stack ({piece.label}): blocks of them are "
                        "not known. Leave this group out."
                    )
                found.setdefault(piece.name, []).append((self.units[name], piece))
        return found

    def classes(self, pieces: Sequence[tuple[UnitGroup, TensorSlice]], length: int) -> Tensor:
        """Which positions along a dimension belong together.

        Positions that a swap of two units of one block exchanges are one class: channel ``c`` of a block, flattened
        to H·W columns, has H·W classes, one for each place in space.

        Args:
            pieces: Slices of one tensor along one dimension; several where groups are nested (heads and what is in
                them).
            length: Size of that dimension.

        Returns:
            ``LongTensor [length]``: the lowest position of each position's class.
        """
        lowest = torch.arange(length)
        steps = []
        for group, piece in pieces:
            labels = self.of(group.name)
            first: dict[int, int] = {}
            for unit, block in enumerate(labels):
                first.setdefault(block, unit)
            step = torch.arange(length)
            where = piece.positions()
            step[where.flatten()] = where[torch.tensor([first[block] for block in labels])].flatten()
            steps.append(step)
        while True:  # nested groups move positions one after the other, until nothing moves
            moved = lowest
            for step in steps:
                moved = step[moved]
            if bool((moved == lowest).all()):
                return lowest
            lowest = moved

    def __str__(self) -> str:
        rows = []
        for group in self.units:
            sizes = self.block_sizes(group.name)
            if max(sizes) > 1:
                rows.append(f"{group.name}: {group.size} units in {len(sizes)} blocks of {min(sizes)} to {max(sizes)}")
        return "\n".join(rows) or "every unit is a block of its own"


def partition(units: UnitGraph, blocks: Mapping[str, Sequence[int]]) -> Partition:
    """A partition of the hidden units of a network.

    Args:
        units: The unit graph of the model.
        blocks: The label of each unit's block, ``[U]``, by group name; or by place, ``"layer.weight[-2]"``, one label
            for each position along that dimension. Any labels: equal ones are one block. What is left out is not
            partitioned.

    Returns:
        The partition.

    Raises:
        IllegalConfiguration: If a name is no group and no place of one, the length is not the number of units, two
            entries that are tied (the branches of a residual sum, a flattened channel, tied weights) disagree, or
            labels by place tie positions that no unit joins.

    Example:
        >>> import torch, pliant
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.ReLU(), torch.nn.Linear(4, 1))
        >>> units = pliant.find_units(model, torch.randn(3, 2))
        >>> print(partition(units, {"0": [0, 0, 1, 1]}))
        0: 4 units in 2 blocks of 2 to 2
        >>> partition(units, {"2.weight[-1]": [5, 7, 7, 5]}).of("0")
        (0, 1, 1, 0)
    """
    labels: dict[str, tuple[int, ...]] = {}
    said_by: dict[str, str] = {}
    for key, given in blocks.items():
        for name, own in _read(units, key, list(given)):
            if name in labels and labels[name] != own:
                raise IllegalConfiguration(
                    f"{key!r} and {said_by[name]!r} are the same units (group {name!r}), and their blocks differ: "
                    f"{_short(own)} against {_short(labels[name])}. Profiles must match wherever a residual sum, a "
                    "flatten or a tied weight joins two tensors; give the blocks once, by the name of the group."
                )
            labels[name], said_by[name] = own, key
    return Partition(units, labels)


def _short(labels: Sequence[int]) -> str:
    return f"{list(labels[:8])}{'...' if len(labels) > 8 else ''}"


def canonical(labels: Iterable[int]) -> tuple[int, ...]:
    """Blocks numbered in the order of their first unit."""
    numbers: dict[int, int] = {}
    return tuple(numbers.setdefault(int(label), len(numbers)) for label in labels)


def _read(units: UnitGraph, key: str, given: list[int]) -> list[tuple[str, tuple[int, ...]]]:
    if key in units:
        size = units[key].size
        if len(given) != size:
            raise IllegalConfiguration(f"group {key!r} has {size} units, and the partition gives {len(given)} labels.")
        return [(key, canonical(given))]
    match = _PLACE.fullmatch(key)
    at = (match["name"], int(match["dim"])) if match else ("", 0)
    found = [(g, piece) for g in units for piece in g.slices if (piece.name, piece.dim) == at]
    if not found:
        reason = units.excluded.get(at)
        names = ", ".join(group.name for group in units)
        raise IllegalConfiguration(
            f"{key!r} is neither a unit group nor a place of one"
            + (f" ({reason})" if reason else "")
            + f"; the groups are: {names}."
        )
    return _by_place(key, given, found)


def _by_place(
    key: str, given: list[int], found: list[tuple[UnitGroup, TensorSlice]]
) -> list[tuple[str, tuple[int, ...]]]:
    owned = {position for _, piece in found for row in piece.table for position in row}
    if max(owned) >= len(given):
        raise IllegalConfiguration(
            f"{key!r} has {max(owned) + 1} positions or more, and {len(given)} labels are given."
        )
    nested = len({position for _, piece in found for row in piece.table for position in row}) < sum(
        len(row) for _, piece in found for row in piece.table
    )
    if nested:
        names = ", ".join(group.name for group, _ in found)
        raise IllegalConfiguration(f"{key!r} is shared by nested groups ({names}): give the blocks by group name.")
    result = []
    for group, piece in found:
        rows = [tuple(given[position] for position in row) for row in piece.table]
        numbers: dict[tuple[int, ...], int] = {}
        own = tuple(numbers.setdefault(row, len(numbers)) for row in rows)
        for one in range(group.size):
            for other in range(one):
                if own[one] != own[other] and set(rows[one]) & set(rows[other]):
                    raise IllegalConfiguration(
                        f"{key!r} ties single positions of the units {other} and {one} of {group.name!r}: a block "
                        "holds whole units, so that all positions of one correspond to those of the other."
                    )
        result.append((group.name, canonical(own)))
    return result
