"""Streaming statistics: forward hooks that add up, once per optimizer step, what the units did."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pliant.errors import IllegalConfiguration, NoEffect
from pliant.stats.listener import Listener, is_recorded_by_a_graph, silence
from pliant.stats.reader import TapReader
from pliant.units.graph import UnitGraph
from pliant.units.group import UnitGroup

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

    Eager forwards keep their sums in ``sums`` and count on the host. Those that became part of a graph (compiled, or
    captured on CUDA) cannot branch on the step, so they add to fixed buffers at every step; a sample is then the mean
    since the last one. Non-finite batches are left out there, since a step that mixed precision skips cannot be told
    from others inside a graph; if nothing else was seen, the mean is not finite, and that is noticed.
    """

    def __init__(self, reader: TapReader, needs: frozenset[str], shape: tuple[int, ...], like: Tensor) -> None:
        dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
        self.reader, self.needs, self.tap = reader, tuple(sorted(needs)), reader.tap
        self.sums: dict[str, Tensor] = {}
        self.count = 0
        self.is_in_graph = False
        self.graph_sums = {name: torch.zeros(shape, dtype=dtype, device=like.device) for name in self.needs}
        self.graph_count = torch.zeros((), dtype=dtype, device=like.device)
        self.in_forward = False
        self.stats = GroupStats()

    def add(self, seen: Any) -> None:
        act = self.reader.value(seen)
        if is_recorded_by_a_graph():
            return self._add_in_graph(act)
        for name in self.needs:
            total, count = self.reader.sum_over_samples(act.abs() if name == "mean_abs_activation" else act)
            self.sums[name] = self.sums[name] + total if self.count else total
        self.count += count
        return None

    def _add_in_graph(self, act: Tensor) -> None:
        finite: Tensor | None = None
        for name in self.needs:
            total, count = self.reader.sum_over_samples(act.abs() if name == "mean_abs_activation" else act)
            finite = total.isfinite().all() if finite is None else finite
            self.graph_sums[name].add_(torch.where(finite, total, 0))
        if finite is not None:
            self.graph_count.add_(finite * count)

    def finish(self, step: int, process_group: Any) -> bool:
        """Turn sums into means and start anew; false if no rank has seen a sample."""
        in_graph = not self.count
        sums = self.graph_sums if in_graph else self.sums
        count: int | Tensor = self.graph_count if in_graph else self.count
        if process_group is not None:
            count = torch.as_tensor(count, dtype=self.graph_count.dtype, device=self.graph_count.device).clone()
            torch.distributed.all_reduce(count, group=process_group)
            if count.device.type == "cpu" and not count:
                return False
            for total in sums.values():
                torch.distributed.all_reduce(total, group=process_group)
        means = {name: total / count for name, total in sums.items()}
        if in_graph and self.graph_count.device.type != "cpu":  # nobody has looked whether there is a sample
            old = self.stats._values
            means = {name: torch.where(self.graph_count > 0, mean, old.get(name, 0.0)) for name, mean in means.items()}
        self.stats._values = means
        self.stats.step = step
        self.reset(in_graph=in_graph)
        return True

    def is_heard_in_graph(self) -> bool:
        """Whether a graph added a sample; an accelerator is asked only until the first one."""
        if self.graph_count.device.type == "cpu" or not self.is_in_graph:
            self.is_in_graph = bool(self.graph_count > 0)
        return self.is_in_graph

    def forget(self) -> None:
        """Drop the sums of eager forwards."""
        self.reset(in_graph=False)

    def reset(self, *, in_graph: bool) -> None:
        """Forget the sums; those of graphs only if asked."""
        if self.count:
            self.sums, self.count = {}, 0
        self.in_forward = False
        if in_graph:
            self.graph_count.zero_()
            for total in self.graph_sums.values():
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
        self._listener = Listener(model, self.accumulators.values())

    @property
    def enabled(self) -> bool:
        """Whether samples are taken at present."""
        return self._listener.enabled

    @enabled.setter
    def enabled(self, value: bool) -> None:
        self._listener.enabled = value

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
            seen = [item for item in active if item.is_heard_in_graph()]
        if self.process_group is not None:  # ranks must agree on what they reduce
            seen = active
        if not [item for item in seen if item.finish(step, self.process_group)]:
            raise IllegalConfiguration(silence(self.model, (item.tap for item in active)))

    def drop(self, groups: Sequence[UnitGroup], *, skipped: bool) -> None:
        """Forget what was added up since the last step: an unsampled step, or one that mixed precision skipped."""
        for group in groups:
            if group.name in self.accumulators:
                self.accumulators[group.name].reset(in_graph=skipped)

    def stats(self, group: UnitGroup) -> GroupStats:
        """The statistics of a group."""
        if group.name not in self.accumulators:
            raise NoEffect(f"no statistics are collected for {group.name!r}; list them in the intervention's `needs`.")
        return self.accumulators[group.name].stats

    def remove(self) -> None:
        """Remove every hook."""
        self._listener.remove()
