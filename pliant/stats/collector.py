"""Streaming statistics: forward hooks that add up, once per optimizer step, what the units did."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pliant.devices import can_read
from pliant.errors import IllegalConfiguration, NoEffect, NotYetSupported
from pliant.stats.listener import Dated, Kept, Listeners, Passes, silence, that_count
from pliant.stats.reader import TapReader, quantity
from pliant.stats.rows import RowCounter
from pliant.units.graph import UnitGraph
from pliant.units.group import UnitGroup

__all__ = ["MAX_WAITING", "STATISTICS", "Accumulator", "Collector", "GroupStats"]

STATISTICS = (
    *("mean_abs_activation", "mean_activation", "mean_abs_deviation", "active_fraction"),
    *("mean_abs_gradient", "features"),
)
"""What an intervention can ask for in ``needs``."""

_SMALL = 2**13
"""Elements of an activation up to which it may wait until somebody needs it."""

MAX_WAITING = 2**20
"""Elements of all waiting activations together, beyond which they should be looked at."""

_OF_ACTIVATIONS = frozenset({"mean_abs_activation", "mean_activation", "mean_abs_deviation", "active_fraction"})


class GroupStats:
    r"""One group's statistics over the training samples of the last sampled optimizer step.

    Attributes:
        mean_abs_activation: Mean of ``|h|`` over samples, ``[U]`` or ``[S, U]``.
        mean_activation: Mean of ``h``, of the same shape.
        mean_abs_deviation: Mean of :math:`|h - c|` over samples, with :math:`c` the ``center``.
        active_fraction: Fraction of the samples with ``h > 0``, of the same shape.
        mean_abs_gradient: Mean of :math:`|\partial L / \partial h|` over samples, of the same shape; multiplied by
            the loss scale where mixed precision uses one.
        step: The step that they belong to; 0 before the first.
        center: What ``mean_abs_deviation`` is measured about, see :meth:`measure_about`.

    Example:
        >>> from pliant.errors import NoEffect
        >>> from pliant.stats import GroupStats
        >>> try:
        ...     GroupStats().mean_abs_activation
        ... except NoEffect as error:
        ...     print(error)
        statistic 'mean_abs_activation' was not collected; list it in the intervention's `needs`.
    """

    def __init__(self) -> None:
        self.step = 0
        self.center: Tensor | None = None
        self._values: dict[str, Tensor] = {}
        self._history: list[tuple[int, dict[str, Tensor]]] = []

    def measure_about(self, center: Tensor) -> None:
        """Say, from ``prepare``, what ``mean_abs_deviation`` is measured about; the method changes it in place.

        Args:
            center: ``[U]`` or ``[S, U]``.

        Raises:
            IllegalConfiguration: If another method has said so already.
        """
        if self.center is not None:
            raise IllegalConfiguration(
                "two methods measure deviations of the same units, each about its own running mean; attach one of them."
            )
        self.center = center

    def history(self, name: str) -> dict[int, Tensor]:
        """One statistic at the steps that ``observe`` is called for: step to its value, for those that were seen."""
        return {step: values[name] for step, values in self._history if name in values}

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
    def mean_abs_deviation(self) -> Tensor:
        """Mean of ``|h - center|`` over samples."""
        return self._get("mean_abs_deviation")

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


class Accumulator:
    """The running means of one group between two optimizer steps.

    Eager forwards keep means and count on the host. Those that became part of a graph (compiled, or captured on CUDA)
    cannot branch on the step, so they add sums to fixed buffers at every step; a sample is then the mean since the
    last one. Small activations are kept until some method needs them, and then looked at one after the other, which
    costs much less than between the layers. A network that changes one in place in the meantime is noticed: that
    sample is lost, and from then on they are looked at where they are heard.
    Non-finite batches are left out there, since a step that mixed precision skips cannot be told from others
    inside a graph.

    Example:
        >>> import torch, pliant
        >>> from pliant.stats import Collector
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> units = pliant.find_units(model, torch.randn(3, 4))
        >>> needs = {"0": frozenset({"mean_abs_activation"})}
        >>> collector = Collector(model, units, needs, dict(model.named_parameters()))
        >>> type(collector.accumulators["0"]).__name__
        'Accumulator'
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
        self.is_first_input = self.tap.kind == "input" and self.tap.slot == 0
        self.graph_sums = {name: torch.zeros(shape, dtype=dtype, device=like.device) for name in self.needs}
        self.graph_count = torch.zeros((), dtype=dtype, device=like.device)
        self.finished: list[tuple[int, Kept | dict[str, Tensor]]] = []
        self.num_waiting = 0
        self.stats = GroupStats()

    @property
    def num_samples(self) -> int:
        """Samples per unit that were heard since the last step and not forgotten."""
        return sum(self.reader.count(e.act) if isinstance(e, Kept) else e.num_samples for e in self.heard)

    def add(self, seen: Any, *, in_graph: bool) -> None:
        """Take what a hook saw: keep it, or what it comes to."""
        if self.may_wait and not in_graph:
            act = seen[0][0] if self.is_first_input and seen[0] else self.reader.live(seen)
            if type(act) is Tensor and act.numel() <= _SMALL and act.is_cpu:
                inside = torch._C._current_graph_task_id() != -1
                self.heard.append(Kept(act.detach(), act._version, self.passes.count, inside))
                return None
        if self.needs_features or self.needs_gradient:
            self._add_live(self.reader.live(seen), in_graph)
        act = self.reader.value(seen)
        if not in_graph and not act.numel():  # an expert that no token was sent to
            return None
        if in_graph:
            return self._add_in_graph(act)
        if self.may_wait is None:
            self.first = act, act._version
        means, count = self.reader.sample(act, self.needs, self.stats.center)
        inside = torch._C._current_graph_task_id() != -1
        self.heard.append(Dated(means, count, self.passes.count, inside))
        return None

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
        about = None if self.stats.center is None else self.reader.like(self.stats.center, act)
        for name in self.needs:
            mean, count = self.reader.mean_over_samples(quantity(name, act, about))
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
        """Close a sampled step and start anew; false if no rank has seen a sample. :meth:`look` makes it readable."""
        if self.first is not None:
            self.may_wait, self.first = self.first[0]._version == self.first[1], None
        heard = self.heard
        if len(heard) == 1 and type(heard[0]) is Kept and process_group is None:
            self.finished.append((step, heard[0]))
            self.num_waiting += heard[0].act.numel()
            self.heard, self.in_forward = [], False
            return True
        heard = that_count(heard, self.passes.count)
        dated = [self._look_at(entry) if isinstance(entry, Kept) else entry for entry in heard]
        known = [entry for entry in dated if entry is not None]
        if process_group is not None or len(known) == len(heard):  # else it was changed in place, and is lost
            values = self._close(known if len(known) == len(heard) else [], process_group)
            if values is None:
                return False
            self.finished.append((step, values))
        self.reset(in_graph=not heard)
        return True

    def _close(self, heard: list[Dated], process_group: Any) -> dict[str, Tensor] | None:
        """The means of a step; ``None`` if no rank has seen a sample."""
        if not heard and self.needs_gradient:
            raise NotYetSupported(
                f"gradients with respect to the activations of {self.reader.group.name!r} cannot be recorded inside "
                "a compiled model or a CUDA graph. Train this model without torch.compile, or choose a method that "
                "reads activations."
            )
        if process_group is not None:
            return self._reduce(heard, process_group)
        if not heard:
            return self._graph_means(self.graph_count)
        return {**_mixed(heard), **_mixed(self.gradients)} if self.gradients else _mixed(heard)

    def _look_at(self, entry: Kept) -> Dated | None:
        """What was kept comes to; ``None`` if it was changed in place in the meantime: it must not wait again."""
        if entry.act._version != entry.version:
            self.may_wait = False
            return None
        return Dated(*self.reader.sample(entry.act, self.needs, self.stats.center), entry.after, entry.inside)

    def look(self) -> None:
        """Make the means of all finished steps readable."""
        kept = [values for _, values in self.finished if type(values) is Kept]
        looked_at = iter(self._look_at_all(kept))
        history = []
        for step, values in self.finished:
            means = next(looked_at) if isinstance(values, Kept) else values
            if means is not None:
                history.append((step, means))
        self.finished, self.stats._history, self.num_waiting = [], history, 0
        if history:
            self.stats.step, self.stats._values = history[-1]

    def _look_at_all(self, kept: list[Kept]) -> list[dict[str, Tensor] | None]:
        if len(kept) > 1 and self.needs == ("mean_abs_activation",):
            unchanged = all(entry.act._version == entry.version for entry in kept)
            rows = self.reader.rows([entry.act for entry in kept]) if unchanged else None
            if rows is not None:  # single samples: nothing is averaged, so that all of them cost one operation
                return [{"mean_abs_activation": row} for row in rows.abs().unbind(0)]
        dated = [self._look_at(entry) for entry in kept]
        return [None if entry is None else entry.value for entry in dated]

    def _reduce(self, heard: list[Dated], process_group: Any) -> dict[str, Tensor] | None:
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
            return None
        for total in sums.values():
            torch.distributed.all_reduce(total, group=process_group)
        return {name: total / counts[name] for name, total in sums.items()}

    def _graph_means(self, count: Tensor) -> dict[str, Tensor]:
        means = {name: total / count for name, total in self.graph_sums.items()}
        if can_read(count):
            return means
        # on an accelerator nobody has looked whether there is a sample
        old = self.finished[-1][1] if self.finished else self.stats._values
        assert isinstance(old, dict)
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

    Example:
        >>> import torch, pliant
        >>> from pliant.stats import Collector
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> units = pliant.find_units(model, torch.randn(3, 4))
        >>> needs = {"0": frozenset({"mean_abs_activation"})}
        >>> collector = Collector(model, units, needs, dict(model.named_parameters()))
        >>> collector.listener.listen()
        >>> _ = model(torch.randn(16, 4))
        >>> collector.listener.rest()
        >>> sorted(collector.accumulators)
        ['0']
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
        self._row_counters: list[RowCounter] = []
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
        """Close a sampled step for some groups; :meth:`look` makes the means readable.

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

    def look(self, active: Sequence[Accumulator]) -> None:
        """Make the means of the steps that were finished since the last call readable."""
        for item in active:
            item.look()

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

    def count_rows(self, module: str, into: MutableMapping[str, Tensor], key: str) -> None:
        """From now on, count which rows of an embedding training looks up, see ``pliant.stats.rows``.

        Args:
            module: The embedding's name.
            into: Where the counts are; ``into[key]`` is int64 ``[rows]``.
            key: Under which name.
        """
        self._row_counters.append(RowCounter(self.model.get_submodule(module), into, key))

    def total_rows(self, counts: Tensor) -> Tensor:
        """Counts of one process, summed over all of them where there are several."""
        if self.process_group is None:
            return counts
        total = counts.clone()
        torch.distributed.all_reduce(total, group=self.process_group)
        return total

    def remove(self) -> None:
        """Remove every hook."""
        self.listener.remove()
        for counter in self._row_counters:
            counter.remove()
        self._row_counters.clear()
