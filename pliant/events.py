"""What was edited, when and why: a bounded log that never slows the training step down."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from pliant.devices import can_read

__all__ = ["Entry", "Event", "EventLog"]

_SHOWN = 10


def _short(items: list[Any]) -> str:
    """The first ten of a list, and how many more there are."""
    more = f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return ", ".join(map(str, items[:_SHOWN])) + more


@dataclass(frozen=True)
class Event:
    """One edit of one unit group, or a run of edits of whole tensors.

    Attributes:
        step: Optimizer steps done when it happened (a run of edits: when it began).
        action: ``"reset"``, ``"partial_reset"``, ``"scale"`` or ``"perturb"`` for units; ``"shrink"``, ``"clamp"``,
            ``"add"``, ``"add_noise"``, ``"add_to_gradient"``, ``"assign"``, ``"reset_weights"``, ``"restart"`` or
            ``"surgery"`` for tensors; ``"undone"`` for an edit of either that was taken back, because it changed the
            outputs by more than ``attach(..., max_change=...)`` allows (``reason`` says which edit).
        intervention: Name of the method that asked for it.
        reason: Why, in the method's words.
        group: The unit group; empty for whole tensors.
        units: Indices of the units, in order.
        members: For a stack of members, the member of each unit; else empty.
        tensors: For edits of whole tensors, their names.
        last_step: For a run of edits at successive steps, when it was last continued; else ``step``.
        count: The number of steps at which the run edited; 1 for units.
        output_change: Largest relative change of the model's outputs on the batch given to
            ``attach(..., measure_change=batch)`` by one edit (of a run: by any of them); ``None`` if that was not
            asked for.
    """

    step: int
    action: str
    intervention: str
    reason: str = ""
    group: str = ""
    units: tuple[int, ...] = ()
    members: tuple[int, ...] = ()
    tensors: tuple[str, ...] = ()
    last_step: int = 0
    count: int = 1
    output_change: float | None = None

    def __str__(self) -> str:
        when = f"step {self.step}" if self.last_step in (0, self.step) else f"steps {self.step} to {self.last_step}"
        units = list(zip(self.members, self.units, strict=True)) if self.members else list(self.units)
        what = f"{self.group}, units {_short(units)}" if self.group else _short(list(self.tensors))
        why = f": {self.reason}" if self.reason else ""
        change = "" if self.output_change is None else f" (output change {self.output_change:.1e})"
        return f"{when}: {self.intervention} {self.action} of {what}{why}{change}"

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings and lists, as JSON has them."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}


@dataclass
class _UnitEdit:
    """An edit of units as it was made: what is on a device stays there until somebody reads it."""

    step: int
    group: str
    action: str
    units: Tensor
    members: Tensor | None
    active: Tensor | None
    intervention: str
    reason: str
    output_change: Tensor | None
    number: int

    @property
    def can_be_read(self) -> bool:
        """Whether reading it does not wait for a device."""
        return can_read(self.units) and (self.output_change is None or can_read(self.output_change))

    def event(self) -> Event | None:
        """The event; ``None`` if no unit was hit after all."""
        keep = slice(None) if self.active is None else self.active
        units = tuple(self.units[keep].tolist())
        if not units:
            return None
        members = () if self.members is None else tuple(self.members[keep].tolist())
        change = None if self.output_change is None else float(self.output_change)
        return Event(
            step=self.step,
            action=self.action,
            intervention=self.intervention,
            reason=self.reason,
            group=self.group,
            units=units,
            members=members,
            last_step=self.step,
            output_change=change,
        )


@dataclass
class _Run:
    """Edits of whole tensors by one method, continued at every step or interrupted."""

    step: int
    action: str
    intervention: str
    reason: str
    tensors: dict[str, None]
    last_step: int
    number: int
    count: int = 1
    output_change: Tensor | None = None

    @property
    def can_be_read(self) -> bool:
        """Whether reading it does not wait for a device."""
        return self.output_change is None or can_read(self.output_change)

    def event(self) -> Event:
        change = None if self.output_change is None else float(self.output_change)
        return Event(
            step=self.step,
            action=self.action,
            intervention=self.intervention,
            reason=self.reason,
            tensors=tuple(self.tensors),
            last_step=self.last_step,
            count=self.count,
            output_change=change,
        )


class EventLog:
    """The latest edits, and how many units of each group were reset since the beginning.

    Iterating gives :class:`Event` objects in the order of the edits; ``print`` shows the totals and the latest ten. On
    an accelerator the entries stay on the device until they are read. Edits of whole tensors by one method are one
    event as long as they go on step after step (weight decay would flood the log otherwise), and the two kinds do not
    push each other out.

    Args:
        maxlen: Number of events that are kept, of units and of whole tensors each.
        dry_run: Whether the edits are only noted; ``str`` then says so.

    Attributes:
        num_edits: Edits so far, of all kinds: of a run of edits of whole tensors, every one.
        num_undone: How many of them were taken back, since ``attach``.
        sizes: Units of each group, for the steps of their latest resets.
    """

    def __init__(self, maxlen: int = 10_000, *, dry_run: bool = False) -> None:
        self.dry_run = dry_run
        self._units: deque[_UnitEdit] = deque(maxlen=maxlen)
        self._runs: deque[_Run] = deque(maxlen=maxlen)
        self._open: dict[tuple[int, str, str], _Run] = {}
        self._totals: dict[str, Tensor] = {}
        self._latest: dict[str, Tensor] = {}
        self._subscribers: list[_Subscriber] = []
        self._sinks: list[Callable[[Entry], object]] = []
        self.sizes: dict[str, int] = {}
        self.num_edits = 0  # two methods may act in one step: the order is that of the edits
        self.num_undone = 0
        self.step = 0
        self.clock = 0
        self.intervention = ""
        self.num_members: int | None = None

    # ---- written by the editor ----
    def add(
        self,
        group: str,
        action: str,
        units: Tensor,
        members: Tensor | None,
        active: Tensor | None,
        reason: str,
        output_change: Tensor | None = None,
    ) -> None:
        """Note an edit of units."""
        self.num_edits += 1
        edit = _UnitEdit(
            *(self.step, group, action, units, members, active, self.intervention, reason, output_change),
            number=self.num_edits,
        )
        self._units.append(edit)
        self.num_undone += action == "undone"
        if action == "reset":
            self._count(group, units, members, active)
        self._pass_on(edit)
        if self._subscribers and (event := edit.event()) is not None:
            self._tell(event)

    def _count(self, group: str, units: Tensor, members: Tensor | None, active: Tensor | None) -> None:
        """How many units were reset so far, and when each was the last time."""
        size = self.num_members or 1
        total = self._totals.get(group)
        if total is None:
            total = self._totals[group] = torch.zeros(size, dtype=torch.long, device=units.device)
        weight = torch.ones_like(units) if active is None else active.long()
        total.index_add_(0, torch.zeros_like(units) if members is None else members, weight)
        if group not in self.sizes:
            return
        latest = self._latest.get(group)
        if latest is None:
            latest = self._latest[group] = torch.full((size, self.sizes[group]), -1, device=units.device)
        index = (torch.zeros_like(units) if members is None else members, units)
        now = torch.full_like(units, self.step)
        latest.index_put_(index, now if active is None else torch.where(active, now, latest[index]))

    def _pass_on(self, entry: Entry) -> None:
        for sink in tuple(self._sinks):
            sink(entry)

    def add_tensors(
        self, action: str, names: Sequence[str], reason: str = "", output_change: Tensor | None = None
    ) -> None:
        """Note an edit of whole tensors; it continues the method's run if that was at this step or the one before.

        Steps are those of one optimizer: ``clock`` says of which.
        """
        key = (self.clock, self.intervention, action)
        self.num_edits += 1
        self.num_undone += action == "undone"
        run = self._open.get(key)
        if run is not None and run.last_step in (self.step, self.step - 1):
            run.count += run.last_step != self.step
            run.last_step, run.reason = self.step, reason
            run.tensors.update(dict.fromkeys(names))
            if output_change is not None and run.output_change is not None:
                run.output_change = torch.maximum(run.output_change, output_change)
            return
        run = _Run(
            *(self.step, action, self.intervention, reason, dict.fromkeys(names), self.step),
            number=self.num_edits,
            output_change=output_change,
        )
        self._open[key] = run
        self._runs.append(run)
        self._pass_on(run)
        if self._subscribers:
            self._tell(run.event())

    # ---- for the user ----
    def subscribe(self, callback: Callable[[Event], object]) -> Callable[[], None]:
        """Call a function at every edit, right after it was made.

        Of a run of edits of whole tensors, only the first is told. What the function raises comes out of the
        ``optimizer.step()`` (or ``task_boundary()``) that edited. On an accelerator each edit is then read back at
        once, which waits for the device; iterate over the log now and then where that is too slow.

        Args:
            callback: Takes an :class:`Event`.

        Returns:
            A function that ends the subscription.

        Example:
            >>> log, seen = EventLog(), []
            >>> stop = log.subscribe(seen.append)
            >>> log.add("fc1", "reset", torch.tensor([3]), None, None, "dormant")
            >>> stop()
            >>> log.add("fc1", "reset", torch.tensor([4]), None, None, "dormant")
            >>> [event.units for event in seen]
            [(3,)]
        """
        entry = _Subscriber(callback)
        self._subscribers.append(entry)

        def stop() -> None:
            if entry in self._subscribers:
                self._subscribers.remove(entry)

        return stop

    def pass_to(self, sink: Callable[[Entry], object]) -> Callable[[], None]:
        """Hand every edit on as it is noted, still on its device; of a run of edits, its beginning.

        Args:
            sink: Takes an :data:`Entry`, whose ``event()`` may wait for a device.

        Returns:
            A function that ends it.
        """
        self._sinks.append(sink)

        def stop() -> None:
            if sink in self._sinks:
                self._sinks.remove(sink)

        return stop

    def latest_resets(self) -> dict[str, Tensor]:
        """The step of each unit's latest reset, -1 where there was none: int64 ``[U]``, or ``[S, U]``."""
        return {name: steps if self.num_members else steps[0] for name, steps in self._latest.items()}

    def num_resets(self) -> dict[str, Tensor]:
        """Units reset so far per group, int64 ``[]`` (``[S]`` for a stack of members)."""
        return {name: total if self.num_members else total[0] for name, total in self._totals.items()}

    def state_dict(self) -> dict[str, Tensor]:
        """The totals; the events themselves are a log, not a state."""
        return {name: total.clone() for name, total in self._totals.items()}

    def load_state_dict(self, state: Mapping[str, Tensor], latest: Mapping[str, Tensor], num_edits: int) -> None:
        """Restore the totals, the steps of the latest resets, and the number of edits so far."""
        self._totals = {name: total.clone() for name, total in state.items()}
        self._latest = {name: steps.clone().reshape(self.num_members or 1, -1) for name, steps in latest.items()}
        self._open, self.num_edits = {}, num_edits

    def __len__(self) -> int:
        return len(self._units) + len(self._runs)

    def __iter__(self) -> Iterator[Event]:
        entries: Iterator[_Run | _UnitEdit] = heapq.merge(self._runs, self._units, key=lambda entry: entry.number)
        yield from (event for entry in entries if (event := entry.event()) is not None)

    def __repr__(self) -> str:
        totals = {name: int(total.sum()) for name, total in self._totals.items()}
        what = "units that would have been reset (dry run)" if self.dry_run else "units reset so far"
        return f"EventLog({len(self)} events; {what}: {totals or 'none'})"

    def __str__(self) -> str:
        latest: deque[Event] = deque(self, maxlen=_SHOWN)
        return "\n".join([repr(self), *(f"  {event}" for event in latest)])

    def _tell(self, event: Event) -> None:
        for subscriber in tuple(self._subscribers):
            try:
                subscriber.callback(event)
            except Exception as error:
                error.add_note(f"raised by a function subscribed to handle.events, at {event}")
                raise


Entry = _UnitEdit | _Run
"""An edit as it was noted: ``event()`` reads it, ``number`` says the how manieth it is (of a run, its first), and
``can_be_read`` at what price."""


class _Subscriber:
    """One subscription: the same function may have several."""

    def __init__(self, callback: Callable[[Event], object]) -> None:
        self.callback = callback
