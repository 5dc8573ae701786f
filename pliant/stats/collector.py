"""Streaming statistics: forward hooks that add up, once per optimizer step, what the units did."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pliant.devices import can_read
from pliant.errors import IllegalConfiguration, NoEffect, NotYetSupported
from pliant.stats.listener import Listeners, silence
from pliant.stats.reader import TapReader
from pliant.units.graph import UnitGraph
from pliant.units.group import UnitGroup

__all__ = ["STATISTICS", "Collector", "GroupStats"]

STATISTICS = ("mean_abs_activation", "mean_activation", "active_fraction", "mean_abs_gradient", "features")
"""What an intervention can ask for in ``needs``."""

_OF_ACTIVATIONS = frozenset({"mean_abs_activation", "mean_activation", "active_fraction"})


def _quantity(name: str, act: Tensor) -> Tensor:
    """What a statistic of activations is the mean of."""
    if name == "mean_abs_activation":
        return act.abs()
    if name == "active_fraction":  # 1 where positive, and NaN stays NaN; several times as fast as a comparison
        tiny = torch.finfo(act.dtype).tiny
        return act.clamp(0, tiny).mul_(1 / tiny)
    return act


class GroupStats:
    r"""One group's statistics over the training samples of the last sampled optimizer step.

    Attributes:
        mean_abs_activation: Mean of ``|h|`` over samples, ``[U]`` or ``[S, U]``.
        mean_activation: Mean of ``h``, of the same shape.
        active_fraction: Fraction of the samples with ``h > 0``, of the same shape.
        mean_abs_gradient: Mean of :math:`|\partial L / \partial h|` over samples, of the same shape; multiplied by
            the loss scale where mixed precision uses one.
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

    @property
    def active_fraction(self) -> Tensor:
        """Fraction of the samples with ``h > 0``."""
        return self._get("active_fraction")

    @property
    def mean_abs_gradient(self) -> Tensor:
        """Mean of the absolute gradient of the loss with respect to ``h`` over samples."""
        if self.step and "mean_abs_gradient" not in self._values:
            raise NoEffect(
                "no gradient reached the units in the last step: either the loss does not depend on them, or "
                "`mean_abs_gradient` is not in the intervention's `needs`."
            )
        return self._get("mean_abs_gradient")


class _Accumulator:
    """The running means of one group between two optimizer steps.

    Eager forwards keep means and count on the host. Those that became part of a graph (compiled, or captured on CUDA)
    cannot branch on the step, so they add sums to fixed buffers at every step; a sample is then the mean since the
    last one. Non-finite batches are left out there, since a step that mixed precision skips cannot be told from others
    inside a graph.
    """

    def __init__(self, reader: TapReader, needs: frozenset[str], shape: tuple[int, ...], like: Tensor) -> None:
        dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
        self.reader, self.tap, self.shape = reader, reader.tap, shape
        self.needs = tuple(sorted(needs & _OF_ACTIVATIONS))
        self.needs_gradient, self.needs_features = "mean_abs_gradient" in needs, "features" in needs
        self.means: dict[str, Tensor] = {}
        self.count = self.gradient_count = 0
        self.features: list[Tensor] = []
        self.is_in_graph = False
        self.graph_sums = {name: torch.zeros(shape, dtype=dtype, device=like.device) for name in self.needs}
        self.graph_count = torch.zeros((), dtype=dtype, device=like.device)
        self.pending: list[tuple[dict[str, Tensor], int, bool]] = []
        self.in_forward = False
        self.stats = GroupStats()

    def add(self, seen: Any, *, in_graph: bool) -> None:
        if self.needs_features or self.needs_gradient:
            self._add_live(self.reader.live(seen), in_graph)
        act = self.reader.value(seen)
        if in_graph:
            return self._add_in_graph(act)
        count, means = 0, {}
        for name in self.needs:
            means[name], count = self.reader.mean_over_samples(_quantity(name, act))
            if name == "mean_activation" and count == self.reader.width:  # of one sample: the activation itself
                means[name] = means[name].clone()
        # a checkpointed forward may be run again inside its own backward pass, after that was noticed
        inside = torch._C._current_graph_task_id() != -1
        self.pending.append((means, count or self.reader.count(act), inside))
        return None

    @property
    def num_samples(self) -> int:
        """Samples per unit that were heard since the last step and not forgotten."""
        return self.count + sum(count for _, count, _ in self.pending)

    def settle(self, *, cleared: bool) -> None:
        """What was heard has been through a backward pass; what was before may have lost its gradients."""
        if cleared:
            self.forget()
        for means, count, _ in self.pending:
            for name, mean in means.items():
                self._mix(name, mean, count, self.count)
            self.count += count
        self.pending, self.features = [], []

    def _mix(self, name: str, mean: Tensor, count: int, before: int) -> None:
        if before:  # another micro-batch, or another use of the module
            mean = torch.lerp(self.means[name], mean, count / (before + count))
        self.means[name] = mean

    def _add_live(self, act: Tensor, in_graph: bool) -> None:
        if self.needs_features:
            self.features.append(act)
        if self.needs_gradient and act.requires_grad and not in_graph:
            act.register_hook(self._add_gradient)  # type: ignore[no-untyped-call]

    def _add_gradient(self, gradient: Tensor) -> None:
        mean, count = self.reader.mean_over_samples(gradient.detach().abs())
        self._mix("mean_abs_gradient", mean, count, self.gradient_count)
        self.gradient_count += count

    def _add_in_graph(self, act: Tensor) -> None:
        finite: Tensor | None = None
        for name in self.needs:
            mean, count = self.reader.mean_over_samples(_quantity(name, act))
            finite = mean.isfinite().all() if finite is None else finite
            self.graph_sums[name].add_(torch.where(finite, mean * count, 0))
        if finite is not None:
            self.graph_count.add_(finite * count)

    def finish(self, step: int, process_group: Any) -> bool:
        """Make the means readable and start anew; false if no rank has seen a sample."""
        # where no backward pass was noticed, all that was heard counts; else what was heard after it does not
        self.pending = [entry for entry in self.pending if entry[2] or not self.count]
        self.settle(cleared=False)
        in_graph = not self.count
        if in_graph and self.needs_gradient:
            raise NotYetSupported(
                f"gradients with respect to the activations of {self.reader.group.name!r} cannot be recorded inside "
                "a compiled model or a CUDA graph. Train this model without torch.compile, or choose a method that "
                "reads activations."
            )
        if process_group is not None:
            if not self._reduce(process_group):
                return False
        elif in_graph:
            self.stats._values = self._graph_means(self.graph_count)
        else:
            self.stats._values = self.means
        self.stats.step = step
        self.reset(in_graph=in_graph)
        return True

    def _reduce(self, process_group: Any) -> bool:
        """Average over ranks, each weighted by its samples."""
        like = self.graph_count
        count = torch.full_like(like, self.count) if self.count else like.clone()
        sums = {name: self.means[name] * self.count for name in self.needs} if self.count else dict(self.graph_sums)
        counts = dict.fromkeys(sums, count)
        if self.needs_gradient:
            zeros = torch.zeros(self.shape, dtype=like.dtype, device=like.device)
            counts["mean_abs_gradient"] = torch.full_like(like, self.gradient_count)
            sums["mean_abs_gradient"] = self.means.get("mean_abs_gradient", zeros) * self.gradient_count
        for item in {id(item): item for item in counts.values()}.values():
            torch.distributed.all_reduce(item, group=process_group)
        if can_read(count) and not count:
            return False
        for total in sums.values():
            torch.distributed.all_reduce(total, group=process_group)
        self.stats._values = {name: total / counts[name] for name, total in sums.items()}
        return True

    def _graph_means(self, count: Tensor) -> dict[str, Tensor]:
        means = {name: total / count for name, total in self.graph_sums.items()}
        if can_read(count):
            return means
        old = self.stats._values  # on an accelerator nobody has looked whether there is a sample
        return {name: torch.where(count > 0, mean, old.get(name, 0.0)) for name, mean in means.items()}

    def is_heard_in_graph(self) -> bool:
        """Whether a graph added a sample; an accelerator is asked only until the first one."""
        if can_read(self.graph_count) or not self.is_in_graph:
            self.is_in_graph = bool(self.graph_count > 0)
        return self.is_in_graph

    def forget(self) -> None:
        """Drop the means of what has been through a backward pass."""
        self.means, self.count, self.gradient_count = {}, 0, 0

    def reset(self, *, in_graph: bool) -> None:
        """Forget everything that eager forwards left; the sums of graphs only if asked."""
        if self.count or self.pending:
            self.forget()
            self.pending = []
        if self.features:
            self.features = []
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
        self._listener = Listeners(model, self.accumulators.values())

    @property
    def enabled(self) -> bool:
        """Whether samples are taken at present."""
        return self._listener.enabled

    @enabled.setter
    def enabled(self, value: bool) -> None:
        self._listener.enabled = value

    @property
    def unheard(self) -> tuple[str, ...]:
        """Groups of which no sample was finished so far."""
        return tuple(name for name, item in self.accumulators.items() if not item.stats.step)

    def finish(self, step: int, groups: Sequence[UnitGroup]) -> None:
        """Close a sampled step for some groups: means become readable, sums start anew.

        Raises:
            IllegalConfiguration: If not a single group saw a training sample since the last step.
        """
        active = [self.accumulators[group.name] for group in groups if group.name in self.accumulators]
        if not active:
            return
        seen = [item for item in active if item.count or item.pending]
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

    def features(self, group: UnitGroup) -> list[Tensor]:
        """The group's activations with their graph, ``[N, U]``, one per training forward since the last step.

        Raises:
            NoEffect: If nobody asked for them.
        """
        item = self.accumulators.get(group.name)
        if item is None or not item.needs_features:
            raise NoEffect(f"no features are kept for {group.name!r}; list 'features' in the intervention's `needs`.")
        return [item.reader.matrix(act) for act in item.features]

    def remove(self) -> None:
        """Remove every hook."""
        self._listener.remove()
