"""Everything that one stream's records say of each method: score, plasticity, stability, time, cost."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from pliant.intervals import Estimate, estimate, first_last, paired_difference
from pliant.report.metrics import Metric
from pliant.report.summary import TRANSFER, WINDOW, Method, Stream
from pliant.statistics import (
    Times,
    area,
    average,
    cost_per_gain,
    holm,
    p_value,
    recent_transfer,
    time_to_loss,
    time_to_threshold,
    times,
)

__all__ = ["NUM_RECENT", "Standing", "averages", "passes", "ranked", "seconds_per_task", "standings"]

NUM_RECENT = 5
"""How many earlier tasks the series of earlier tasks cover, as the benchmarks write them."""

DIVERGED = "diverged"
"""``meta["failure"]`` of a run whose numbers ran away: an outcome. Other failures say nothing of the method."""


@dataclass(frozen=True)
class Standing:
    """One method on one stream, in the stream's score; differences keep the score's own sign.

    What the records do not allow to say is ``None``, never a number.

    Args:
        method: The method.
        metric: The score.
        average: Mean over all tasks.
        gain: That of the method minus no protection, on the same seeds.
        p: P-value of the gain.
        p_adjusted: The same, corrected for all methods of the stream that are compared so.
        change: Last tasks minus first.
        fresh_area: Mean over all tasks of the method minus a fresh network per task, on the same seeds.
        fresh_last: The same over the last tasks.
        onset: After how many tasks it falls behind the fresh network on the same seed for good.
        reached: After how many tasks the mean over the last few reaches the threshold that was asked for.
        past: Score on earlier tasks, mean over the last task boundaries.
        transfer: Backward transfer over recent tasks there: negative is forgetting.
        seconds: Seconds per task, as measured.
        passes: Gradient evaluations per new example, by the configuration.
        price: Extra seconds per task for one unit of gain (a point, where the score is shown in percent).
        num_failed: Seeds that failed.
    """

    method: Method
    metric: Metric
    average: Estimate
    gain: Estimate | None
    p: float
    p_adjusted: float
    change: Estimate
    fresh_area: Estimate | None
    fresh_last: Estimate | None
    onset: Times | None
    reached: Times | None
    past: Estimate | None
    transfer: Estimate | None
    seconds: Estimate | None
    passes: float | None
    price: Estimate | None
    num_failed: int


def standings(stream: Stream, threshold: float | None = None) -> list[Standing]:
    """One standing per method, in the order of the stream; none where nothing was measured.

    Args:
        stream: From :func:`pliant.report.summarise`.
        threshold: The level, in the score's own unit, for :attr:`Standing.reached`.
    """
    metric = stream.score
    if metric is None:
        return []
    fresh = next((m for m in stream.methods if m.is_reference), None)
    found = [_standing(stream, method, metric, fresh, threshold) for method in stream.methods]
    adjusted = holm([standing.p for standing in found])
    return [replace(standing, p_adjusted=p) for standing, p in zip(found, adjusted, strict=True)]


def averages(method: Method, metric: str) -> dict[int, float]:
    """Seed to the mean over all tasks; NaN where a value is not finite."""
    return {seed: average(curve) for seed, curve in method.curves(metric).items()}


def ranked(method: Method, metric: Metric) -> dict[int, float]:
    """Seed to score for comparisons by rank: larger is better, and a run that diverged is the worst, ``-inf``.

    A seed that failed in another way (a full disk, a kill) is left out: that was no deed of the method.
    """
    scores = {seed: metric.sign * value for seed, value in averages(method, metric.name).items()}
    scores = {seed: -math.inf if math.isnan(value) else value for seed, value in scores.items()}
    return scores | {r.seed: -math.inf for r in method.failed if r.meta.get("failure") == DIVERGED}


def passes(experiment: Mapping[str, Any]) -> float | None:
    """Gradient evaluations per new example: passes over a task's data, times one plus the replayed share.

    ``None`` where the configuration does not say it. What methods compute besides (a penalty, a second network) is no
    part of it; the measured seconds have it.

    Example:
        >>> passes({"stream": {"num_epochs": 2}, "methods": [{"name": "experience_replay", "ratio": 0.5}]})
        3.0
    """
    stream = experiment.get("stream")
    epochs = stream.get("num_epochs") if isinstance(stream, dict) else None
    if isinstance(epochs, bool) or not isinstance(epochs, (int, float)):
        return None
    methods = experiment.get("methods")
    replays = [m for m in methods if isinstance(m, dict) and "replay" in str(m.get("name"))] if methods else []
    ratios = [m.get("ratio") for m in replays]
    if any(isinstance(ratio, bool) or not isinstance(ratio, (int, float)) for ratio in ratios):
        return None
    return float(epochs) * (1.0 + math.fsum(float(str(ratio)) for ratio in ratios))


def seconds_per_task(method: Method) -> Estimate | None:
    """Measured seconds per task and seed; of seeds that trained as one stack, each has its share."""
    values = []
    for record in method.complete:
        seconds, stacked = record.meta.get("seconds"), record.meta.get("num_stacked", 1)
        if isinstance(seconds, (int, float)) and isinstance(stacked, int) and stacked > 0 and record.num_tasks:
            values.append(float(seconds) / stacked / record.num_tasks)
    return estimate(values) if values else None


def _standing(
    stream: Stream, method: Method, metric: Metric, fresh: Method | None, threshold: float | None
) -> Standing:
    mine = averages(method, metric.name)
    base = stream.baseline_of(method)
    gain = None if base is None else paired_difference(mine, averages(base, metric.name))
    against_fresh = None if method.is_reference else fresh
    reached = None
    if threshold is not None:
        reached = times(
            time_to_threshold([metric.sign * v for v in curve], metric.sign * threshold, window=_window(curve))
            for curve in method.curves(metric.name).values()
        )
    seconds = seconds_per_task(method)
    past, transfer = _stability(method, metric)
    return Standing(
        method=method,
        metric=metric,
        average=estimate(mine.values()),
        gain=gain,
        p=math.nan if gain is None else p_value(gain),
        p_adjusted=math.nan,
        change=estimate(first_last(curve, WINDOW).change for curve in method.curves(metric.name).values()),
        **_against_fresh(method, metric, against_fresh),
        reached=reached,
        past=past,
        transfer=transfer,
        seconds=seconds,
        passes=passes(method.experiment),
        price=_price(seconds, None if base is None else seconds_per_task(base), gain, metric),
        num_failed=len(method.failed),
    )


def _against_fresh(method: Method, metric: Metric, fresh: Method | None) -> dict[str, Any]:
    none: dict[str, Any] = {"fresh_area": None, "fresh_last": None, "onset": None}
    if fresh is None:
        return none
    mine, theirs = method.curves(metric.name), fresh.curves(metric.name)
    both = sorted(seed for seed in mine.keys() & theirs.keys() if len(mine[seed]) == len(theirs[seed]))
    if not both:
        return none
    lonely = len(mine.keys() | theirs.keys()) - len(both)
    areas = estimate(area(mine[seed], theirs[seed]) for seed in both)
    onsets = [
        time_to_loss(
            [metric.sign * v for v in mine[seed]],
            [metric.sign * v for v in theirs[seed]],
            window=_window(mine[seed]),
        )
        for seed in both
    ]
    return {
        "fresh_area": Estimate(areas.mean, areas.low, areas.high, areas.num, areas.num_excluded + lonely),
        "fresh_last": paired_difference(
            {seed: first_last(curve, WINDOW).last for seed, curve in mine.items()},
            {seed: first_last(curve, WINDOW).last for seed, curve in theirs.items()},
        ),
        "onset": times(onsets),
    }


def _window(series: Any) -> int:
    """As many tasks as the headline averages, or what there is."""
    return max(1, min(WINDOW, len(series) // 2))


def _stability(method: Method, metric: Metric) -> tuple[Estimate | None, Estimate | None]:
    """Score on earlier tasks and backward transfer, over the last boundaries; the first task has nothing before it.

    Backward transfer as it was recorded; where it was not, from the score of each task right after it was learnt.
    """
    score = metric.name.removeprefix("online_")
    pasts, owns = method.curves(f"past_{score}"), method.curves(f"test_{score}")
    pasts = {seed: curve for seed, curve in pasts.items() if len(curve) > 1}
    if not pasts:
        return None, None
    past = estimate(average(curve[1:][-WINDOW:]) for curve in pasts.values())
    changes = {seed: curve[1:] for seed, curve in method.curves(TRANSFER).items()}
    if not changes:
        both = {seed: (owns[seed], curve) for seed, curve in pasts.items() if seed in owns}
        changes = {seed: recent_transfer(own, curve, NUM_RECENT)[1:] for seed, (own, curve) in both.items()}
    return past, estimate(average(change[-WINDOW:]) for change in changes.values()) if changes else None


def _price(
    seconds: Estimate | None, base_seconds: Estimate | None, gain: Estimate | None, metric: Metric
) -> Estimate | None:
    if seconds is None or base_seconds is None or gain is None:
        return None
    unit = metric.sign * (100 if metric.percent else 1)
    low, high = sorted((unit * gain.low, unit * gain.high))
    return cost_per_gain(
        seconds.mean, base_seconds.mean, Estimate(unit * gain.mean, low, high, gain.num, gain.num_excluded)
    )
