"""Streaming statistics: forward hooks that add up, once per optimizer step, what the units did."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pliant.devices import can_read
from pliant.errors import IllegalConfiguration, NoEffect, NotYetSupported
from pliant.stats.listener import Dated, Kept, Listeners, Passes, silence, that_count
from pliant.stats.reader import TapReader
from pliant.units.graph import UnitGraph
from pliant.units.group import UnitGroup

__all__ = ["STATISTICS", "Accumulator", "Collector", "GroupStats"]

STATISTICS = ("mean_abs_activation", "mean_activation", "mean_abs_gradient", "features")
"""What an intervention can ask for in ``needs``."""

_SMALL = 2**16
"""Elements of an activation up to which it may be kept until the end of the step."""

_OF_ACTIVATIONS = frozenset({"mean_abs_activation", "mean_activation"})


class GroupStats:
    r"""One group's statistics over the training samples of the last sampled optimizer step.

    Attributes:
        mean_abs_activation: Mean of ``|h|`` over samples, ``[U]`` or ``[S, U]``.
        mean_activation: Mean of ``h``, of the same shape.
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
    def mean_abs_gradient(self) -> Tensor:
        """Mean of the absolute gradient of the loss with respect to ``h`` over samples."""
        if self.step and "mean_abs_gradient" not in self._values:
            raise NoEffect(
                "no gradient reached the units in the last step: either the loss does not depend on them, or "
                "`mean_abs_gradient` is not in the intervention's `needs`."
            )
        return self._get("mean_abs_gradient")


class Accumulator:
    """The running means of one group between two optimizer steps.

    Eager forwards keep means and count on the host. Those that became part of a graph (compiled, or captured on CUDA)
    cannot branch on the step, so they add sums to fixed buffers at every step; a sample is then the mean since the
    last one. Small activations are kept until the step is over, and all looked at together, which costs less than
    between the layers; a network that changes one in place in the meantime is noticed, and then it is looked at there.
    Non-finite batches are left out there, since a step that mixed precision skips cannot be told from others
    inside a graph.
    """

    def __init__(self, reader: TapReader, needs: frozenset[str], shape: tuple[int, ...], like: Tensor) -> None:
        dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
        self.reader, self.tap, self.shape = reader, reader.tap, shape
        self.needs = tuple(sorted(needs & _OF_ACTIVATIONS))
        self.needs_gradient, self.needs_features = "mean_abs_gradient" in needs, "features" in needs
        self.keeps_graph = self.needs_features
        self.passes = Passes()
        self.heard: list[Dated | Kept] = []
        self.gradients: list[Dated] = []
        self.features: list[Tensor] = []
        self.is_in_graph = self.in_forward = False
        with_graph = self.needs_features or self.needs_gradient
        self.may_wait: bool | None = False if with_graph or reader.replay is not None else None
        self.first: tuple[Tensor, int] | None = None
        self.graph_sums = {name: torch.zeros(shape, dtype=dtype, device=like.device) for name in self.needs}
        self.graph_count = torch.zeros((), dtype=dtype, device=like.device)
        self.stats = GroupStats()

    @property
    def num_samples(self) -> int:
        """Samples per unit that were heard since the last step and not forgotten."""
        return sum(self.reader.count(e.act) if isinstance(e, Kept) else e.num_samples for e in self.heard)

    def add(self, seen: Any, *, in_graph: bool) -> None:
        """Take what a hook saw: keep it, or what it comes to."""
        if self.may_wait and not in_graph:
            act = self.reader.live(seen)
            if act.numel() <= _SMALL and act.is_cpu and type(act) is Tensor:
                inside = torch._C._current_graph_task_id() != -1
                self.heard.append(Kept(act.detach(), act._version, self.passes.count, inside))
                return None
        if self.needs_features or self.needs_gradient:
            self._add_live(self.reader.live(seen), in_graph)
        act = self.reader.value(seen)
        if in_graph:
            return self._add_in_graph(act)
        if self.may_wait is None:
            self.first = act, act._version
        means, count = self.reader.sample(act, self.needs)
        inside = torch._C._current_graph_task_id() != -1
        self.heard.append(Dated(means, count, self.passes.count, inside))
        return None

    def _look(self) -> bool:
        """Look at what was kept; false if it was changed in place in the meantime, so that it must not wait again."""
        for index, entry in enumerate(self.heard):
            if isinstance(entry, Kept):
                if entry.act._version != entry.version:
                    self.may_wait = False
                    return False
                self.heard[index] = Dated(*self.reader.sample(entry.act, self.needs), entry.after, entry.inside)
        if self.first is not None:
            self.may_wait, self.first = self.first[0]._version == self.first[1], None
        return True

    def _add_live(self, act: Tensor, in_graph: bool) -> None:
        if self.needs_features:
            self.features.append(act)
        if self.needs_gradient and act.requires_grad and not in_graph:
            act.register_hook(self._add_gradient)  # type: ignore[no-untyped-call]

    def _add_gradient(self, gradient: Tensor) -> None:
        mean, count = self.reader.mean_over_samples(gradient.detach().abs())
        self.gradients.append(Dated({"mean_abs_gradient": mean}, count, self.passes.count, inside=True))

    def _add_in_graph(self, act: Tensor) -> None:
        finite: Tensor | None = None
        for name in self.needs:
            mean, count = self.reader.mean_over_samples(act.abs() if name == "mean_abs_activation" else act)
            finite = mean.isfinite().all() if finite is None else finite
            self.graph_sums[name].add_(torch.where(finite, mean * count, 0))
        if finite is not None:
            self.graph_count.add_(finite * count)

    def let_go(self) -> None:
        """Drop the features: a graph that has been through its backward pass must not be kept alive."""
        self.features.clear()

    def forget(self) -> None:
        """Drop what has been through a backward pass, and its gradients."""
        self.heard = [entry for entry in self.heard if entry.after >= self.passes.count]
        self.gradients = [entry for entry in self.gradients if entry.after >= self.passes.count]

    def finish(self, step: int, process_group: Any) -> bool:
        """Make the means readable and start anew; false if no rank has seen a sample."""
        if len(self.heard) > 1:
            self.heard = that_count(self.heard, self.passes.count)
        in_graph = not self.heard
        if in_graph and self.needs_gradient:
            raise NotYetSupported(
                f"gradients with respect to the activations of {self.reader.group.name!r} cannot be recorded inside "
                "a compiled model or a CUDA graph. Train this model without torch.compile, or choose a method that "
                "reads activations."
            )
        unchanged = self._look()
        if process_group is not None:
            if not self._reduce(_looked_at(self.heard) if unchanged else [], process_group):
                return False
        elif in_graph:
            self.stats._values = self._graph_means(self.graph_count)
        elif unchanged:
            self.stats._values = _mixed(_looked_at(self.heard))
            if self.gradients:
                self.stats._values = {**self.stats._values, **_mixed(self.gradients)}
        if unchanged:
            self.stats.step = step
        self.reset(in_graph=in_graph)
        return True

    def _reduce(self, heard: list[Dated], process_group: Any) -> bool:
        """Average over ranks, each weighted by its samples."""
        like = self.graph_count
        num_samples = sum(entry.num_samples for entry in heard)
        means = _mixed(heard) if heard else {}
        count = torch.full_like(like, num_samples) if heard else like.clone()
        sums = {name: means[name] * num_samples for name in self.needs} if heard else dict(self.graph_sums)
        counts = dict.fromkeys(sums, count)
        if self.needs_gradient:
            num_gradients = sum(entry.num_samples for entry in self.gradients)
            mean = _mixed(self.gradients)["mean_abs_gradient"] if self.gradients else like.new_zeros(self.shape)
            counts["mean_abs_gradient"] = torch.full_like(like, num_gradients)
            sums["mean_abs_gradient"] = mean * num_gradients
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

    def reset(self, *, in_graph: bool) -> None:
        """Forget everything that eager forwards left; the sums of graphs only if asked."""
        self.heard, self.in_forward = [], False
        if self.gradients:
            self.gradients = []
        if self.features:
            self.features = []
        if in_graph:
            self.graph_count.zero_()
            for total in self.graph_sums.values():
                total.zero_()


def _looked_at(heard: list[Dated | Kept]) -> list[Dated]:
    return [entry for entry in heard if isinstance(entry, Dated)]


def _mixed(heard: list[Dated]) -> dict[str, Tensor]:
    """The means over everything that was heard: micro-batches, or several uses of a module."""
    means: dict[str, Tensor] = heard[0].value
    count = heard[0].num_samples
    for entry in heard[1:]:
        count += entry.num_samples
        means = {name: torch.lerp(mean, entry.value[name], entry.num_samples / count) for name, mean in means.items()}
    return means


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

    Attributes:
        accumulators: What is kept, by group name.
        listener: Its hooks: ``listener.listen()`` before a sampled step, ``listener.rest()`` after it.
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
        self.accumulators: dict[str, Accumulator] = {}
        for name, wanted in needs.items():
            group = units[name]
            reader = TapReader(group, units.replays.get(name), tensors, members=num_members is not None)
            shape = (group.size,) if num_members is None else (num_members, group.size)
            self.accumulators[name] = Accumulator(reader, wanted, shape, tensors[group.slices[0].name])
        self.listener = Listeners(model, self.accumulators.values())

    @property
    def unheard(self) -> tuple[str, ...]:
        """Groups of which no sample was finished so far."""
        return tuple(name for name, item in self.accumulators.items() if not item.stats.step)

    def of(self, groups: Sequence[UnitGroup]) -> list[Accumulator]:
        """What is kept of some groups."""
        return [self.accumulators[group.name] for group in groups if group.name in self.accumulators]

    def finish(self, step: int, active: Sequence[Accumulator]) -> None:
        """Close a sampled step for some groups: means become readable, sums start anew.

        Raises:
            IllegalConfiguration: If not a single group saw a training sample since the last step.
        """
        if not active:
            return
        seen = [item for item in active if item.heard]
        if not seen:
            seen = [item for item in active if item.is_heard_in_graph()]
        if self.process_group is not None:  # ranks must agree on what they reduce
            seen = list(active)
        if not [item for item in seen if item.finish(step, self.process_group)]:
            raise IllegalConfiguration(silence(self.model, (item.tap for item in active)))

    def drop(self, active: Sequence[Accumulator], *, skipped: bool) -> None:
        """Forget what was added up since the last step: an unsampled step, or one that mixed precision skipped."""
        for item in active:
            item.reset(in_graph=skipped)

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
        self.listener.remove()
