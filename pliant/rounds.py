"""What happens after the steps of an optimizer: samples are closed, interventions observe and act."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from pliant.devices import can_read
from pliant.edit import Editor
from pliant.errors import NotYetSupported
from pliant.interventions.base import Context, Intervention
from pliant.interventions.context import Progress
from pliant.schedule import MAX_SAMPLES, Schedule
from pliant.stats import MAX_WAITING, Accumulator, Collector

__all__ = ["ByHand", "Round", "Rounds", "live_of"]

_CHECK_EVERY = 256


def live_of(found_inf: Tensor) -> Tensor | None:
    """1 on the device where a fused optimizer takes its step, 0 where it skips; ``None`` where the host knows."""
    return None if can_read(found_inf) else 1 - found_inf.float().reshape(())


class Round:
    """The interventions on one optimizer.

    Args:
        rounds: Those of all optimizers, which share the hooks on the model.
        methods: The interventions, in order.
        contexts: The context of each, for this optimizer.
        heard: The statistics of the groups that follow this optimizer's clock.

    Attributes:
        schedule: The optimizer's clock and plan.
    """

    def __init__(
        self,
        rounds: Rounds,
        methods: Sequence[Intervention],
        contexts: Sequence[Context],
        schedule: Schedule,
        heard: Sequence[Accumulator],
    ) -> None:
        self.schedule = schedule
        self._rounds, self._contexts, self._heard = rounds, contexts, heard
        self._pairs = list(zip(methods, contexts, strict=True))
        self._collector, self._listener = rounds.collector, rounds.collector.listener
        self._num_acts = 0

    def after_step(self, found_inf: Tensor | None) -> int:
        """One more step of the optimizer; returns how many real ones there have been.

        Args:
            found_inf: What mixed precision tells a fused optimizer, which skips the step by itself where it is 1: its
                hook fires although nothing changed.
        """
        schedule, live = self.schedule, None
        if found_inf is not None:
            if can_read(found_inf):
                if bool(found_inf):
                    self._collector.drop(self._heard, skipped=True)
                    return schedule.clock.step
            else:
                live = live_of(found_inf)
        step = schedule.clock.advance(live)
        if step >= schedule.wake:
            self._wake(step, live)
        elif self._listener.enabled and not schedule.listens:  # it listens for another optimizer
            self._collector.drop(self._heard, skipped=False)
        return step

    def _wake(self, step: int, live: Tensor | None) -> None:
        """Close a sampled step, begin to listen for the next, or run the interventions that are due."""
        schedule = self.schedule
        if step + 1 == schedule.sample_at and not schedule.listens and step < schedule.act_at:
            if self._listener.enabled:  # for another optimizer
                self._collector.drop(self._heard, skipped=False)
            schedule.listens, schedule.wake = True, min(schedule.sample_at, schedule.act_at)
            return self._listener.listen()
        if step == schedule.sample_at:
            self._collector.finish(step, self._heard)
            schedule.samples.append((step, schedule.clock.now(), live))
        elif self._listener.enabled:
            self._collector.drop(self._heard, skipped=False)
        if step >= schedule.act_at:
            self._act(live)
            schedule.plan(self._contexts)
        else:
            if len(schedule.samples) >= MAX_SAMPLES or self._are_many_waiting():
                self.observe()
            schedule.plan_sample()
        return self._rounds.listen()

    def _are_many_waiting(self) -> bool:
        return sum([item.num_waiting for item in self._heard]) > MAX_WAITING

    def observe(self) -> None:
        """Let the interventions take in what was sampled and has waited."""
        schedule = self.schedule
        if not schedule.samples:
            return
        self._collector.look(self._heard)
        for m in schedule.observers:
            method, ctx = self._pairs[m]
            ctx.samples = schedule.samples_of(m)
            if ctx.samples:
                self._rounds.enter(method, ctx)
                method.observe(ctx)
        schedule.samples = []

    def _act(self, live: Tensor | None) -> None:
        """Run the interventions that are due."""
        self._num_acts += 1
        if self._num_acts.bit_count() == 1 or self._num_acts % _CHECK_EVERY == 0:  # it looks at every tensor
            self._rounds.check()
        self.observe()
        editor, schedule = self._rounds.editor, self.schedule
        editor.live = live
        for m in schedule.due():
            method, ctx = self._pairs[m]
            ctx.live, ctx.elapsed = live, schedule.since(m)
            if self._rounds.progress.is_quiet and not method.acts_in_quiet:
                continue
            self._rounds.enter(method, ctx)
            method.after_step(ctx)
        editor.live = None


class ByHand:
    """Tells the interventions on one optimizer of training steps that run without the model and its hooks.

    For loops that compute what the model and ``optimizer.step()`` would, in another way: in every step for which
    :attr:`listens` is true the inputs of the modules at which activations are read, then :meth:`step`.

    Args:
        step: What the hook on the optimizer does.
        schedule: The optimizer's clock and plan.
        heard: The statistics of its groups.

    Raises:
        NotYetSupported: Where activations are read elsewhere than at the input of a module.
    """

    def __init__(self, step: Callable[[], None], schedule: Schedule, heard: Sequence[Accumulator]) -> None:
        self.step = step
        self._schedule = schedule
        self._sinks: dict[str, list[Accumulator]] = {}
        for item in heard:
            if item.tap.kind != "input" or item.tap.slot != 0 or item.reader.replay is not None:
                raise NotYetSupported(
                    f"the activations of {item.reader.group.name!r} are not the input of a module, so a step that does "
                    "not call the model cannot tell them"
                )
            if item.needs_gradient or item.needs_features:
                raise NotYetSupported(
                    f"the activations of {item.reader.group.name!r} are wanted with their graph or gradients, which a "
                    "step that does not call the model does not have"
                )
            self._sinks.setdefault(item.tap.module, []).append(item)

    @property
    def modules(self) -> tuple[str, ...]:
        """The modules whose inputs are wanted."""
        return tuple(self._sinks)

    @property
    def listens(self) -> bool:
        """Whether the activations of the coming step are wanted."""
        return self._schedule.listens and bool(self._sinks)

    @property
    def num_quiet_steps(self) -> int:
        """Steps that can be taken, the coming one included, before anybody looks at the weights: at least one."""
        return max(1, self._schedule.act_at - self._schedule.clock.step)

    def hear(self, module: str, inputs: Tensor) -> None:
        """What a module was given in this step; the tensor must not change afterwards."""
        for sink in self._sinks.get(module, ()):
            sink.in_forward = True
            sink.add(((inputs,), {}), in_graph=False)


class Rounds:
    """The interventions on all optimizers.

    Args:
        methods: The interventions, in order.
        rows: For each optimizer, the context of each intervention.
        schedules: The plan of each optimizer.
        heard: For each optimizer, the statistics of its groups.
        collector: The statistics of all.
        editor: The writer.
        enter: Called before an intervention does anything.
        check: Called now and then: do the tensors still belong to the model?
        progress: Says whether a quiet period is on.
    """

    def __init__(
        self,
        methods: Sequence[Intervention],
        rows: Sequence[Sequence[Context]],
        schedules: Sequence[Schedule],
        heard: Sequence[Sequence[Accumulator]],
        *,
        collector: Collector,
        editor: Editor,
        enter: Callable[[Intervention, Context], None],
        check: Callable[[], None],
        progress: Progress,
    ) -> None:
        self.collector, self.editor, self.enter, self.check = collector, editor, enter, check
        self.progress = progress
        self._schedules, self._rows, self._heard = schedules, rows, heard
        self._each = [Round(self, methods, *own) for own in zip(rows, schedules, heard, strict=True)]
        self.plan()

    def __getitem__(self, index: int) -> Round:
        return self._each[index]

    def heard(self, index: int) -> Sequence[Accumulator]:
        """The statistics of one optimizer's groups."""
        return self._heard[index]

    def plan(self) -> None:
        """At the beginning, or after a state was loaded: what is due when."""
        for schedule, row in zip(self._schedules, self._rows, strict=True):
            schedule.plan(row)
        self.listen()

    def listen(self) -> None:
        """Let the hooks on the model hear the coming step, if some optimizer's groups are sampled in it."""
        for schedule in self._schedules:
            if schedule.listens:
                return self.collector.listener.listen()
        return self.collector.listener.rest()

    def observe(self) -> None:
        """Let the interventions on every optimizer take in what was sampled and has waited."""
        for item in self._each:
            item.observe()
