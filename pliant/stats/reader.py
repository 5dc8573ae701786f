"""Reading a group's activations at its tap, as a tensor whose last axis is the unit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pliant.errors import IllegalConfiguration
from pliant.units.group import UnitGroup
from pliant.units.replay import Replay, tensor_leaves

__all__ = ["TapReader", "quantity"]

_MAX_RANK = 9
_MAX_PLANS = 64
_WIDE = (torch.float32, torch.float64)


def quantity(statistic: str, act: Tensor, center: Tensor | None = None) -> Tensor:
    """What a statistic of activations is the mean of: ``act`` itself, or a new tensor of its shape.

    Args:
        statistic: Its name.
        act: The activations.
        center: For ``"mean_abs_deviation"``, what they deviate from, in a shape that broadcasts to them.
    """
    if statistic == "mean_abs_activation":
        return act.abs()
    if statistic == "active_fraction":  # 1 where positive, and NaN stays NaN; several times as fast as a comparison
        tiny = torch.finfo(act.dtype).tiny
        return act.clamp(0, tiny).mul_(1 / tiny)
    if statistic == "mean_abs_deviation" and center is not None:
        return (act - center).abs_()
    return act


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
        self._plans: dict[torch.Size, tuple[list[int], int, bool]] = {}
        lead = 1 if members else 0  # made now: what a compiled forward fills in later would compile it again
        self._sample_dims = {
            rank: [dim for dim in range(lead, rank) if dim != rank + self.tap.dim] for rank in range(1, _MAX_RANK)
        }

    def value(self, seen: Any) -> Tensor:
        """The tensor that carries the units, detached.

        Args:
            seen: ``(args, kwargs)`` of the hooked module for an input tap, its output for an output tap.
        """
        return self.replay(seen, self.tensors) if self.replay is not None else self.live(seen).detach()

    def live(self, seen: Any) -> Tensor:
        """The tensor that carries the units, as the forward pass made it: with its graph.

        Args:
            seen: As in :meth:`value`.

        Raises:
            IllegalConfiguration: If the activations are replayed, apart from the forward pass and without gradients.
        """
        if self.replay is not None:
            raise IllegalConfiguration(
                f"the activations of unit group {self.group.name!r} are recomputed apart from the forward pass, so "
                "their gradients cannot be seen; choose other groups with where=..."
            )
        if self.tap.kind == "output" and isinstance(seen, Tensor):
            return seen
        if self.tap.kind == "input" and self.tap.slot == 0 and seen[0] and isinstance(seen[0][0], Tensor):
            return seen[0][0]
        return tensor_leaves(seen)[self.tap.slot]

    def like(self, values: Tensor, act: Tensor) -> Tensor:
        """Something per unit, ``[U]`` or ``[S, U]``, in a shape and type that broadcasts to activations."""
        size = act.shape[self.tap.dim]
        if self.width > 1:
            values = values.repeat_interleave(self.width, -1)
        if not self._is_whole(size):
            along = values.new_zeros(*values.shape[:-1], size)
            values = along.index_copy_(-1, self._index.to(along.device), values)
        shape = [1] * act.ndim
        shape[self.tap.dim] = size
        if self.members:
            shape[0] = values.shape[0]
        return values.reshape(shape).to(act.dtype)

    def sample(
        self, act: Tensor, statistics: Sequence[str], center: Tensor | None = None
    ) -> tuple[dict[str, Tensor], int]:
        """The means that are asked for, and the number of samples per unit; not inside a graph.

        Args:
            act: A tensor with the tap's layout, detached.
            statistics: Those of activations that are wanted, see :func:`quantity`.
            center: As there, but one entry per unit.
        """
        about = None if center is None else self.like(center, act)
        dims, count, is_plain = self._plan(act.shape)
        means = {}
        for name in statistics:
            value = quantity(name, act, about)
            if not is_plain or act.dtype not in _WIDE:
                means[name] = self.mean_over_samples(value)[0]
            elif count == 1:
                means[name] = value.squeeze(dims)
            else:
                means[name] = value.mean(dims)
            if value is act and count == self.width:  # of one sample: the activation itself
                means[name] = means[name].clone()
        return means, count

    def rows(self, acts: Sequence[Tensor]) -> Tensor | None:
        """Several activations of one sample each as one tensor, ``[len(acts), U]``; ``None`` where they are others."""
        for act in acts:
            dims, count, is_plain = self._plan(act.shape)
            if count != 1 or not is_plain or act.ndim != 2 or len(dims) != 1 or act.dtype not in _WIDE:
                return None
        return torch.cat(list(acts), dims[0])

    def _plan(self, shape: torch.Size) -> tuple[list[int], int, bool]:
        """Over which dimensions to average, the samples, and whether that is all; worked out once for each shape."""
        plan = self._plans.get(shape)
        if plan is None:
            act = torch.empty(shape, device="meta")
            plan = (
                self._sample_dims[act.ndim],
                self.count(act),
                self.width == 1 and self._is_whole(shape[self.tap.dim]),
            )
            if len(self._plans) < _MAX_PLANS:
                self._plans[shape] = plan
        return plan

    def mean_over_samples(self, act: Tensor) -> tuple[Tensor, int]:
        """Means of ``act`` over everything but members and units, and the number of samples per unit.

        Args:
            act: A tensor with the tap's layout, ``[..., units' positions, ...]``.

        Returns:
            Means ``[U]`` or ``[S, U]`` in at least float32, and the count (batch times positions times M).
        """
        dims, count = self._sample_dims[act.ndim], self.count(act)
        if count == self.width:  # one sample: nothing to average
            act = act.squeeze(dims)
            dims = []
        if not dims:
            mean = act if act.dtype in _WIDE else act.to(torch.float32)
        elif act.dtype in _WIDE:
            mean = act.mean(dims)
        else:
            mean = act.mean(dims, dtype=torch.float32)
        return self._per_unit(mean), count

    def count(self, act: Tensor) -> int:
        """Samples per unit in a tensor of the tap's layout."""
        count = self.width
        for dim in self._sample_dims[act.ndim]:
            count *= act.shape[dim]
        return count

    def _is_whole(self, size: int) -> bool:
        """Whether a dimension holds this group's positions, in order, and nothing else (a concatenation does)."""
        return self._in_order and size == len(self._index)

    def _per_unit(self, mean: Tensor) -> Tensor:
        if not self._is_whole(mean.shape[-1]):
            if self._index.device != mean.device:
                self._index = self._index.to(mean.device)
            mean = mean.index_select(-1, self._index)
        if self.width > 1:
            mean = mean.reshape(*mean.shape[:-1], self.group.size, self.width).mean(-1)
        return mean

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
