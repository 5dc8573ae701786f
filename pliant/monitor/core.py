"""The monitor: when it listens, what it keeps, and who is told."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from pliant.devices import can_read
from pliant.errors import IllegalConfiguration, NoEffect, NoEffectWarning
from pliant.monitor.alarms import Alarm, Alarms
from pliant.monitor.history import History, Reading
from pliant.monitor.instruments import Instruments
from pliant.monitor.ledger import Ledger
from pliant.monitor.resume import fit_monitor
from pliant.monitor.telling import Teller
from pliant.monitor.twin import no_twin
from pliant.monitor.watched import WATCHED
from pliant.monitor.writers import Writer
from pliant.saving import LoadReport, OnMismatch
from pliant.stats.listener import is_in_graph
from pliant.units import UnitGraph
from pliant.units.init import InitSpec
from pliant.wiring import is_dry_step, on_step

__all__ = ["Monitor"]

STATE_VERSION = 1
DEFAULT_EVERY = 500
_WINDOW_STEPS = 8  # that are timed before each reading
_LATE = 20  # readings after which a heavy metric that was never measured is worth a warning


class Monitor:
    """Made by :func:`monitor`.

    Attributes:
        history: The readings, oldest first, in bounded memory: see :class:`~pliant.monitor.history.History`.
        every: Steps between light readings.

    Example:
        >>> import torch, pliant
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> inputs = torch.randn(16, 4)
        >>> watch = pliant.monitor(model, optimizer, ["dead_fraction"], example_inputs=inputs, every=2, budget=None)
        >>> for _ in range(4):
        ...     optimizer.zero_grad()
        ...     model(inputs).square().mean().backward()
        ...     optimizer.step()
        >>> [reading.step for reading in watch.history]
        [2, 4]
        >>> watch.detach()
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
        writers: Sequence[Writer],
        on_alarm: Sequence[Callable[[Alarm], object]],
    ) -> None:
        self.history, self.every = History(history), every or DEFAULT_EVERY
        self._every_is_free, self._names = every is None, names
        self._ledger, self._alarms = Ledger(budget, process_group), Alarms()
        self._instruments = Instruments(
            model,
            optimizers,
            names,
            units,
            where=where,
            num_samples=num_samples,
            padding=padding,
            ledger=self._ledger,
            process_group=process_group,
        )
        self._current: dict[str, dict[str, float]] = {}
        self._unheard = dict.fromkeys(self._instruments.rows)
        self._step = self._last = 0
        self._window_from: tuple[int, float] | None = None
        self._read_at, self._wake = self.every, 1
        self._has_warned = self._in_hook = False
        self._accelerated = any(parameter.is_cuda for parameter in model.parameters())
        self._teller = Teller(optimizers[0], writers, on_alarm, process_group)
        self._hooks = on_step(optimizers[0], self._after_step)
        if self.every == 1:
            self._plan()
        else:
            self._instruments.hear_first()

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
        self._instruments.twin = self._instruments.measure_twin(inputs, seed=seed, init=init)

    def without_twin(self, why_not: str) -> None:
        """Note why alarms have no twin to compare with."""
        self._instruments.twin = no_twin(why_not)

    def also_remove(self, hooks: Sequence[Any]) -> None:
        """Take over hooks that others put on the optimizers: :meth:`detach` removes them."""
        self._hooks.extend(hooks)

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
    def without_derivatives(self) -> Mapping[str, str]:
        """Unit groups whose activation function cannot be followed, and why: there, saturation is not known."""
        rows = self._instruments.rows
        return {name: item.why_no_derivatives for name, item in rows.items() if item.why_no_derivatives}

    @property
    def with_padding(self) -> tuple[str, ...]:
        """Unit groups whose positions do not fit the attention mask, so that padded ones count as samples."""
        return tuple(name for name, item in self._instruments.rows.items() if item.heard_padding)

    @property
    def why_no_twin(self) -> str:
        """Why alarms are not compared with a freshly initialised twin; empty if they are."""
        return self._instruments.twin.why_not

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
            return self._instruments.clear()
        self._step += 1
        if self._step >= self._wake:
            self._wake_up(found_inf)
        return None

    def _wake_up(self, found_inf: Tensor | None) -> None:
        now = time.perf_counter()
        if self._instruments.listens:
            if found_inf is not None and bool(found_inf):  # a fused optimizer has skipped: the next one is sampled
                self._wake = self._read_at = self._step + 1
                return self._instruments.clear()
            if self._step >= self._read_at:
                self._read(now)
            else:
                self._instruments.check_heard()
            self._instruments.rest()
        return self._plan()

    def _plan(self) -> None:
        """Begin to time steps, or to listen, if it is time; and when to wake up next."""
        listen_at = self._read_at - 1
        if self._window_from is None and self._step >= listen_at - _WINDOW_STEPS:
            self._window_from = self._step, time.perf_counter()
        if self._step >= listen_at:
            self._instruments.listen()
            self._wake = self._read_at
        else:
            self._wake = listen_at if self._window_from is not None else max(listen_at - _WINDOW_STEPS, self._step + 1)

    def _read(self, began: float) -> None:
        window = None
        if self._window_from is not None and self._step > self._window_from[0]:
            elapsed = began - self._window_from[1] - self._instruments.seconds()
            window = max(elapsed, 0.0) / (self._step - self._window_from[0])
        reading = self._instruments.read(self._step, self._step - self._last, began, window)
        self._last, self._read_at, self._window_from = self._step, self._step + self.every, None
        began = time.perf_counter()
        told = self._keep(reading)
        self._teller.write(reading, told)
        self._instruments.owed = time.perf_counter() - began
        self._stretch()
        self._teller.call_back(told, in_hook=self._in_hook)

    def _keep(self, reading: Reading) -> list[Alarm]:
        """Keep a reading; returns the alarms that it raised or withdrew."""
        self.history.append(reading)
        for name in reading.num_samples:
            self._unheard.pop(name, None)
        for metric, places in reading.values.items():
            self._current.setdefault(metric, {}).update(places)
        twin = self._instruments.twin

        def fresh(metric: str, where: str) -> float | None:
            return twin.value(metric, where, reading.num_samples.get(where, 0))

        return self._alarms.take_all(reading.values, fresh, reading.step)

    def _stretch(self) -> None:
        """Space out light readings that take more than half of the budget, or say that nothing is left."""
        if self._every_is_free:
            self.every = self._ledger.spaced(self.every)
            self._read_at = self._step + self.every
        budget, light = self._ledger.budget, self._ledger.light_share(self.every)
        if budget is None:
            return
        late = [name for name in self._names if WATCHED[name].heavy and name not in self._current]
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
            "groups": {group.name: group.size for group in self._instruments.groups},
            "step": self._step,
            "last": self._last,
            "every": self.every,
            "history": self.history.state_dict(),
            "current": {metric: dict(places) for metric, places in self._current.items()},
            "unheard": list(self._unheard),
            "alarms": self._alarms.state_dict(),
            "ledger": self._ledger.state_dict(),
            "twin": self._instruments.twin.state_dict(),
            "weights": self._instruments.weights.state_dict(),
        }

    def load_state_dict(
        self,
        state: Mapping[str, Any],
        on_mismatch: OnMismatch = "error",
        renamed: Mapping[str, str] | None = None,
    ) -> LoadReport:
        """Continue from :meth:`state_dict`: the weights at the beginning are those of the run that was saved.

        Args:
            state: What was saved.
            on_mismatch: ``"error"``: other unit groups are refused. ``"reinit_group"``: the alarms of every group whose
                number of units has changed begin anew, and so does the comparison with a fresh twin; the history is
                kept.
            renamed: Old module name to its new one, where modules have been renamed since.

        Returns:
            What became of every unit group.

        Raises:
            IllegalConfiguration: If it was saved by another version, or on other unit groups; nothing has been
                changed then.
        """
        if state.get("version") != STATE_VERSION:
            raise IllegalConfiguration(
                f"the monitor's state has version {state.get('version')!r}; this is version {STATE_VERSION}."
            )
        state, report = fit_monitor(
            state,
            groups={group.name: group.size for group in self._instruments.groups},
            weights=self._instruments.weights.state_dict(),
            tasks=self._ledger.tasks,
            on_mismatch=on_mismatch,
            renamed=renamed,
        )
        self._step, self._last, self.every = state["step"], state["last"], state["every"]
        self.history.load_state_dict(state["history"])
        self._current = {metric: dict(places) for metric, places in state["current"].items()}
        self._unheard = dict.fromkeys(state["unheard"])
        self._alarms.load_state_dict(state["alarms"])
        self._ledger.load_state_dict(state["ledger"])
        if state["twin"] is not None:
            self._instruments.twin.load_state_dict(state["twin"])
        self._instruments.weights.load_state_dict(state["weights"])
        self._read_at, self._window_from = max(self._last + self.every, self._step + 1), None
        self._instruments.rest()
        self._plan()
        return report

    def detach(self) -> None:
        """Remove every hook and close the writers; the history stays."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        self._instruments.remove()
        self._teller.let_go()
        self._teller.close()

    def __repr__(self) -> str:
        state = f"{len(self.history)} readings, {len(self.alarms)} alarms"
        return f"Monitor({', '.join(self._names)}; every {self.every} steps, {state})"

    def __str__(self) -> str:
        lines = [repr(self), *(f"  {alarm}" for alarm in self.alarms)]
        if self.history and self.unheard:
            lines.append(f"  not seen so far: {', '.join(self.unheard)}")
        if self.without_derivatives:
            lines.append(f"  saturation is not known in: {', '.join(self.without_derivatives)}")
        if self.with_padding:
            lines.append(f"  padded positions count in: {', '.join(self.with_padding)}")
        if self.why_no_twin:
            lines.append(f"  no freshly initialised twin to compare with: {self.why_no_twin}")
        return "\n".join(lines)
