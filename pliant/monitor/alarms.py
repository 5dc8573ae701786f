"""Alarms: when a metric leaves the model's own past, or what a freshly initialised twin shows, and stays away."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from pliant.mechanisms import MECHANISMS

__all__ = ["RULES", "Alarm", "Alarms", "Rule"]

Against = Literal["history", "fresh twin"]

_WINDOW = 31
_SPREADS = 6.0
_EITHER_SIDE = 1.4826  # of the median absolute deviation: the standard deviation of a normal distribution


@dataclass(frozen=True)
class Rule:
    """When a metric speaks for a mechanism.

    Attributes:
        metric: The metric.
        mechanism: The mechanism, as in :data:`pliant.mechanisms.MECHANISMS`.
        worse: Whether high or low values are bad.
        change: How much worse than the median of its own recent readings it has to be, in the metric's own units, or
            a factor where ``is_factor``; and at least six times their spread. ``None``: its history does not count.
        level: How much worse than in a freshly initialised twin; ``None``: the twin does not count.
        is_factor: Whether values are compared by their ratio.
        at_once: Whether a single reading is enough, without any history.
        besides: A metric of the same group that is subtracted first: dead units are dormant and saturated, too, and
            one alarm for them is enough.
    """

    metric: str
    mechanism: str
    worse: Literal["high", "low"]
    change: float | None
    level: float | None
    is_factor: bool = False
    at_once: bool = False
    besides: str = ""


RULES: tuple[Rule, ...] = (
    Rule("non_finite_fraction", "non_finite", "high", 0.0, None, at_once=True),
    Rule("dead_fraction", "dead_units", "high", 0.15, 0.5),
    Rule("dormant_fraction", "dormant_units", "high", 0.2, 0.5, besides="dead_fraction"),
    Rule("gradient_dormant_fraction", "dormant_units", "high", 0.3, None, besides="dead_fraction"),
    Rule("saturated_fraction", "saturated_units", "high", 0.2, 0.5, besides="dead_fraction"),
    Rule("frozen_fraction", "saturated_units", "high", 0.15, 0.5, besides="dead_fraction"),
    Rule("cloned_fraction", "cloned_units", "high", 0.3, 0.6),
    Rule("effective_rank", "rank_collapse", "low", 4.0, 10.0, is_factor=True),
    Rule("participation_ratio", "rank_collapse", "low", 6.0, 30.0, is_factor=True),
    Rule("weight_growth", "weight_growth", "high", 2.5, 10.0, is_factor=True),
    Rule("gradient_norm", "vanishing_gradients", "low", 1e4, None, is_factor=True),
)
"""One rule for each metric that speaks for a mechanism."""

_RULES = {rule.metric: rule for rule in RULES}


@dataclass(frozen=True)
class Alarm:
    """A metric of one unit group or layer that has become worse and stayed so.

    Attributes:
        mechanism: What that is a sign of, a name of :data:`pliant.mechanisms.MECHANISMS`.
        metric: The metric.
        where: The unit group, the weight matrix, or ``"model"``.
        value: Its value when the alarm was raised (for dormant and saturated units: without those that are dead).
        reference: What it was compared with.
        against: ``"history"``: the median of the model's own earlier readings; ``"fresh twin"``: the value in a
            freshly initialised copy.
        step: Optimizer steps done when it was raised.
        cleared: The step at which it was withdrawn, or ``None``.

    Example:
        >>> from pliant import Alarm
        >>> alarm = Alarm("dead_units", "dead_fraction", "0", value=0.5, reference=0.1, against="baseline", step=100)
        >>> alarm.where, alarm.cleared is None
        ('0', True)
    """

    mechanism: str
    metric: str
    where: str
    value: float
    reference: float
    against: Against
    step: int
    cleared: int | None = None

    @property
    def title(self) -> str:
        """A few words."""
        return f"{MECHANISMS[self.mechanism].title.lower()} in {self.where!r}"

    @property
    def methods(self) -> tuple[str, ...]:
        """Methods that act on the mechanism, by their name on the command line."""
        return MECHANISMS[self.mechanism].methods

    def __str__(self) -> str:
        mechanism, besides = MECHANISMS[self.mechanism], _RULES[self.metric].besides
        metric = self.metric + (" without dead units" if besides else "")
        before = "it was about" if self.against == "history" else "a freshly initialised network has"
        ended = "" if self.cleared is None else f" Withdrawn at step {self.cleared}."
        return (
            f"step {self.step}: {self.title}: {metric} is {self.value:.3g}, where "
            f"{before} {self.reference:.3g}. {mechanism.sentence}{ended}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and strings."""
        return asdict(self)


class _Series:
    """One metric in one place: its recent past, and whether an alarm is up."""

    def __init__(self, rule: Rule, patience: int, min_history: int) -> None:
        self.rule, self.patience, self.min_history = rule, patience, min_history
        self.window: deque[float] = deque(maxlen=_WINDOW)
        self.count = 0  # consecutive readings on the other side of the line
        self.alarm: Alarm | None = None
        self.line = 0.0

    def take(self, where: str, value: float, twin: float | None, step: int) -> Alarm | None:
        """One more reading; returns an alarm that was raised or withdrawn by it."""
        x = self._scaled(value)
        if x is None:
            return None
        if self.alarm is not None:
            return self._watch(x, step)
        found = self._worse_than(x, twin)
        if found is None:
            self.count = 0
            self.window.append(x)
            return None
        self.count += 1
        if self.count < (1 if self.rule.at_once else self.patience):
            return None
        against, reference, self.line = found
        self.count = 0
        self.alarm = Alarm(
            self.rule.mechanism, self.rule.metric, where, value, self._unscaled(reference), against, step
        )
        return self.alarm

    def _watch(self, x: float, step: int) -> Alarm | None:
        """Whether the alarm can be withdrawn: half way back to the reference, for as many readings as it took."""
        assert self.alarm is not None
        reference = self._scaled(self.alarm.reference)
        back = reference is not None and self._sign * (x - reference) <= self.line / 2
        self.count = self.count + 1 if back else 0
        if self.count < self.patience:
            return None
        done, self.alarm, self.count = replace(self.alarm, cleared=step), None, 0
        self.window.append(x)
        return done

    def _worse_than(self, x: float, twin: float | None) -> tuple[Against, float, float] | None:
        """What it is worse than, the value of that, and by how much it had to be."""
        rule = self.rule
        if rule.change is not None and rule.at_once:
            return ("history", 0.0, rule.change) if x > rule.change else None
        if rule.change is not None and len(self.window) >= self.min_history:
            middle = statistics.median(self.window)
            spread = _EITHER_SIDE * statistics.median(abs(entry - middle) for entry in self.window)
            line = max(self._margin(rule.change), _SPREADS * spread)
            if self._sign * (x - middle) > line:
                return "history", middle, line
        fresh = None if twin is None else self._scaled(twin)
        if rule.level is not None and fresh is not None:
            line = self._margin(rule.level)
            if self._sign * (x - fresh) > line:
                return "fresh twin", fresh, line
        return None

    @property
    def _sign(self) -> int:
        return 1 if self.rule.worse == "high" else -1

    def _margin(self, size: float) -> float:
        return math.log(size) if self.rule.is_factor else size

    def _scaled(self, value: float) -> float | None:
        if not math.isfinite(value):
            return None  # no verdict: ``non_finite_fraction`` says what is wrong
        return math.log(max(value, 1e-30)) if self.rule.is_factor else value

    def _unscaled(self, x: float) -> float:
        return math.exp(x) if self.rule.is_factor else x

    def state_dict(self) -> dict[str, Any]:
        return {
            "window": list(self.window),
            "count": self.count,
            "line": self.line,
            "alarm": None if self.alarm is None else self.alarm.to_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.window = deque(state["window"], maxlen=_WINDOW)
        self.count, self.line = state["count"], state["line"]
        self.alarm = None if state["alarm"] is None else Alarm(**state["alarm"])


class Alarms:
    """Watches all metrics that speak for a mechanism.

    An alarm is raised when ``patience`` readings of the metric in a row are worse than the line, and withdrawn when as
    many in a row are at most half as far from the reference. Readings beyond the line do not enter the history that
    they are compared with, so that a change does not become the new normal.

    Args:
        patience: Readings in a row.
        min_history: Readings before a metric's own history counts.

    Attributes:
        log: The latest alarms that were raised or withdrawn, in order; at most 1,000.

    Example:
        >>> alarms = Alarms(patience=2, min_history=3)
        >>> for step, dead in enumerate([0.0, 0.0, 0.1, 0.6, 0.6, 0.6, 0.0, 0.0]):
        ...     for alarm in alarms.take("dead_fraction", "fc1", dead, None, step):
        ...         print(alarm.mechanism, alarm.where, alarm.value, alarm.step, alarm.cleared)
        dead_units fc1 0.6 4 None
        dead_units fc1 0.6 4 7
    """

    def __init__(self, patience: int = 2, min_history: int = 8) -> None:
        self.patience, self.min_history = patience, min_history
        self.log: deque[Alarm] = deque(maxlen=1000)
        self._series: dict[tuple[str, str], _Series] = {}

    @property
    def active(self) -> tuple[Alarm, ...]:
        """The alarms that are up, in the order in which they were raised."""
        return tuple(sorted((s.alarm for s in self._series.values() if s.alarm is not None), key=lambda a: a.step))

    def take_all(
        self, values: Mapping[str, Mapping[str, float]], twin: Callable[[str, str], float | None], step: int
    ) -> list[Alarm]:
        """All metrics of one reading.

        Args:
            values: Metric to place to value.
            twin: The value of a metric in a place of a fresh twin, if it is known.
            step: Optimizer steps done.

        Returns:
            The alarms that it raised or withdrew.
        """
        told: list[Alarm] = []
        for rule in RULES:
            for where, value in values.get(rule.metric, {}).items():
                less = values.get(rule.besides, {}).get(where)
                fresh = None if rule.level is None else twin(rule.metric, where)
                if less is not None:
                    value -= less
                    less = twin(rule.besides, where)
                    fresh = None if fresh is None or less is None else fresh - less
                told += self.take(rule.metric, where, value, fresh, step)
        return told

    def take(self, metric: str, where: str, value: float, twin: float | None, step: int) -> list[Alarm]:
        """One more reading of a metric in one place.

        Args:
            metric: A metric that has a rule.
            where: The place.
            value: What was read.
            twin: The value in a fresh twin, if it is known.
            step: Optimizer steps done.

        Returns:
            The alarm that it raised or withdrew, if any.
        """
        rule = _RULES[metric]
        series = self._series.get((metric, where))
        if series is None:
            series = self._series[metric, where] = _Series(rule, self.patience, self.min_history)
        alarm = series.take(where, value, twin, step)
        if alarm is None:
            return []
        self.log.append(alarm)
        return [alarm]

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers and strings."""
        return {
            "log": [alarm.to_dict() for alarm in self.log],
            "series": [[metric, where, item.state_dict()] for (metric, where), item in self._series.items()],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        self.log = deque((Alarm(**item) for item in state["log"]), maxlen=1000)
        self._series = {}
        for metric, where, item in state["series"]:
            if metric in _RULES:
                series = self._series[metric, where] = _Series(_RULES[metric], self.patience, self.min_history)
                series.load_state_dict(item)
