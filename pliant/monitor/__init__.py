"""``monitor``: metrics of the units while the user's own loop runs."""

from __future__ import annotations

import difflib
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pliant import metrics as _metrics
from pliant.devices import can_read
from pliant.errors import IllegalConfiguration, NoEffect
from pliant.sharded import Whole, process_group_of, whole
from pliant.stats.capture import named_tensors
from pliant.stats.listener import Dated, Listeners, Passes, silence, that_count
from pliant.stats.reader import TapReader
from pliant.units import UnitGraph
from pliant.units.export import refuse_wrapped
from pliant.units.several import Models, as_module
from pliant.wiring import is_dry_step, on_step, units_of

__all__ = ["METRICS", "Monitor", "Reading", "monitor"]


def _dormant_fraction(act_NU: Tensor) -> Tensor:
    return _metrics.dormant_fraction(act_NU.abs().mean(-2))


_OF_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "dead_fraction": _metrics.dead_fraction,
    "dormant_fraction": _dormant_fraction,
    "effective_rank": _metrics.effective_rank,
    "stable_rank": _metrics.stable_rank,
}

METRICS = (*_OF_ACTIVATIONS, "weight_magnitude")
"""Metrics that can be monitored. All but ``weight_magnitude`` are per unit group, on training activations."""


@dataclass(frozen=True)
class Reading:
    """What the monitor measured at one step.

    Attributes:
        step: Optimizer steps done.
        values: Metric to unit group to value; ``weight_magnitude`` is one value, under ``"model"``.
        num_samples: Unit group to the number of samples behind its values.
    """

    step: int
    values: Mapping[str, Mapping[str, float]]
    num_samples: Mapping[str, int]


class _Rows:
    """Keeps up to ``limit`` samples of one group's activations, evenly spread over each batch."""

    def __init__(self, reader: TapReader, limit: int, like: Tensor) -> None:
        self.reader, self.tap, self.limit = reader, reader.tap, limit
        self.in_forward = self.keeps_graph = False
        self.passes = Passes()
        self.heard: list[Dated] = []
        size = reader.group.size
        self.compiled = torch.zeros(limit, size, dtype=torch.float32, device=like.device)
        self.compiled_count = torch.zeros((), dtype=torch.long, device=like.device)

    def add(self, seen: Any, *, in_graph: bool) -> None:
        act_NU = self.reader.matrix(self.reader.value(seen))
        step = -(-act_NU.shape[0] // self.limit)
        chosen = act_NU[::step]
        if in_graph:  # a list would break the graph: the latest batch stays in a fixed buffer
            count = chosen.shape[0]
            self.compiled[:count].copy_(chosen)
            self.compiled_count.fill_(count)
        elif len(self.heard) < 8:  # many micro-batches: the first ones stand for the step
            inside = torch._C._current_graph_task_id() != -1
            self.heard.append(Dated(chosen.clone(), chosen.shape[0], self.passes.count, inside))

    def take(self) -> Tensor | None:
        """The samples since the last call, ``[N, U]`` with N at most the limit."""
        if self.heard:
            act_NU = torch.cat([entry.value for entry in that_count(self.heard, self.passes.count)])
            act_NU = act_NU[:: -(-act_NU.shape[0] // self.limit)]
        elif count := int(self.compiled_count):
            act_NU = self.compiled[:count].clone()
        else:
            return None
        self.clear()
        return act_NU

    def forget(self) -> None:
        """Drop the samples of what has been through a backward pass."""
        self.heard = [entry for entry in self.heard if entry.after >= self.passes.count]

    def let_go(self) -> None:
        """Nothing here has a graph."""

    def clear(self) -> None:
        self.heard = []
        self.compiled_count.zero_()
        self.in_forward = False


class Monitor:
    """Made by :func:`monitor`.

    Attributes:
        history: The latest readings, oldest first, in bounded memory.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        names: tuple[str, ...],
        units: UnitGraph,
        *,
        every: int,
        where: str,
        num_samples: int,
        history: int,
    ) -> None:
        self.history: deque[Reading] = deque(maxlen=history)
        self._model, self._names, self._every, self._step = model, names, every, 0
        tensors = Whole(named_tensors(model), model)
        self._weights = [tensor for tensor in model.parameters() if tensor.ndim >= 2]
        self._rows: dict[str, _Rows] = {}
        if any(name in _OF_ACTIVATIONS for name in names):
            for group in units.require(where):
                if group.tap is not None:
                    reader = TapReader(group, units.replays.get(group.name), tensors, members=False)
                    self._rows[group.name] = _Rows(reader, num_samples, tensors[group.slices[0].name])
            if not self._rows:
                raise NoEffect(
                    f"the activations of no unit group that matches where={where!r} can be seen by a hook, so there "
                    "is nothing to monitor. `print(pliant.find_units(...))` shows the taps."
                )
        if "weight_magnitude" in names and not self._weights:
            raise NoEffect("the model has no weight matrices, so weight_magnitude would measure nothing.")
        self._listener = Listeners(model, self._rows.values())
        if every > 1:
            self._listener.rest()
        self._hooks = on_step(optimizer, self._after_step)

    @property
    def latest(self) -> Reading:
        """The newest reading.

        Raises:
            NoEffect: If there is none yet.
        """
        if not self.history:
            raise NoEffect(f"nothing has been measured yet: the first reading comes after {self._every} steps.")
        return self.history[-1]

    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if is_dry_step(optimizer):
            return None
        found_inf = getattr(optimizer, "found_inf", None)
        if found_inf is not None and can_read(found_inf) and bool(found_inf):
            return self._clear()
        self._step += 1
        if self._step % self._every == 0:
            self._read()
        else:
            self._clear()
        if (self._step + 1) % self._every == 0:
            self._listener.listen()
        else:
            self._listener.rest()
        return None

    def _read(self) -> None:
        values: dict[str, dict[str, float]] = {name: {} for name in self._names}
        counts: dict[str, int] = {}
        with torch.no_grad():
            for group, rows in self._rows.items():
                act_NU = rows.take()
                if act_NU is None:
                    continue
                counts[group] = act_NU.shape[0]
                for name in self._names:
                    if name in _OF_ACTIVATIONS:
                        values[name][group] = float(_OF_ACTIVATIONS[name](act_NU))
            if self._rows and not counts:
                raise IllegalConfiguration(silence(self._model, (rows.tap for rows in self._rows.values())))
            if "weight_magnitude" in values:
                values["weight_magnitude"]["model"] = float(
                    _metrics.weight_magnitude([whole(tensor) for tensor in self._weights])
                )
        self.history.append(Reading(self._step, values, counts))

    def _clear(self) -> None:
        for rows in self._rows.values():
            rows.clear()

    def detach(self) -> None:
        """Remove every hook; the history stays."""
        for hook in self._hooks:
            hook.remove()
        self._listener.remove()

    def __repr__(self) -> str:
        return f"Monitor({', '.join(self._names)}; every {self._every} steps, {len(self.history)} readings)"


def monitor(
    model: Models,
    optimizer: Optimizer | Sequence[Optimizer],
    metrics: str | Sequence[str] = METRICS,
    *,
    example_inputs: Any = None,
    units: UnitGraph | None = None,
    every: int = 500,
    where: str = "*",
    num_samples: int = 512,
    history: int = 10_000,
) -> Monitor:
    """Measure the units of a model every so many optimizer steps, on the activations of training itself.

    Nothing runs twice: on sampled steps, hooks keep some activations of the training forward, and the metrics are
    computed after the step. Other steps cost one Python call per hook.

    Args:
        model: The model that is trained, before ``torch.compile``; or several by name.
        optimizer: Its optimizer; its steps are the clock. Of several, the first.
        metrics: Names out of :data:`METRICS`, or one.
        example_inputs: One small batch, to find the unit groups.
        units: Or the unit groups, found before.
        every: Steps between readings.
        where: Which unit groups, a pattern of names.
        num_samples: At most so many samples per group and reading (batch, time and space are samples). Ranks are
            bounded by it.
        history: Readings kept in memory.

    Returns:
        The monitor: ``latest``, ``history``, ``detach()``.

    Raises:
        IllegalConfiguration: For an unknown metric, a compiled model or what is no optimizer; at a reading, if no
            training forward was seen.
        NoEffect: If there is nothing to measure.

    Example:
        >>> import torch, pliant
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> watch = pliant.monitor(model, optimizer, ["dead_fraction"], example_inputs=torch.randn(3, 4), every=1)
        >>> model(torch.randn(16, 4)).square().mean().backward()
        >>> optimizer.step()
        >>> 0 <= watch.latest.values["dead_fraction"]["0"] <= 1
        True
        >>> watch.detach()
    """
    model = as_module(model)
    refuse_wrapped(model, sharded=units is not None)
    process_group_of(model)  # refuses what is sharded in another way
    first = optimizer if isinstance(optimizer, Optimizer) else next(iter(optimizer or ()), None)
    if not isinstance(first, Optimizer):
        raise IllegalConfiguration(f"monitor counts the steps of an optimizer; {type(first).__name__} is none.")
    metrics = [metrics] if isinstance(metrics, str) else metrics
    for name in metrics:
        if name not in METRICS:
            near = difflib.get_close_matches(name, METRICS, n=3) or METRICS
            raise IllegalConfiguration(f"there is no metric {name!r} to monitor; nearest: {', '.join(near)}.")
    if every < 1 or num_samples < 1 or history < 1:
        raise IllegalConfiguration("monitor: every, num_samples and history must be at least 1.")
    units = units_of(model, example_inputs, units)
    return Monitor(
        model,
        first,
        tuple(metrics),
        units,
        every=every,
        where=where,
        num_samples=num_samples,
        history=history,
    )
