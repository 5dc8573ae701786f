"""Streaming statistics: forward hooks that add up, once per optimizer step, what the units did."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pliant.errors import IllegalConfiguration, NoEffect
from pliant.stats.listener import Listener, silence
from pliant.stats.reader import TapReader
from pliant.units.graph import UnitGraph
from pliant.units.group import UnitGroup
from pliant.units.several import Several

__all__ = ["STATISTICS", "Collector", "GroupStats"]

STATISTICS = ("mean_abs_activation", "mean_activation")
"""Statistics that an intervention can ask for in ``needs``."""


class GroupStats:
    """One group's statistics over the training samples of the last sampled optimizer step.

    Attributes:
        mean_abs_activation: Mean of ``|h|`` over samples, ``[U]`` or ``[S, U]``.
        mean_activation: Mean of ``h``, of the same shape.
        step: The step that they belong to; 0 before the first.
    """

    def __init__(self) -> None:
        self.step = 0
        self._values: dict[str, Tensor] = {}

    def _get(self, name: str) -> Tensor:
        if name not in self._values:
            raise NoEffect(f"statistic {name!r} was not collected; list it in the intervention's `needs`.")
        return self._values[name]

    @property
    def mean_abs_activation(self) -> Tensor:
        """Mean of ``|h|`` over samples."""
        return self._get("mean_abs_activation")

    @property
    def mean_activation(self) -> Tensor:
        """Mean of ``h`` over samples."""
        return self._get("mean_activation")


class _Accumulator:
    """The running sums of one group between two optimizer steps.

    Eager forwards keep their sums in ``sums`` and count on the host. Compiled ones cannot branch on the step without
    recompiling, so they add to fixed buffers at every step; a sample is then the mean since the last one.
    """

    def __init__(self, reader: TapReader, needs: frozenset[str], shape: tuple[int, ...], like: Tensor) -> None:
        dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
        self.reader, self.needs, self.tap = reader, tuple(sorted(needs)), reader.tap
        self.sums: dict[str, Tensor] = {}
        self.count = 0
        self.compiled = {name: torch.zeros(shape, dtype=dtype, device=like.device) for name in self.needs}
        self.compiled_count = torch.zeros((), dtype=dtype, device=like.device)
        self.in_forward = self.in_backward = False
        self.stats = GroupStats()

    def add(self, seen: Any) -> None:
        act = self.reader.value(seen)
        count = 0
        for name in self.needs:
            total, count = self.reader.sum_over_samples(act.abs() if name == "mean_abs_activation" else act)
            if torch.compiler.is_compiling():
                self.compiled[name].add_(total)
            else:
                self.sums[name] = self.sums[name] + total if self.count else total
        if torch.compiler.is_compiling():
            self.compiled_count.add_(count)
        else:
            self.count += count

    def finish(self, step: int, process_group: Any) -> bool:
        """Turn sums into means and start anew; false if no rank has seen a sample."""
        sums: dict[str, Tensor] = self.sums if self.count else self.compiled
        count: int | Tensor = self.count or self.compiled_count
        if process_group is not None:
            count = torch.as_tensor(count, dtype=self.compiled_count.dtype, device=self.compiled_count.device).clone()
            torch.distributed.all_reduce(count, group=process_group)
            if count.device.type == "cpu" and not count:
                return False
            for total in sums.values():
                torch.distributed.all_reduce(total, group=process_group)
        self.stats._values = {name: total / count for name, total in sums.items()}
        self.stats.step = step
        self.reset(compiled=not self.count)
        return True

    def forget(self) -> None:
        """Drop the sums of eager forwards."""
        self.reset(compiled=False)

    def reset(self, *, compiled: bool) -> None:
        """Forget the sums; those of compiled forwards only if asked."""
        self.sums = {}
        self.count, self.in_forward, self.in_backward = 0, False, False
        if compiled:
            self.compiled_count.zero_()
            for total in self.compiled.values():
                total.zero_()


class Collector:
    """Statistics of some groups, step by step.

    Several forward passes before one optimizer step count as one sample of that step; see
    :class:`~pliant.stats.listener.Listener` for what counts as training.

    Args:
        model: The model that is hooked.
        units: Its unit graph.
        needs: Group name to the statistics wanted.
        tensors: The model's tensors by canonical name.
        num_members: S for a stack of members, else ``None``.
        process_group: For DDP: the group over which statistics are averaged.
    """

    def __init__(
        self,
        model: nn.Module,
        units: UnitGraph,
        needs: Mapping[str, frozenset[str]],
        tensors: Mapping[str, Tensor],
        *,
        num_members: int | None = None,
        process_group: Any = None,
    ) -> None:
        self.model, self.process_group = model, process_group
        self.accumulators: dict[str, _Accumulator] = {}
        for name, wanted in needs.items():
            group = units[name]
            reader = TapReader(group, units.replays.get(name), tensors, members=num_members is not None)
            shape = (group.size,) if num_members is None else (num_members, group.size)
            self.accumulators[name] = _Accumulator(reader, wanted, shape, tensors[group.slices[0].name])
        parts = [""] if not isinstance(model, Several) else [f"{name}." for name, _ in model.named_children()]
        self._listeners = [
            Listener(model, [item for item in self.accumulators.values() if f"{item.tap.module}.".startswith(part)])
            for part in parts  # each of several models has gradients of its own
        ]

    @property
    def enabled(self) -> bool:
        """Whether samples are taken at present."""
        return self._listeners[0].enabled

    @enabled.setter
    def enabled(self, value: bool) -> None:
        for listener in self._listeners:
            listener.enabled = value

    def finish(self, step: int, groups: Sequence[UnitGroup]) -> None:
        """Close a sampled step for some groups: means become readable, sums start anew.

        Raises:
            IllegalConfiguration: If not a single group saw a training sample since the last step.
        """
        active = [self.accumulators[group.name] for group in groups if group.name in self.accumulators]
        if not active:
            return
        seen = [item for item in active if item.count]
        if not seen:
            seen = [item for item in active if bool(item.compiled_count > 0)]
        if self.process_group is not None:  # ranks must agree on what they reduce
            seen = active
        if not [item for item in seen if item.finish(step, self.process_group)]:
            raise IllegalConfiguration(silence(self.model, (item.tap for item in active)))

    def drop(self, groups: Sequence[UnitGroup], *, skipped: bool) -> None:
        """Forget what was added up since the last step: an unsampled step, or one that mixed precision skipped."""
        for group in groups:
            if group.name in self.accumulators:
                self.accumulators[group.name].reset(compiled=skipped)

    def stats(self, group: UnitGroup) -> GroupStats:
        """The statistics of a group."""
        if group.name not in self.accumulators:
            raise NoEffect(f"no statistics are collected for {group.name!r}; list them in the intervention's `needs`.")
        return self.accumulators[group.name].stats

    def remove(self) -> None:
        """Remove every hook."""
        for listener in self._listeners:
            listener.remove()
