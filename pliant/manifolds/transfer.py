"""Which entry of a narrow network's tensor every entry of a wider one's is a copy of."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from pliant.errors import NotYetSupported
from pliant.units import UnitGraph

__all__ = ["Transfer"]

Key = tuple[tuple[str, int], ...]


class Transfer:
    """The correspondence of the tensors of two networks that differ in how often units occur.

    Positions are matched by the units that own them, in all groups of a dimension at once; those that the same units
    own (a flattened channel's, the rows of one head) correspond in their order.
    """

    def __init__(
        self,
        base: UnitGraph,
        wide: UnitGraph,
        owners: Mapping[str, Sequence[int]],
        base_shapes: Mapping[str, Sequence[int]],
        wide_shapes: Mapping[str, Sequence[int]],
    ) -> None:
        self.wide, self.owners, self.shapes = wide, owners, wide_shapes
        self.index: dict[str, dict[int, Tensor]] = {}
        for name in owners:
            for piece in base[name].slices:
                dims = self.index.setdefault(piece.name, {})
                if piece.dim not in dims:
                    dims[piece.dim] = self._match(
                        base,
                        piece.name,
                        piece.dim,
                        base_shapes[piece.name][piece.dim],
                        wide_shapes[piece.name][piece.dim],
                    )

    def _match(self, base: UnitGraph, name: str, dim: int, short: int, long: int) -> Tensor:
        by_key: dict[Key, list[int]] = {}
        for position, key in enumerate(_keys(base, name, dim, short)):
            by_key.setdefault(key, []).append(position)
        seen: dict[Key, int] = {}
        source = []
        for key in _keys(self.wide, name, dim, long):
            old = tuple((group, self.owners[group][unit] if group in self.owners else unit) for group, unit in key)
            rank = seen.get(key, 0)
            seen[key] = rank + 1
            if rank >= len(by_key.get(old, ())):
                raise NotYetSupported(
                    f"the units of the two networks own different numbers of positions of {name!r} along dimension "
                    f"{dim}: their structure differs in more than width."
                )
            source.append(by_key[old][rank])
        return torch.tensor(source, dtype=torch.long)

    def expand(self, name: str, tensor: Tensor) -> Tensor:
        """The wide tensor whose entries are copies of a narrow one's."""
        for dim, source in self.index.get(name, {}).items():
            tensor = tensor.index_select(dim, source.to(tensor.device))
        return tensor

    def first(self, name: str, tensor: Tensor) -> Tensor:
        """The narrow tensor that the first copies in a wide one make."""
        for dim, source in self.index.get(name, {}).items():
            size = int(source.max()) + 1
            places = torch.full((size,), len(source))
            places.scatter_reduce_(0, source, torch.arange(len(source)), "amin")
            tensor = tensor.index_select(dim, places.to(tensor.device))
        return tensor

    def factor(self, name: str, values: Mapping[str, Tensor], roles: Collection[str]) -> Tensor:
        """A product over the units that own each entry in one of these roles; it broadcasts to the wide tensor.

        Args:
            name: The tensor.
            values: Group name to one number per unit of the wide network.
            roles: Which slices count.
        """
        shape = self.shapes[name]
        result = torch.ones([1] * len(shape), dtype=torch.float64)
        for group, value in values.items():
            for piece in self.wide[group].slices:
                if piece.name == name and piece.role in roles:
                    along = torch.ones(shape[piece.dim], dtype=torch.float64)
                    where = piece.positions()
                    along[where.flatten()] = value.double()[:, None].expand(where.shape).flatten()
                    result = result * along.view([-1] + [1] * (-piece.dim - 1))
        return result


def _keys(units: UnitGraph, name: str, dim: int, length: int) -> list[Key]:
    """For each position, the units that own it."""
    owned: list[list[tuple[str, int]]] = [[] for _ in range(length)]
    for group in units:
        for piece in group.slices:
            if (piece.name, piece.dim) == (name, dim):
                for unit, row in enumerate(piece.table):
                    for position in row:
                        owned[position].append((group.name, unit))
    return [tuple(sorted(entry)) for entry in owned]
