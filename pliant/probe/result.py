"""What a probe found: curves, gaps with their intervals, and a verdict that claims no more than they do."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any, Literal

from pliant.intervals import Estimate, estimate, paired_difference
from pliant.probe.learning import Run
from pliant.records import Record, experiment_id
from pliant.trainability import Trainability, tau_trainability

__all__ = ["Outcome", "ProbeResult", "StepsToThreshold", "final_value", "interval_text"]

Outcome = Literal["worse", "better", "no difference shown", "no verdict"]

_LAST = 10  # the final value is the mean of the last tenth of the curve
_PROGRESS = 0.9  # the default threshold is where fresh networks have made nine tenths of their progress


@dataclass(frozen=True)
class StepsToThreshold:
    r"""Steps until the loss is at the threshold or below, :math:`T_\tau`, of aged and fresh networks.

    Attributes:
        thresholds: :math:`\tau` of each seed.
        aged: Steps of the aged network for each seed; ``None``: not reached in the budget (censored).
        fresh: Of the fresh twins, seed by seed.
        budget: The largest number of steps that could have been seen.
        delay: Mean over seeds of how many steps later the aged network is there, each run counted up to the budget.
        is_lower_bound: Whether an aged run was censored in a seed that counts, so that the true delay is larger.
        is_upper_bound: Whether a fresh run was; both: the delay can be either.

    Seeds in which nobody reached the threshold say nothing about a delay: they are left out of it, and counted in
    ``delay.num_excluded``.
    """

    thresholds: tuple[float, ...]
    aged: tuple[int | None, ...]
    fresh: tuple[int | None, ...]
    budget: int
    delay: Estimate
    is_lower_bound: bool
    is_upper_bound: bool


@dataclass(frozen=True)
class ProbeResult:
    """Made by :func:`~pliant.probe.probe`. Differences are positive where the aged network is worse.

    All estimates are means over seeds with 95 % intervals. They speak about this network, on tasks and fresh twins
    drawn like these; they do not speak about other networks trained like it.

    Attributes:
        runs: All curves.
        config: What was asked for, JSON-able.
        threshold: The loss that counts as learnt, or ``None``: for each seed, where its fresh twins have made nine
            tenths of their progress.

    Example:
        >>> import torch, pliant
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> from pliant.probe import RandomLabels
        >>> result = pliant.probe(
        ...     model, RandomLabels(inputs=torch.randn(16, 4), num_classes=2), steps=5, seeds=2,
        ...     optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1),
        ... )
        >>> result.outcome in ("worse", "better", "no difference shown", "no verdict"), len(result.config) > 0
        (True, True)
    """

    runs: tuple[Run, ...] = field(repr=False)
    config: Mapping[str, Any] = field(repr=False)
    threshold: float | None = None

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds."""
        return tuple(dict.fromkeys(run.seed for run in self.runs))

    @cached_property
    def gap(self) -> Estimate:
        """Final loss, aged minus fresh; the mean over the last tenth of the curves counts as final."""
        return paired_difference(*self._both(lambda run: final_value(run.loss)))

    @cached_property
    def accuracy_gap(self) -> Estimate | None:
        """Final accuracy, fresh minus aged, ``None`` where the task has none."""
        if any(run.accuracy is None for run in self.runs):
            return None
        aged, fresh = self._both(lambda run: final_value(run.accuracy or ()))
        return paired_difference(fresh, aged)

    @cached_property
    def area(self) -> Estimate:
        """Area between the loss curves, aged minus fresh, divided by their length: the mean excess loss on the way."""
        return paired_difference(*self._both(lambda run: _mean_height(run.steps, run.loss)))

    @cached_property
    def progress(self) -> Estimate:
        """By how much the loss of the fresh networks fell; where that is nothing, the probe cannot tell anything."""
        return estimate(self._both(lambda run: run.loss[0] - final_value(run.loss))[1].values())

    @cached_property
    def spread(self) -> float:
        """How much fresh networks differ from each other: standard deviation of their final loss on one task.

        Pooled over seeds; NaN with one twin per seed. A gap that is small beside it is one that a fresh network may
        have, too: with enough seeds, every network is shown to be a little better or worse than the mean of others.
        """
        groups = [[final_value(run.loss) for run in self._of("fresh", seed)] for seed in self.seeds]
        if len(groups[0]) < 2:
            return math.nan
        return math.sqrt(_mean([statistics.variance(values) for values in groups if all(map(math.isfinite, values))]))

    def trainability(self, tau: float, network: Literal["aged", "fresh"] = "aged") -> tuple[Trainability, ...]:
        r""":math:`\tau`-trainability in the budget of the probe, of every run of the aged or of the fresh networks.

        Args:
            tau: The loss that counts as learnt.
            network: Whose.

        Returns:
            One for each run, in the order of :attr:`runs`; see :func:`~pliant.trainability.tau_trainability`.
        """
        found = [run for run in self.runs if run.network == network]
        return tuple(tau_trainability(run.loss, tau, steps=run.steps) for run in found)

    @cached_property
    def to_threshold(self) -> StepsToThreshold:
        """Steps until the task is learnt."""
        first = self._both(lambda run: run.loss[0])[1]
        final = self._both(lambda run: final_value(run.loss))[1]
        aged: list[int | None] = []
        fresh: list[int | None] = []
        delays: list[float] = []
        thresholds: list[float] = []
        censored = {"aged": False, "fresh": False}
        budget = self.runs[0].steps[-1]
        for seed in self.seeds:
            tau = self.threshold
            if tau is None:
                tau = final[seed] + (1 - _PROGRESS) * (first[seed] - final[seed])
            thresholds.append(tau)
            if not math.isfinite(tau):
                delays.append(math.nan)
                continue
            found = {
                network: [tau_trainability(run.loss, tau, steps=run.steps).steps for run in self._of(network, seed)]
                for network in ("aged", "fresh")
            }
            aged += found["aged"]
            fresh += found["fresh"]
            if all(step is None for steps in found.values() for step in steps):
                delays.append(math.nan)
                continue
            counted = {
                network: [budget if step is None else step for step in steps] for network, steps in found.items()
            }
            for network, steps in found.items():
                censored[network] |= None in steps
            delays.append(_mean(counted["aged"]) - _mean(counted["fresh"]))
        return StepsToThreshold(
            tuple(thresholds), tuple(aged), tuple(fresh), budget, estimate(delays), censored["aged"], censored["fresh"]
        )

    @property
    def outcome(self) -> Outcome:
        """The verdict in a word; it rests on :attr:`gap` alone, so that nobody picks among several differences."""
        if self._why_none():
            return "no verdict"
        if not self.gap.excludes_zero:
            return "no difference shown"
        return "worse" if self.gap.mean > 0 else "better"

    @property
    def verdict(self) -> str:
        """What the intervals allow to say, and nothing beyond."""
        if why := self._why_none():
            return f"No verdict: {why}"
        seeds = f"95 % interval, {self.gap.num} seeds"
        lost = self._diverged("aged")
        note = (
            f" The aged network diverged in {lost} of {len(self.seeds)} seeds, which are not counted." if lost else ""
        )
        if self.outcome == "no difference shown":
            text = (
                f"No difference shown: the final loss of the aged network minus that of fresh ones is "
                f"{interval_text(self.gap)} ({seeds}). Differences inside of that interval are not excluded."
            )
            if self.area.excludes_zero:
                word = "higher" if self.area.mean > 0 else "lower"
                text += f" On the way its loss was {word}, by {interval_text(self.area)} on average."
            return text + note
        word = "higher" if self.gap.mean > 0 else "lower"
        verb = "learns this kind of task worse than" if self.gap.mean > 0 else "learns this kind of task better than"
        low, high = sorted((abs(self.gap.low), abs(self.gap.high)))
        size = Estimate(abs(self.gap.mean), low, high, self.gap.num)
        if abs(self.gap.mean) < 2 * self.spread:
            note += f" Fresh networks differ from each other by as much (standard deviation {self.spread:.3g})."
        return f"The aged network {verb} fresh ones: its final loss is {word} by {interval_text(size)} ({seeds}).{note}"

    def minus(self, other: ProbeResult) -> Estimate:
        """Final loss of the aged network here minus there, paired by seed: what a change of the network did.

        Args:
            other: A probe with the same task, budget and seeds, for example of a rescaled network.

        Raises:
            ValueError: If task or budget differ.
        """
        mine, theirs = ({k: v for k, v in item.config.items() if k != "model"} for item in (self, other))
        if mine != theirs:
            raise ValueError(f"the probes differ in {sorted(k for k in mine if mine[k] != theirs.get(k))}")
        return paired_difference(
            self._both(lambda run: final_value(run.loss))[0], other._both(lambda run: final_value(run.loss))[0]
        )

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON data; numbers that JSON does not have become the strings ``"inf"`` and ``"nan"``."""
        summary = {
            "outcome": self.outcome,
            "verdict": self.verdict,
            "gap": asdict(self.gap),
            "accuracy_gap": None if self.accuracy_gap is None else asdict(self.accuracy_gap),
            "area": asdict(self.area),
            "progress": asdict(self.progress),
            "spread": self.spread,
            "to_threshold": asdict(self.to_threshold),
            "threshold": self.threshold,
            "config": dict(self.config),
            "runs": [asdict(run) for run in self.runs],
        }
        plain: dict[str, Any] = _jsonable(summary)
        return plain

    def records(self) -> list[Record]:
        """One record per seed, which the readers of results understand; series have one value per point of a curve."""
        config = _jsonable({"probe": dict(self.config), "threshold": self.threshold})
        name = experiment_id(config, "probe", "none")
        found = []
        for seed in self.seeds:
            series: dict[str, list[float]] = {"steps": [float(step) for step in self.runs[0].steps]}
            for run in self._runs_of(seed):
                key = run.network if run.twin is None else f"fresh_{run.twin}"
                series[f"{key}_loss"] = list(run.loss)
                if run.accuracy is not None:
                    series[f"{key}_accuracy"] = list(run.accuracy)
            found.append(Record(experiment=config, experiment_id=name, seed=seed, series=series))
        return found

    def __str__(self) -> str:
        """A table and the verdict."""
        rows = [("", "aged", "fresh", "aged worse by")]
        means = {key: [estimate(side.values()) for side in self._both(value)] for key, value in self._values().items()}
        gaps = {"final loss": self.gap, "final accuracy": self.accuracy_gap, "mean loss": self.area}
        for key, (aged, fresh) in means.items():
            gap = gaps[key]
            rows.append((key, f"{aged.mean:.4g}", f"{fresh.mean:.4g}", "" if gap is None else interval_text(gap)))
        found = self.to_threshold
        bound = {(True, False): "at least ", (False, True): "at most "}.get(
            (found.is_lower_bound, found.is_upper_bound), ""
        )
        rows.append(
            (
                f"steps to loss {_range(found.thresholds)}",
                _steps(found.aged, found.budget),
                _steps(found.fresh, found.budget),
                bound + interval_text(found.delay),
            )
        )
        widths = [max(len(row[column]) for row in rows) for column in range(4)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        twins = len(self._of("fresh", self.seeds[0]))
        head = (
            f"Probe: {self.config['task']['name']}, {found.budget} steps, {len(self.seeds)} seeds, "
            f"{twins} fresh twin{'s' if twins > 1 else ''} each; means over seeds, 95 % intervals"
        )
        return "\n".join([head, *lines, self.verdict])

    # ---- internals ----
    def _values(self) -> dict[str, Callable[[Run], float]]:
        values: dict[str, Callable[[Run], float]] = {"final loss": lambda run: final_value(run.loss)}
        if self.accuracy_gap is not None:
            values["final accuracy"] = lambda run: final_value(run.accuracy or ())
        return {**values, "mean loss": lambda run: _mean_height(run.steps, run.loss)}

    def _runs_of(self, seed: int) -> list[Run]:
        return [run for run in self.runs if run.seed == seed]

    def _of(self, network: str, seed: int) -> list[Run]:
        return [run for run in self.runs if run.seed == seed and run.network == network]

    def _both(self, value: Callable[[Run], float]) -> tuple[dict[int, float], dict[int, float]]:
        """Seed to value of the aged network, and to the mean value of its fresh twins."""
        aged, fresh = (
            {seed: _mean([value(run) for run in self._of(network, seed)]) for seed in self.seeds}
            for network in ("aged", "fresh")
        )
        return aged, fresh

    def _diverged(self, network: str) -> int:
        return len({run.seed for run in self.runs if run.network == network and run.diverged})

    def _why_none(self) -> str:
        if lost := self._diverged("fresh"):
            return (
                f"fresh networks diverged in {lost} of {len(self.seeds)} seeds, so this optimizer is no fair test; "
                "lower its learning rate."
            )
        if self._diverged("aged") == len(self.seeds):
            return (
                "the aged network diverged in every seed, and fresh ones in none. That is no difference in a final "
                "loss; try a lower learning rate."
            )
        if self.gap.num < 2:
            return f"there is no interval from {self.gap.num} seed{'s' if self.gap.num != 1 else ''}; use seeds=5."
        if not self.progress.low > 0:
            return (
                f"fresh networks have not been shown to learn this task in {self.runs[0].steps[-1]} steps (their loss "
                f"fell by {interval_text(self.progress)}); use more steps, another optimizer or an easier task."
            )
        return ""


def final_value(curve: Sequence[float]) -> float:
    """The mean of the last tenth of a curve, at least of its last point; NaN where one of them is not finite."""
    last = curve[-max(1, len(curve) // _LAST) :]
    return _mean(last)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if all(map(math.isfinite, values)) and len(values) else math.nan


def _mean_height(steps: Sequence[int], curve: Sequence[float]) -> float:
    """Trapezoids, so that points need not be equally far apart; a single point is its own height."""
    if len(curve) == 1:
        return curve[0]
    if not all(map(math.isfinite, curve)):
        return math.nan
    pairs = list(zip(steps, curve, strict=True))
    area = math.fsum((b - a) * (x + y) / 2 for (a, x), (b, y) in pairwise(pairs))
    return area / (steps[-1] - steps[0])


def interval_text(value: Estimate) -> str:
    """A mean with its interval, in words where there is none."""
    if value.num < 2:
        return f"{value.mean:.3g} (no interval)" if value.num else "unknown"
    return f"{value.mean:.3g} [{value.low:.3g}, {value.high:.3g}]"


def _range(values: Sequence[float]) -> str:
    known = sorted(value for value in values if math.isfinite(value))
    if not known:
        return "?"
    return f"{known[0]:.3g}" if known[0] == known[-1] else f"{known[0]:.3g}..{known[-1]:.3g}"


def _steps(steps: Sequence[int | None], budget: int) -> str:
    """The median, which a minority of censored runs does not blur."""
    if not steps:
        return "?"
    missing = sum(step is None for step in steps)
    ordered = sorted(budget + 1 if step is None else step for step in steps)
    middle = ordered[(len(ordered) - 1) // 2]
    text = f"> {budget}" if middle > budget else f"{middle}"
    return f"{text} (median; {missing} of {len(steps)} not reached)" if missing else f"{text} (median)"


def _jsonable(tree: Any) -> Any:
    if isinstance(tree, float) and not math.isfinite(tree):
        return str(tree)
    if isinstance(tree, Mapping):
        return {str(key): _jsonable(value) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [_jsonable(value) for value in tree]
    return tree
