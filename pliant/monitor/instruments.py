"""What the monitor measures with: hooks on the model and the optimizers, and the readings that come of them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pliant import metrics
from pliant.errors import IllegalConfiguration, NoEffect
from pliant.monitor.around import Around, Weights
from pliant.monitor.history import Reading
from pliant.monitor.ledger import Ledger, Task
from pliant.monitor.samples import Padding, Rows, paddings, taken
from pliant.monitor.twin import Twin, no_twin, twin_of
from pliant.monitor.watched import WATCHED
from pliant.sharded import Whole
from pliant.stats.capture import named_tensors
from pliant.stats.listener import Listeners, silence
from pliant.stats.reader import TapReader
from pliant.units import UnitGraph
from pliant.units.group import UnitGroup
from pliant.units.init import InitSpec
from pliant.wiring import is_dry_step, on_step
from pliant.write import Writer

__all__ = ["Instruments"]

Values = dict[str, dict[str, Tensor]]
Numbers = dict[str, dict[str, float]]


class Instruments:
    """Listens to a step when told to, and makes a reading of it.

    Args:
        model: The model, or the container of several.
        optimizers: What trains it; the first one's steps are counted by somebody else.
        names: Metrics that are wanted.
        units: The unit groups.
        where: Which of them, a pattern of names.
        num_samples: Samples that are kept of each group.
        padding: The argument of the model's call that is an attention mask.
        ledger: Says which heavy metrics can be afforded.
        process_group: The processes that read together.

    Attributes:
        rows: Unit group to what is heard of it.
        weights: The weight matrices.
        twin: What a freshly initialised twin shows.
        owed: Seconds spent on a reading after it was booked, for the next one.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizers: Sequence[Optimizer],
        names: Sequence[str],
        units: UnitGraph,
        *,
        where: str,
        num_samples: int,
        padding: str | int | None,
        ledger: Ledger,
        process_group: Any,
    ) -> None:
        self.ledger, self.twin = ledger, no_twin("no batch was given: pass reference=batch.")
        self._model, self._names, self._units, self._process_group = model, tuple(names), units, process_group
        self._num_samples, self._argument = num_samples, padding
        self.groups: tuple[UnitGroup, ...] = ()
        if any(WATCHED[name].of != "weights" and name != "gradient_norm" for name in names):
            self.groups = units.require(where)
        self.weights = Weights(model, names)
        tensors = named_tensors(model)
        self._around = [self._around_of(item, tensors) for item in optimizers]
        self.rows, self._padding = self._sinks(model)
        self._listener = Listeners(model, self.rows.values())
        try:
            self._check(where)
        except Exception:  # whatever it was, no hook may stay behind; it is raised again
            self.remove()
            raise
        if "distance_from_initialisation" in names:
            work = 2.0 * sum(matrix.numel() for matrix in self.weights.matrices.values())
            ledger.register({("distance_from_initialisation", "model"): work})
        self._overhead = self.owed = 0.0
        self._hooks: list[Any] = []
        for item, around in zip(optimizers[1:], self._around[1:], strict=True):
            self._hooks += on_step(item, partial(self._after_other, around))

    # ---- set-up ----
    def _check(self, where: str) -> None:
        if any(WATCHED[name].of in ("activations", "derivatives") for name in self._names) and not self.rows:
            raise NoEffect(
                f"the activations of no unit group that matches where={where!r} can be seen by a hook, so there "
                "is nothing to monitor. `print(pliant.find_units(...))` shows the taps."
            )
        of_weights = [name for name in self._names if WATCHED[name].of == "weights"]
        if of_weights and not self.weights.matrices:
            raise NoEffect(f"the model has no weight matrices, so {of_weights[0]} would measure nothing.")
        if self._argument not in (None, "attention_mask") and not self._padding:
            raise IllegalConfiguration(f"no model's forward takes the argument padding={self._argument!r}.")

    def _sinks(self, model: nn.Module) -> tuple[dict[str, Rows], dict[str, Padding]]:
        """What listens to a model: this one, or its twin."""
        sources = {WATCHED[name].of for name in self._names}
        if sources.isdisjoint(("activations", "derivatives")):
            return {}, {}
        tensors = named_tensors(model)
        seen, padding = Whole(tensors, model), paddings(model, self._argument)
        rows = {}
        for group in self.groups:
            if group.tap is not None:
                reader = TapReader(group, self._units.replays.get(group.name), seen, members=False)
                prefix = next((start for start in padding if f"{group.tap.module}.".startswith(start)), None)
                rows[group.name] = Rows(
                    reader,
                    self._num_samples,
                    tensors[group.slices[0].name],
                    None if prefix is None else padding[prefix],
                    with_derivatives="derivatives" in sources,
                )
        return rows, padding

    def _around_of(self, optimizer: Optimizer, tensors: Mapping[str, Tensor]) -> Around:
        owned = {id(p) for group in optimizer.param_groups for p in group["params"]}
        matrices = {name: p for name, p in self.weights.matrices.items() if id(p) in owned}
        groups = [group for group in self.groups if id(tensors[group.role("incoming")[0].name]) in owned]
        return Around(optimizer, self._names, matrices, groups, Writer(tensors, (0,), num_members=None))

    def measure_twin(self, inputs: Any, *, seed: int, init: InitSpec) -> Twin:
        """What a freshly initialised twin of the model shows on a batch."""
        return twin_of(
            self._model,
            inputs,
            self._sinks,
            self.weights.initial,
            seed=seed,
            init=init,
            process_group=self._process_group,
        )

    # ---- listening ----
    @property
    def listens(self) -> bool:
        """Whether the coming step is listened to."""
        return self._listener.enabled

    def hear_first(self) -> None:
        """Listen to the first step, only to see that something is heard at all."""
        self.clear()
        self._listener.listen()

    def listen(self) -> None:
        """The coming step is to be read."""
        began = time.perf_counter()
        self.clear()
        self._listener.listen()
        for around in self._around:
            around.listen()
        self._overhead = time.perf_counter() - began

    def rest(self) -> None:
        """Nothing is to be read."""
        for around in self._around:
            around.rest()
        self._listener.rest()

    def clear(self) -> None:
        """Forget what was heard: the step was none, or a new one begins."""
        for sink in self.rows.values():
            sink.clear()

    def remove(self) -> None:
        """Remove every hook."""
        for around in self._around:
            around.rest()
        self._listener.remove()
        for item in self._padding.values():
            item.remove()
        for hook in getattr(self, "_hooks", ()):
            hook.remove()

    def _after_other(self, around: Around, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if self.listens and not is_dry_step(optimizer):
            around.read()

    def seconds(self) -> float:
        """Seconds spent on listening since :meth:`listen`."""
        return self._overhead + sum(item.seconds for item in self.rows.values()) + self._seconds_of(self._around)

    @staticmethod
    def _seconds_of(around: Sequence[Around]) -> float:
        return sum(item.seconds for item in around)

    # ---- readings ----
    def check_heard(self) -> None:
        """Say at the first step, and not at the first reading, that nothing reaches the hooks.

        Raises:
            IllegalConfiguration: If nothing was heard.
        """
        heard = [item.take()[0] is not None for item in self.rows.values()]
        if heard and self._process_group is None and not any(heard):
            raise IllegalConfiguration(silence(self._model, (item.tap for item in self.rows.values())))

    @torch.no_grad()
    def read(self, step: int, steps: int, began: float, window: float | None) -> Reading:
        """Make a reading of the step that was listened to.

        Args:
            step: Its number.
            steps: Steps since the last reading.
            began: When the hook after it began.
            window: Seconds of a training step without the monitor, if they were measured.

        Raises:
            IllegalConfiguration: If nothing was heard, or the model has other tensors than at the beginning.
        """
        self.weights.check(self._model)
        before = self._around[0].seconds
        self._around[0].read()
        listening = self._overhead + sum(item.seconds for item in self.rows.values())
        listening += self._seconds_of(self._around[1:]) + before
        rows, derivatives = taken(self.rows, self._process_group)
        if self.rows and not rows:
            raise IllegalConfiguration(silence(self._model, (item.tap for item in self.rows.values())))
        counts = {name: act_NU.shape[0] for name, act_NU in rows.items()}
        values = _read_back(self._light(rows, derivatives))
        self.ledger.register(self._heavy_tasks(counts))
        self.ledger.settle(steps, window, self.owed + listening + time.perf_counter() - began)
        for task in self.ledger.due():
            self._run(task, rows, values)
        return Reading(step, values, counts)

    def _light(self, rows: Mapping[str, Tensor], derivatives: Mapping[str, Tensor]) -> Values:
        found: Values = {}
        for name in self._names:
            item = WATCHED[name]
            if item.function is not None and not item.heavy:
                seen = derivatives if item.of == "derivatives" else rows
                if seen:
                    found[name] = {group: item.function(matrix_NU) for group, matrix_NU in seen.items()}
        for around in self._around:
            for name, places in around.values.items():
                found.setdefault(name, {}).update(places)
        norms = [around.values["gradient_norm"]["model"] for around in self._around if "gradient_norm" in around.values]
        if norms:
            found["gradient_norm"] = {"model": metrics.gradient_norm(norms)}
        for name, places in self.weights.light().items():
            found.setdefault(name, {}).update(places)
        return found

    def _heavy_tasks(self, counts: Mapping[str, int]) -> dict[Task, float]:
        return {
            (name, group.name): WATCHED[name].work(counts[group.name], group.size)
            for name in self._names
            if WATCHED[name].heavy and WATCHED[name].of == "activations"
            for group in self.groups
            if group.name in counts
        }

    def _run(self, task: Task, rows: Mapping[str, Tensor], values: Numbers) -> None:
        metric, where = task
        function = WATCHED[metric].function
        began = time.perf_counter()
        if function is None:
            value = float(self.weights.distance())
        elif where in rows:
            value = float(function(rows[where]))
            self.twin.value(metric, where, rows[where].shape[0])  # what the reference costs belongs to the metric
        else:
            return  # a head that was not used in this step
        values.setdefault(metric, {})[where] = value
        self.ledger.book(task, time.perf_counter() - began)


def _read_back(values: Values) -> Numbers:
    """All numbers in one transfer."""
    flat = [(metric, where, value) for metric, places in values.items() for where, value in places.items()]
    if not flat:
        return {}
    numbers = torch.stack([value.detach().to(torch.float64).reshape(()) for _, _, value in flat]).tolist()
    found: Numbers = {metric: {} for metric in values}
    for (metric, where, _), number in zip(flat, numbers, strict=True):
        found[metric][where] = number
    return found
