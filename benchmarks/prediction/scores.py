"""How well one series of numbers predicts another: rank correlation, AUROC, lead time, intervals over seeds."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

__all__ = [
    "Interval",
    "Lead",
    "auroc_over_seeds",
    "lead_times",
    "mean_over_seeds",
    "partial_rank_correlation",
    "rank_correlation",
    "ranks",
]


class Interval(NamedTuple):
    """A mean over seeds and its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float


class Lead(NamedTuple):
    """Alarms of one metric in the runs of one stream.

    Attributes:
        median: Median over the runs with an onset of how many tasks before it the alarm came; a run without an alarm
            counts as minus infinity.
        caught: Runs with an alarm at or before the onset.
        with_onset: Runs with an onset.
        false_alarms: Runs without an onset and with an alarm.
    """

    median: float
    caught: int
    with_onset: int
    false_alarms: int


def ranks(values: Sequence[float]) -> np.ndarray:
    """Ranks from 0, ties in the middle of theirs.

    >>> ranks([3.0, 1.0, 3.0]).tolist()
    [1.5, 0.0, 1.5]
    """
    array = np.asarray(values, dtype=float)
    below = (array[None, :] < array[:, None]).sum(1)
    return below + ((array[None, :] == array[:, None]).sum(1) - 1) / 2


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    if not len(a):
        return math.nan
    a, b = a - a.mean(), b - b.mean()
    size = math.sqrt((a @ a) * (b @ b))
    return float(a @ b / size) if size > 1e-12 else 0.0


def rank_correlation(a: Sequence[float], b: Sequence[float]) -> float:
    """Spearman's; 0 where one of them is constant: it predicts nothing; NaN for nothing.

    >>> rank_correlation([1, 2, 3], [1, 10, 100]), rank_correlation([1, 1, 1], [1, 2, 3])
    (1.0, 0.0)
    """
    return _correlation(ranks(a), ranks(b))


def partial_rank_correlation(a: Sequence[float], b: Sequence[float], given: Sequence[float]) -> float:
    """Spearman's of what is left of both after a linear fit of their ranks to those of a third.

    >>> time = [0, 1, 2, 3, 4]
    >>> partial_rank_correlation([1, 2, 3, 4, 5], [2, 1, 4, 3, 5], time)           # nothing but the clock
    0.0
    """
    if not len(a):
        return math.nan
    clock = ranks(given)
    clock = clock - clock.mean()
    left = []
    for values in (a, b):
        rank = ranks(values)
        rank = rank - rank.mean()
        left.append(rank - clock * (rank @ clock) / (clock @ clock))
    return _correlation(*left)


@functools.cache
def _draws(num_seeds: int, num: int = 2000) -> np.ndarray:
    """How often each seed is drawn, ``[num, seeds]``: always the same draws, with replacement."""
    chosen = np.random.default_rng(0).integers(0, num_seeds, (num, num_seeds))
    return (chosen[:, :, None] == np.arange(num_seeds)).sum(1).astype(float)


def _interval(value: float, values: np.ndarray) -> Interval:
    finite = values[np.isfinite(values)]
    low, high = np.quantile(finite, [0.025, 0.975]) if len(finite) else (math.nan, math.nan)
    return Interval(float(value), float(low), float(high))


def mean_over_seeds(values: Sequence[float]) -> Interval:
    """Mean of one value per seed, and the 95 % bootstrap interval.

    >>> mean_over_seeds([1.0, 1.0])
    Interval(mean=1.0, low=1.0, high=1.0)
    """
    array = np.asarray(values, dtype=float)
    return _interval(array.mean(), _draws(len(array)) @ array / len(array))


def auroc_over_seeds(scores: Sequence[Sequence[float]], events: Sequence[Sequence[bool]]) -> Interval:
    """AUROC over the boundaries of all seeds together, and its 95 % bootstrap interval over seeds.

    Pairs of boundaries are counted once, by the seeds that they belong to; a draw of seeds only weighs the counts.

    >>> auroc_over_seeds([[0.1, 0.4], [0.35, 0.8]], [[False, False], [True, True]]).mean
    0.75
    """
    yes, no = (
        [
            np.asarray([s for s, e in zip(*pair, strict=True) if e is kind], dtype=float)
            for pair in zip(scores, events, strict=True)
        ]
        for kind in (True, False)
    )
    wins = np.array([[float((a[:, None] > b).sum() + 0.5 * (a[:, None] == b).sum()) for b in no] for a in yes])
    num_yes, num_no = (np.array([len(part) for part in side], dtype=float) for side in (yes, no))

    def of(counts: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore"):
            return ((counts @ wins) * counts).sum(-1) / ((counts @ num_yes) * (counts @ num_no))

    return _interval(float(of(np.ones(len(wins)))), of(_draws(len(wins))))


def onset_of(gaps: Sequence[float], threshold: float) -> int | None:
    """The first of two boundaries in a row with a gap above the threshold."""
    above = [gap > threshold for gap in gaps]
    return next((i for i in range(len(above) - 1) if above[i] and above[i + 1]), None)


def lead_times(
    scores: Sequence[Sequence[float]], gaps: Sequence[Sequence[float]], threshold: float, early: int
) -> Lead:
    """Alarms with a threshold from the other runs: the value that 5 % of their boundaries long before the onset exceed.

    Args:
        scores: One series per run, higher is worse.
        gaps: The same runs' gaps.
        threshold: Above which a gap is an event.
        early: Long before is so many tasks or more; in runs without an onset, all of it.
    """
    onsets = [onset_of(series, threshold) for series in gaps]
    found: list[float] = []
    false_alarms = 0
    for run, onset in enumerate(onsets):
        calm = [
            value
            for other, series in enumerate(scores)
            if other != run
            for value in (series if onsets[other] is None else series[: max(1, onsets[other] - early)])
        ]
        level = float(np.quantile(calm, 0.95)) if calm else math.inf
        alarm = next((i for i, value in enumerate(scores[run]) if value > level), None)
        if onset is None:
            false_alarms += alarm is not None
        else:
            found.append(-math.inf if alarm is None or alarm > onset else float(onset - alarm))
    caught = sum(math.isfinite(value) for value in found)
    median = float(np.sort(found)[len(found) // 2]) if found else math.nan
    return Lead(median, caught, len(found), false_alarms)
