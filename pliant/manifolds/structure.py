r"""Block averages of one tensor: the operators that every condition, projection and dimension is made of.

A dimension is *receiving* where its positions produce units (rows of a weight matrix, a bias), *sending* where they
consume them (columns), and *shared* where both (norm parameters, tied weights, the group axis of a grouped
convolution). All averages commute, so products of them are orthogonal projections.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from pliant.errors import IllegalConfiguration
from pliant.manifolds.partition import Partition
from pliant.units import UnitGroup
from pliant.units.depth import module_of
from pliant.units.group import TensorSlice

__all__ = ["Kind", "Side", "TensorBlocks", "block_structure", "is_group_axis", "tensors_of"]

Kind = Literal["incoming", "outgoing", "both", "block_constant"]
Side = Literal["receiving", "sending", "shared"]
_SIDE: dict[str, Side] = {"incoming": "receiving", "outgoing": "sending", "carried": "shared", "both": "shared"}


@dataclass(frozen=True)
class TensorBlocks:
    """The blocks of one tensor.

    Attributes:
        name: The tensor.
        shape: Its shape.
        is_buffer: Whether it is a buffer: nothing trains it, but a forward pass in evaluation mode reads it.
        pieces: Side and dimension to the slices there.
        partition: The partition.
    """

    name: str
    shape: tuple[int, ...]
    is_buffer: bool
    pieces: Mapping[tuple[Side, int], tuple[tuple[UnitGroup, TensorSlice], ...]]
    partition: Partition

    def has(self, side: Side) -> bool:
        """Whether a dimension of the tensor is on this side."""
        return any(own == side for own, _ in self.pieces)

    def classes(self, *sides: Side) -> dict[int, Tensor]:
        """Dimension to the class of each position, with the units of these sides exchanged."""
        dims = sorted({dim for side, dim in self.pieces if side in sides})
        return {
            dim: self.partition.classes(
                [pair for (side, at), pairs in self.pieces.items() if at == dim and side in sides for pair in pairs],
                self.shape[dim],
            )
            for dim in dims
        }

    def mean(self, tensor: Tensor, *sides: Side) -> Tensor:
        """The tensor with every entry replaced by the mean over its class, along the dimensions of these sides."""
        for dim, classes in self.classes(*sides).items():
            tensor = _mean_along(tensor, dim, classes)
        return tensor

    def num_classes(self, *sides: Side) -> int:
        """Rank of :meth:`mean`: the number of free entries of a tensor that is constant on the classes."""
        total = 1
        classes = self.classes(*sides)
        for dim, size in zip(range(-len(self.shape), 0), self.shape, strict=True):
            total *= int(torch.unique(classes[dim]).numel()) if dim in classes else size
        return total

    def block_size(self, side: Side) -> dict[int, Tensor]:
        """Dimension to the number of positions in each position's class."""
        return {
            dim: torch.bincount(classes, minlength=len(classes))[classes] for dim, classes in self.classes(side).items()
        }

    def off(self, tensor: Tensor, kind: Kind) -> Tensor:
        """The part of a tensor that is normal to the manifold of a kind; zero on it."""
        if kind == "incoming":
            sums = self.mean(tensor, "sending")
            return sums - self.mean(sums, "receiving", "shared")
        if kind == "outgoing":
            sums = self.mean(tensor, "receiving")
            return sums - self.mean(sums, "sending", "shared")
        if kind == "both":
            first = tensor - self.off(tensor, "incoming")
            return tensor - (first - self.off(first, "outgoing"))
        return tensor - self.mean(tensor, "receiving", "sending", "shared")

    def dimension(self, kind: Kind) -> int:
        """Number of dimensions of the manifold of a kind, inside the space of this tensor."""
        every = self.num_classes()
        if kind == "incoming":
            return every - self.num_classes("sending") + self.num_classes("receiving", "sending", "shared")
        if kind == "outgoing":
            return every - self.num_classes("receiving") + self.num_classes("receiving", "sending", "shared")
        constant = self.num_classes("receiving", "sending", "shared")
        if kind == "block_constant":
            return constant
        normal = self.num_classes("sending") + self.num_classes("receiving") - 2 * constant
        if self.has("shared"):  # what both conditions forbid is counted once
            normal -= self.num_classes("receiving", "sending") - constant
        return every - normal


def _mean_along(tensor: Tensor, dim: int, classes: Tensor) -> Tensor:
    classes = classes.to(tensor.device)
    total = torch.zeros_like(tensor).index_add_(dim, classes, tensor)
    count = torch.bincount(classes, minlength=len(classes)).clamp(min=1).to(tensor.dtype)
    shape = [1] * tensor.ndim
    shape[dim] = len(classes)
    return (total / count.view(shape)).index_select(dim, classes)


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and floating-point buffers by canonical name."""
    found: dict[str, Tensor] = dict(model.named_parameters())
    found.update((name, item) for name, item in model.named_buffers() if item.dtype.is_floating_point)
    return found


def block_structure(model: nn.Module, partition: Partition) -> dict[str, TensorBlocks]:
    """The blocks of every tensor that a partition touches.

    Args:
        model: The model whose unit graph was partitioned.
        partition: The partition.

    Returns:
        Tensor name to its blocks; tensors without blocks of two or more units are left out.

    Raises:
        IllegalConfiguration: If the partition names a tensor that the model does not have, or one that is too short.
    """
    tensors, result = tensors_of(model), {}
    parameters = {name for name, _ in model.named_parameters()}
    for name, pairs in partition.slices().items():
        if name not in tensors:
            raise IllegalConfiguration(
                f"the partition does not fit this model: {type(model).__name__} has no tensor {name!r}. Partition the "
                "units of this very model."
            )
        shape = tuple(tensors[name].shape)
        pieces: dict[tuple[Side, int], list[tuple[UnitGroup, TensorSlice]]] = {}
        for group, piece in pairs:
            if -piece.dim > len(shape) or max(max(row) for row in piece.table) >= shape[piece.dim]:
                raise IllegalConfiguration(
                    f"the partition does not fit this model: group {group.name!r} owns positions of {name!r} along "
                    f"dimension {piece.dim} that a tensor of shape {shape} does not have."
                )
            side: Side = "shared" if is_group_axis(model, name, group, piece) else _SIDE[piece.role]
            pieces.setdefault((side, piece.dim), []).append((group, piece))
        result[name] = TensorBlocks(
            name, shape, name not in parameters, {key: tuple(value) for key, value in pieces.items()}, partition
        )
    return result


def is_group_axis(model: nn.Module, name: str, group: UnitGroup, piece: TensorSlice) -> bool:
    """Whether units are the groups of a grouped convolution: its kernel both reads and makes them, one by one."""
    module = model.get_submodule(module_of(name))
    if not isinstance(module, nn.modules.conv._ConvNd) or module.groups == 1 or not name.endswith("weight"):
        return False
    if group.size != module.groups or piece.role != "incoming" or piece.table[0] != tuple(range(piece.width)):
        return False
    return any(other.role == "incoming" and other.name != name for other in group.slices)  # made before this kernel
