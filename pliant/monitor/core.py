"""The monitor: when it listens, what it reads, and who is told."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pliant import metrics as _metrics
from pliant.devices import can_read
from pliant.errors import IllegalConfiguration, NoEffect, NoEffectWarning
from pliant.monitor.alarms import Alarm, Alarms
from pliant.monitor.around import Around, Weights
from pliant.monitor.history import History, Reading
from pliant.monitor.ledger import Ledger, Task
from pliant.monitor.samples import Padding, Rows, gathered, paddings
from pliant.monitor.telling import Teller
from pliant.monitor.twin import Twin, no_twin, twin_of
from pliant.monitor.watched import WATCHED
from pliant.monitor.writers import Writer as ReadingWriter
from pliant.sharded import Whole
from pliant.stats.capture import named_tensors
from pliant.stats.listener import Listeners, is_in_graph, silence
from pliant.stats.reader import TapReader
from pliant.units import UnitGraph
from pliant.units.group import UnitGroup
from pliant.units.init import InitSpec
from pliant.wiring import is_dry_step, on_step
from pliant.write import Writer

__all__ = ["Monitor"]

STATE_VERSION = 1
DEFAULT_EVERY = 500
_WINDOW_STEPS = 8
_LATE = 20  # readings after which a heavy metric that was never measured is worth a warning

Values = dict[str, dict[str, Tensor]]


class Monitor:
    """Made by :func:`monitor`.

    Attributes:
        history: The readings, oldest first, in bounded memory: see :class:`~pliant.monitor.history.History`.
        every: Steps between light readings.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizers: Sequence[Optimizer],
        names: tuple[str, ...],
        units: UnitGraph,
        *,
        every: int | None,
        budget: float | None,
        where: str,
        num_samples: int,
        history: int,
        padding: str | int | None,
        process_group: Any,
        writers: Sequence[ReadingWriter],
        on_alarm: Sequence[Callable[[Alarm], object]],
    ) -> None:
        self.history, self.every = History(history), every or DEFAULT_EVERY
        self._every_is_free = every is None
        self._model, self._names, self._process_group = model, names, process_group
        self._optimizers = list(optimizers)
        self._num_samples, self._argument = num_samples, padding
        self._groups = self._visible(units, where)
        self._units = units
        self._tensors = named_tensors(model)
        self._rows, self._padding = self._sinks(model)
        self._weights = Weights(model, names)
        self._check_something_to_measure(where)
        self._around = [self._around_of(item) for item in self._optimizers]
        self._ledger = Ledger(budget, process_group)
        if "distance_from_initialisation" in names:
            work = 2.0 * sum(matrix.numel() for matrix in self._weights.matrices.values())
            self._ledger.register({("distance_from_initialisation", "model"): work})
        self._alarms, self._twin = Alarms(), no_twin("no batch was given: pass reference=batch.")
        self._unheard = dict.fromkeys(self._rows)
        self._step = self._last = 0
        self._current: dict[str, dict[str, float]] = {}
        self._has_warned = self._in_hook = False
        self._accelerated = any(tensor.is_cuda for tensor in self._tensors.values())
        self._teller = Teller(self._optimizers[0], writers, on_alarm, process_group)
        self._listener = Listeners(model, [*self._padding.values(), *self._rows.values()])
        self._hooks = on_step(self._optimizers[0], self._after_step)
        for item, around in zip(self._optimizers[1:], self._around[1:], strict=True):
            self._hooks += on_step(item, partial(self._after_other, around))
        self._window_from: tuple[int, float] | None = None
        self._overhead = self._owed = 0.0
        self._read_at, self._wake = self.every, 1
        self._first_step()

    # ---- set-up ----
    def _visible(self, units: UnitGraph, where: str) -> tuple[UnitGroup, ...]:
        if not any(WATCHED[name].of != "weights" for name in self._names):
            return ()
        return units.require(where)

    def _check_something_to_measure(self, where: str) -> None:
        of_forward = [name for name in self._names if WATCHED[name].of in ("activations", "derivatives")]
        if of_forward and not self._rows:
            raise NoEffect(
                f"the activations of no unit group that matches where={where!r} can be seen by a hook, so there "
                "is nothing to monitor. `print(pliant.find_units(...))` shows the taps."
            )
        of_weights = [name for name in self._names if WATCHED[name].of == "weights"]
        if of_weights and not self._weights.matrices:
            raise NoEffect(f"the model has no weight matrices, so {of_weights[0]} would measure nothing.")

    def _sinks(self, model: nn.Module) -> tuple[dict[str, Rows], dict[str, Padding]]:
        """What listens to a model: this one, or its twin."""
        tensors = named_tensors(model)
        seen = Whole(tensors, model)
        padding = paddings(model, self._argument)
        rows = {}
        if any(WATCHED[name].of in ("activations", "derivatives") for name in self._names):
            for group in self._groups:
                if group.tap is not None:
                    reader = TapReader(group, self._units.replays.get(group.name), seen, members=False)
                    prefix = next((start for start in padding if f"{group.tap.module}.".startswith(start)), None)
                    mask = None if prefix is None else padding[prefix]
                    rows[group.name] = Rows(reader, self._num_samples, tensors[group.slices[0].name], mask)
        return rows, padding if rows else {}

    def _around_of(self, optimizer: Optimizer) -> Around:
        owned = {id(p) for group in optimizer.param_groups for p in group["params"]}
        matrices = {name: p for name, p in self._weights.matrices.items() if id(p) in owned}
        groups = [g for g in self._groups if id(self._tensors[g.role("incoming")[0].name]) in owned]
        return Around(optimizer, self._names, matrices, groups, Writer(self._tensors, (0,), num_members=None))

    def compare_with_fresh(self, inputs: Any, *, seed: int = 0, init: InitSpec = None) -> None:
        """Let alarms compare the model with a freshly initialised twin on a batch.

        :func:`monitor` does it with ``reference=`` or ``example_inputs=``; this is for later, when a batch is at hand.

        Args:
            inputs: A batch as the loop passes it.
            seed: Seed of the twin's weights.
            init: How parameters are initialised, where that is not PyTorch's default for their layer.

        Raises:
            IllegalConfiguration: If no twin can be drawn, or the model fails on the batch.
        """
        self._twin = twin_of(
            self._model,
            inputs,
            self._sinks,
            self._weights.initial,
            seed=seed,
            init=init,
            process_group=self._process_group,
        )

    def without_twin(self, why_not: str) -> None:
        """Note why alarms have no twin to compare with."""
        self._twin = no_twin(why_not)

    # ---- what the user reads ----
    @property
    def num_steps(self) -> int:
        """Steps of the first optimizer since the monitor was made (or that a loaded state had seen)."""
        return self._step

    @property
    def latest(self) -> Reading:
        """The newest reading.

        Raises:
            NoEffect: If there is none yet.
        """
        if not self.history:
            raise NoEffect(f"nothing has been measured yet: the first reading comes after {self.every} steps.")
        return self.history[-1]

    @property
    def current(self) -> Mapping[str, Mapping[str, float]]:
        """The newest value of every metric in every place, whenever it was measured."""
        return self._current

    @property
    def alarms(self) -> tuple[Alarm, ...]:
        """The alarms that are up."""
        return self._alarms.active

    @property
    def alarm_log(self) -> tuple[Alarm, ...]:
        """The latest alarms that were raised or withdrawn, in order."""
        return tuple(self._alarms.log)

    @property
    def cost(self) -> float:
        """What monitoring has cost so far, as a share of the time of the training steps."""
        return self._ledger.share

    @property
    def cadence(self) -> Mapping[str, float]:
        """About how many steps lie between two readings of each metric; infinite if the budget does not allow any."""
        found = dict.fromkeys(self._names, float(self.every))
        for metric in self._names:
            if WATCHED[metric].heavy:
                steps = [self._ledger.interval(task) for task in self._ledger.tasks if task[0] == metric]
                found[metric] = max([float(self.every), *(step for step in steps if step is not None)])
        return found

    @property
    def unheard(self) -> tuple[str, ...]:
        """Unit groups that no reading has seen so far, such as heads that wait for their turn."""
        return tuple(self._unheard)

    @property
    def with_padding(self) -> tuple[str, ...]:
        """Unit groups whose positions do not fit the attention mask, so that padded ones count as samples."""
        return tuple(name for name, item in self._rows.items() if item.heard_padding)

    @property
    def why_no_twin(self) -> str:
        """Why alarms are not compared with a freshly initialised twin; empty if they are."""
        return self._twin.why_not

    # ---- the clock ----
    def step(self) -> None:
        """Count a step that ran inside a captured CUDA graph (call it after each replay); others count by themselves.

        The ratio of update to weight cannot be read there.
        """
        self._in_hook = False
        self._advance(None)

    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if self._accelerated and is_in_graph(True):
            return  # the graph will step without this hook: see step()
        if is_dry_step(optimizer):
            return
        self._in_hook = True
        self._advance(getattr(optimizer, "found_inf", None))

    def _advance(self, found_inf: Tensor | None) -> None:
        if found_inf is not None and can_read(found_inf) and bool(found_inf):
            return self._clear()
        self._step += 1
        if self._step >= self._wake:
            self._wake_up(found_inf)
        return None

    def _after_other(self, around: Around, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if self._listener.enabled and not is_dry_step(optimizer):
            around.read()

    def _wake_up(self, found_inf: Tensor | None) -> None:
        now = time.perf_counter()
        if self._listener.enabled:
            if found_inf is not None and bool(found_inf):  # a fused optimizer has skipped: the next one is sampled
                self._wake = self._read_at = self._step + 1
                return self._clear()
            if self._step >= self._read_at:
                self._read(now)
            else:
                self._check_first_step()
            self._rest()
        return self._plan()

    def _plan(self) -> None:
        """Begin to time steps, or to listen, if it is time; and when to wake up next."""
        listen_at = self._read_at - 1
        if self._window_from is None and self._step >= listen_at - _WINDOW_STEPS:
            self._window_from = self._step, time.perf_counter()
        if self._step >= listen_at:
            self._listen()
            self._wake = self._read_at
        else:
            self._wake = listen_at if self._window_from is not None else max(listen_at - _WINDOW_STEPS, self._step + 1)

    def _listen(self) -> None:
        began = time.perf_counter()
        self._clear()
        self._listener.listen()
        for around in self._around:
            around.listen()
        self._overhead = time.perf_counter() - began

    def _rest(self) -> None:
        for around in self._around:
            around.rest()
        self._listener.rest()

    def _clear(self) -> None:
        for sink in (*self._padding.values(), *self._rows.values()):
            sink.clear()

    # ---- readings ----
    def _first_step(self) -> None:
        """Listen to the first step in any case, to see that something is heard at all."""
        if self.every == 1:
            return self._plan()
        self._clear()
        return self._listener.listen()

    def _check_first_step(self) -> None:
        """Say at the first step, and not at the first reading, that nothing reaches the hooks."""
        rows = [item.take() for item in self._rows.values()]
        if self._rows and self._process_group is None and all(item is None for item in rows):
            raise IllegalConfiguration(silence(self._model, (item.tap for item in self._rows.values())))

    def _read(self, began: float) -> None:
        window = self._window(began)
        self._around[0].read()
        overhead = self._owed + self._overhead + sum(item.seconds for item in self._rows.values())
        overhead += sum(item.seconds for item in self._around[1:])
        with torch.no_grad():
            rows = gathered({name: item.take() for name, item in self._rows.items()}, self._rows, self._process_group)
            if self._rows and not rows:
                raise IllegalConfiguration(silence(self._model, (item.tap for item in self._rows.values())))
            counts = {name: act_NU.shape[0] for name, act_NU in rows.items()}
            values = _read_back(self._light(rows))
            self._ledger.register(self._heavy_tasks(counts))
            self._ledger.settle(self._step - self._last, window, time.perf_counter() - began + overhead)
            for task in self._ledger.due():
                self._run(task, rows, values)
        self._last, self._read_at, self._window_from = self._step, self._step + self.every, None
        self._finish(Reading(self._step, values, counts))

    def _window(self, now: float) -> float | None:
        """Seconds of a step without the monitor, over the latest steps."""
        if self._window_from is None or self._step <= self._window_from[0]:
            return None
        steps, start = self._step - self._window_from[0], self._window_from[1]
        own = self._overhead + sum(item.seconds for item in (*self._rows.values(), *self._around))
        return max(now - start - own, 0.0) / steps

    def _light(self, rows: Mapping[str, Tensor]) -> Values:
        found: Values = {}
        for name in self._names:
            item = WATCHED[name]
            if item.of == "activations" and not item.heavy and item.function is not None:
                found[name] = {group: item.function(act_NU) for group, act_NU in rows.items()}
        for around in self._around:
            for name, places in around.values.items():
                found.setdefault(name, {}).update(places)
        norms = [around.values["gradient_norm"]["model"] for around in self._around if "gradient_norm" in around.values]
        if norms:
            found["gradient_norm"] = {"model": _metrics.gradient_norm(norms)}
        for name, places in self._weights.light().items():
            found.setdefault(name, {}).update(places)
        return found

    def _heavy_tasks(self, counts: Mapping[str, int]) -> dict[Task, float]:
        return {
            (name, group.name): WATCHED[name].work(counts[group.name], group.size)
            for name in self._names
            if WATCHED[name].heavy and WATCHED[name].of == "activations"
            for group in self._groups
            if group.name in counts
        }

    def _run(self, task: Task, rows: Mapping[str, Tensor], values: dict[str, dict[str, float]]) -> None:
        metric, where = task
        function = WATCHED[metric].function
        began = time.perf_counter()
        if function is None:
            value = float(self._weights.distance())
        elif where in rows:
            value = float(function(rows[where]))
        else:
            return  # a head that was not used in this step
        self._twin.value(metric, where, rows[where].shape[0] if where in rows else 0)  # its cost is of this metric
        values.setdefault(metric, {})[where] = value
        self._ledger.book(task, time.perf_counter() - began)

    def _finish(self, reading: Reading) -> None:
        """Keep a reading, look for alarms, and tell those who want to know; what that costs is owed."""
        began = time.perf_counter()
        self.history.append(reading)
        for name in reading.num_samples:
            self._unheard.pop(name, None)
        told: list[Alarm] = []
        for metric, places in reading.values.items():
            self._current.setdefault(metric, {}).update(places)
            for where, value in places.items():
                twin = self._twin.value(metric, where, reading.num_samples.get(where, 0))
                told += self._alarms.take(metric, where, value, twin, reading.step)
        self._teller.write(reading, told)
        self._owed = time.perf_counter() - began
        self._stretch()
        self._teller.call_back(told, in_hook=self._in_hook)

    def _stretch(self) -> None:
        """Space out light readings that take more than half of the budget, or say that nothing is left."""
        budget, light = self._ledger.budget, self._ledger.light_share()
        if budget is None:
            return
        if self._every_is_free and light > budget / 2 and len(self.history) > 1:
            self.every *= 2
            self._read_at = self._step + self.every
        heavy = [name for name in self._names if WATCHED[name].heavy]
        late = [name for name in heavy if name not in self._current]
        if late and light > budget and len(self.history) >= _LATE and not self._has_warned:
            self._has_warned = True
            warnings.warn(
                f"light readings every {self.every} steps take {100 * light:.1f} % of the time of a step, and the "
                f"budget is {100 * budget:.1f} %: nothing is left for {', '.join(late)}, which will not be measured. "
                "Pass a larger every=, a larger budget=, or budget=None for no limit.",
                NoEffectWarning,
                stacklevel=2,
            )

    # ---- state ----
    def state_dict(self) -> dict[str, Any]:
        """Everything needed to continue: history, references, the state of alarms, and what things cost.

        Plain tensors, numbers and strings: it loads with ``torch.load(..., weights_only=True)``.
        """
        return {
            "version": STATE_VERSION,
            "metrics": list(self._names),
            "groups": {group.name: group.size for group in self._groups},
            "step": self._step,
            "last": self._last,
            "every": self.every,
            "history": self.history.state_dict(),
            "current": {metric: dict(places) for metric, places in self._current.items()},
            "unheard": list(self._unheard),
            "alarms": self._alarms.state_dict(),
            "ledger": self._ledger.state_dict(),
            "twin": self._twin.state_dict(),
            "weights": self._weights.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from :meth:`state_dict`: the weights at the beginning are those of the run that was saved.

        Raises:
            IllegalConfiguration: If it was saved by another version, or on other unit groups.
        """
        if state.get("version") != STATE_VERSION:
            raise IllegalConfiguration(
                f"the monitor's state has version {state.get('version')!r}; this is version {STATE_VERSION}."
            )
        mine = {group.name: group.size for group in self._groups}
        if mine != state["groups"]:
            raise IllegalConfiguration(
                f"the monitor's state is of the unit groups {state['groups']}, and the model has {mine}."
            )
        self._rest()
        self._step, self._last, self.every = state["step"], state["last"], state["every"]
        self.history.load_state_dict(state["history"])
        self._current = {metric: dict(places) for metric, places in state["current"].items()}
        self._unheard = dict.fromkeys(state["unheard"])
        self._alarms.load_state_dict(state["alarms"])
        self._ledger.load_state_dict(state["ledger"])
        self._twin.load_state_dict(state["twin"])
        self._weights.load_state_dict(state["weights"])
        self._read_at, self._window_from = max(self._last + self.every, self._step + 1), None
        self._plan()

    def detach(self) -> None:
        """Remove every hook and close the writers; the history stays."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        self._rest()
        self._listener.remove()
        self._teller.let_go()
        self._teller.close()

    def __repr__(self) -> str:
        state = f"{len(self.history)} readings, {len(self.alarms)} alarms"
        return f"Monitor({', '.join(self._names)}; every {self.every} steps, {state})"

    def __str__(self) -> str:
        lines = [repr(self), *(f"  {alarm}" for alarm in self.alarms)]
        if self.history and self.unheard:
            lines.append(f"  not seen so far: {', '.join(self.unheard)}")
        if self.with_padding:
            lines.append(f"  padded positions count in: {', '.join(self.with_padding)}")
        if self.why_no_twin:
            lines.append(f"  no freshly initialised twin to compare with: {self.why_no_twin}")
        return "\n".join(lines)


def _read_back(values: Values) -> dict[str, dict[str, float]]:
    """All numbers in one transfer."""
    flat = [(metric, where, value) for metric, places in values.items() for where, value in places.items()]
    if not flat:
        return {}
    numbers = torch.stack([value.detach().to(torch.float64).reshape(()) for _, _, value in flat]).tolist()
    found: dict[str, dict[str, float]] = {metric: {} for metric in values}
    for (metric, where, _), number in zip(flat, numbers, strict=True):
        found[metric][where] = number
    return found
