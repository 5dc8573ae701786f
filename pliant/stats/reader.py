"""Reading a group's activations at its tap, as a tensor whose last axis is the unit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pliant.errors import IllegalConfiguration
from pliant.units.group import UnitGroup
from pliant.units.replay import Replay, tensor_leaves

__all__ = ["TapReader"]


class TapReader:
    """Turns what a hook sees into a group's activations.

    Args:
        group: A group with a tap.
        replay: Its replay, where the tap needs one.
        tensors: The model's parameters and buffers by canonical name (read at each use).
        members: Whether the leading axis of every activation is the ensemble member.
    """

    def __init__(
        self, group: UnitGroup, replay: Replay | None, tensors: Mapping[str, Tensor], *, members: bool
    ) -> None:
        if group.tap is None:
            raise IllegalConfiguration(
                f"no hook can see the activations of unit group {group.name!r}; choose other groups with where=..."
            )
        self.group, self.tap, self.replay, self.tensors, self.members = group, group.tap, replay, tensors, members
        self.width = len(self.tap.table[0])
        flat = [position for row in self.tap.table for position in row]
        self._in_order = flat == list(range(len(flat)))
        self._index = torch.tensor(flat, dtype=torch.long)

    def value(self, seen: Any) -> Tensor:
        """The tensor that carries the units, detached.

        Args:
            seen: ``(args, kwargs)`` of the hooked module for an input tap, its output for an output tap.
        """
        if self.replay is not None:
            return self.replay(seen, self.tensors)
        if self.tap.kind == "output" and isinstance(seen, Tensor):
            return seen.detach()
        if self.tap.kind == "input" and self.tap.slot == 0 and seen[0] and isinstance(seen[0][0], Tensor):
            return seen[0][0].detach()
        return tensor_leaves(seen)[self.tap.slot].detach()

    def sum_over_samples(self, act: Tensor) -> tuple[Tensor, int]:
        """Sums of ``act`` over everything but members and units, and the number of samples per unit.

        Args:
            act: A tensor with the tap's layout, ``[..., units' positions, ...]``.

        Returns:
            Sums ``[U]`` or ``[S, U]`` in at least float32, and the count (batch times positions times M).
        """
        unit = act.ndim + self.tap.dim
        dims = [dim for dim in range(1 if self.members else 0, act.ndim) if dim != unit]
        dtype = torch.float64 if act.dtype == torch.float64 else torch.float32
        total = act.sum(dims, dtype=dtype) if dims else act.to(dtype)
        count = self.width
        for dim in dims:
            count *= act.shape[dim]
        return self._per_unit(total), count

    def _is_whole(self, size: int) -> bool:
        """Whether a dimension holds this group's positions, in order, and nothing else (a concatenation does)."""
        return self._in_order and size == len(self._index)

    def _per_unit(self, total: Tensor) -> Tensor:
        if not self._is_whole(total.shape[-1]):
            if self._index.device != total.device:
                self._index = self._index.to(total.device)
            total = total.index_select(-1, self._index)
        if self.width > 1:
            total = total.reshape(*total.shape[:-1], self.group.size, self.width).sum(-1)
        return total

    def matrix(self, act: Tensor) -> Tensor:
        """Samples by units: every other axis (batch, time, space, positions within a unit) is a sample.

        Returns:
            ``[N, U]`` or ``[S, N, U]``, in the activations' dtype.
        """
        act = act.movedim(self.tap.dim, -1)
        if not self._is_whole(act.shape[-1]):
            act = act.index_select(-1, self._index.to(act.device))
        if self.width > 1:
            act = act.reshape(*act.shape[:-1], self.group.size, self.width).transpose(-1, -2)
        return act.flatten(1 if self.members else 0, -2)
