"""What the committed records of the leaderboard say: runs, differences, and claims held against them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.leaderboard_claims import Claim
from benchmarks.leaderboard_settings import base, streams, ways
from pliant.intervals import Estimate, estimate, first_last, paired_difference
from pliant.records import Record, read_record, record_path
from pliant.report.metrics import Metric, metric_info
from pliant.report.standings import DIVERGED
from pliant.statistics import best_of_k, holm, p_value

__all__ = [
    "BASELINE",
    "FRESH",
    "WINDOW",
    "Run",
    "Runs",
    "curve",
    "gains",
    "merit",
    "outcome",
    "read",
    "scaled",
    "verdict",
]

WINDOW = 10
BASELINE, FRESH = "none", "fresh_start"
HOLDS = 0.02
"""A score that falls by less than this counts as held: two points of accuracy."""


@dataclass(frozen=True)
class Run:
    """What became of one way of training on one stream; values by seed, those of failed seeds left out.

    Attributes:
        metric: The stream's score.
        setting: What was chosen, as text.
        trials: The score of each setting on the tuning seeds, in order; None where a seed failed and lower is better.
        whole: Mean score over all tasks.
        first: Over the first tasks.
        last: Over the last tasks.
        best: The best mean over so many tasks in a row, of the mean over seeds.
        held_out: Held-out score over the last tasks; empty if the stream has none.
        dormant: Share of dormant units over the last tasks.
        past: Score on earlier tasks at the last boundaries; empty where they mean nothing any more.
        num_diverged: Seeds that diverged.
        num_failed: Seeds that failed, diverged ones included.
    """

    metric: Metric
    setting: str
    trials: tuple[float | None, ...]
    whole: Mapping[int, float]
    first: Mapping[int, float]
    last: Mapping[int, float]
    best: float
    held_out: Mapping[int, float]
    dormant: Mapping[int, float]
    past: Mapping[int, float]
    num_diverged: int
    num_failed: int

    @property
    def sign(self) -> float:
        """1 where more of the score is better, else -1."""
        return self.metric.sign

    @property
    def change(self) -> dict[int, float]:
        """Last tasks minus first, by seed."""
        return {seed: self.last[seed] - self.first[seed] for seed in self.last}


Runs = Mapping[str, Mapping[str, Run]]
"""Stream to way of training to its run."""


# ---- reading ----
def read(results: Path, part: str, num_seeds: int = 10) -> dict[str, dict[str, Run]]:
    """All finished runs of a part."""
    found: dict[str, dict[str, Run]] = {}
    for stream in streams(part):
        path = results / "tuning" / f"{stream}.json"
        if not path.exists():
            continue
        methods = json.loads(path.read_text(encoding="utf-8"))["methods"]
        for way in [name for name in ways(part) if name in methods]:
            entry = methods[way]
            paths = [record_path(results / stream, entry["chosen"], seed) for seed in range(num_seeds)]
            found.setdefault(stream, {})[way] = _run(stream, way, entry, [read_record(item) for item in paths])
    return found


def _run(stream: str, way: str, entry: Mapping[str, Any], records: Sequence[Record]) -> Run:
    complete = {record.seed: record for record in records if record.status == "complete"}
    names = {name for record in complete.values() for name in record.series}
    score = next((name for name in sorted(names) if name.startswith("online_")), "online_accuracy")
    kind = score.removeprefix("online_")

    def ends(name: str, value: Callable[[Any], float]) -> dict[int, float]:
        return {
            seed: value(first_last(record.series[name], WINDOW))
            for seed, record in complete.items()
            if name in record.series
        }

    failures = [record.meta.get("failure") for record in records if record.status != "complete"]
    return Run(
        metric=metric_info(score),
        setting=_setting(stream, way, entry["experiment"]),
        trials=tuple(trial["score"] for trial in entry["trials"]),
        whole={seed: sum(record.series[score]) / len(record.series[score]) for seed, record in complete.items()},
        first=ends(score, lambda found: found.first),
        last=ends(score, lambda found: found.last),
        best=_best([record.series[score] for record in complete.values()], metric_info(score)),
        held_out=ends(f"test_{kind}", lambda found: found.last),
        dormant=ends("dormant_fraction", lambda found: found.last),
        past=ends(f"past_{kind}", lambda found: found.last),
        num_diverged=sum(failure == DIVERGED for failure in failures),
        num_failed=len(failures),
    )


def _best(curves: Sequence[Sequence[float]], metric: Metric) -> float:
    """Of the mean curve, the best mean over a window."""
    if not curves:
        return math.nan
    mean = [sum(values) / len(values) for values in zip(*curves, strict=True)]
    size = min(WINDOW, len(mean) // 2) or 1
    windows = [sum(mean[start : start + size]) / size for start in range(len(mean) - size + 1)]
    return max(windows, key=lambda value: metric.sign * value)


def _setting(stream: str, way: str, experiment: Mapping[str, Any]) -> str:
    """What differs from the start of the search: the step size, and the options of the method."""
    start = json.loads(json.dumps(base(stream, way).to_dict()))  # as the other was: with lists for tuples
    found = [f"step size {experiment['optimizer']['lr']:.3g}"]
    pairs = [(experiment["optimizer"], start["optimizer"])]
    pairs += list(zip(experiment["methods"], start["methods"], strict=True))
    for mine, theirs in pairs:
        for key, value in mine.items():
            if key != "lr" and value != theirs.get(key):
                found.append(f"{key} {value:.3g}" if isinstance(value, float) else f"{key} {value}")
    return ", ".join(found)


# ---- what the numbers say ----
def merit(run: Run, values: Mapping[int, float], num_seeds: int) -> dict[int, float]:
    """Scores such that more is better; a seed that diverged is worse than every other."""
    found = {seed: run.sign * value for seed, value in values.items()}
    if run.num_diverged:
        found |= {seed: -math.inf for seed in range(num_seeds) if seed not in values}
    return found


def gains(there: Mapping[str, Run]) -> dict[str, tuple[Estimate, float]]:
    """By way: the paired difference to no protection over the last tasks, better being more, and its corrected p."""
    plain = there.get(BASELINE)
    if plain is None:
        return {}
    names = [name for name in there if name not in (BASELINE, FRESH)]
    found = [scaled(paired_difference(there[name].last, plain.last), plain.sign) for name in names]
    return dict(zip(names, zip(found, holm([p_value(item) for item in found]), strict=True), strict=True))


def scaled(value: Estimate, sign: float) -> Estimate:
    low, high = sorted((sign * value.low, sign * value.high))
    return Estimate(sign * value.mean, low, high, value.num, value.num_excluded)


def outcome(claim: Claim, runs: Runs) -> dict[str, tuple[str, Estimate]]:
    """By stream where it could be looked at: ``"yes"``, ``"opposite"`` or ``"open"``, and the number that says so.

    The number is such that more of it speaks for the claim.
    """
    found = {}
    for stream in claim.streams:
        there = runs.get(stream, {})
        mine, other = there.get(claim.way), there.get(claim.other)
        if mine is None or (claim.other and other is None):
            continue
        margin = 0.0
        if claim.rule in ("falls", "holds"):
            sign = mine.sign * (1 if claim.rule == "holds" else -1)
            number = scaled(estimate(mine.change.values()), sign)
            margin = HOLDS if claim.rule == "holds" else 0.0
        elif claim.rule == "beats":
            assert other is not None
            number = scaled(paired_difference(mine.last, other.last), mine.sign)
        else:
            assert other is not None
            number = scaled(paired_difference(mine.dormant, other.dormant), -1.0)
        word = "yes" if number.low > -margin else "opposite" if number.high < 0 else "open"
        found[stream] = (word, number)
    return found


def verdict(found: Mapping[str, tuple[str, Estimate]]) -> str:
    """One or two words for all streams."""
    words = {word for word, _ in found.values()}
    if not words:
        return "not run"
    if words == {"yes"}:
        return "confirmed"
    if words == {"opposite"}:
        return "contradicted"
    if "opposite" in words:
        return "mixed" if "yes" in words else "rather contradicted"
    return "partly" if "yes" in words else "open"


def curve(run: Run, there: Mapping[str, Run]) -> list[Estimate]:
    """The expected score of the best of k settings on the tuning seeds, with quartiles over the choices of k.

    A setting without a score has the worst that occurs on the stream.
    """
    scores = [run.sign * value for other in there.values() for value in other.trials if value is not None]
    worst = min(scores, default=0.0)
    found = best_of_k([worst if value is None else run.sign * value for value in run.trials])
    return [scaled(Estimate(best.mean, best.low, best.high, len(run.trials)), run.sign) for best in found]
