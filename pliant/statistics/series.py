"""What one run's series over tasks comes to: average, area, time to a threshold, forgetting."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from pliant.trainability import tau_trainability

__all__ = [
    "Times",
    "area",
    "average",
    "backward_transfer",
    "forgetting",
    "recent_transfer",
    "time_to_loss",
    "time_to_threshold",
    "times",
]


def average(series: Sequence[float]) -> float:
    """The mean over all tasks; of an online accuracy, the field's average online accuracy.

    Args:
        series: One value per task.

    Returns:
        The mean; NaN for no tasks, and where one value is not finite: no verdict from broken data.

    Example:
        >>> average([0.5, 0.75, 1.0])
        0.75
    """
    if not len(series) or not all(map(math.isfinite, series)):
        return math.nan
    return math.fsum(series) / len(series)


def area(series: Sequence[float], reference: Sequence[float]) -> float:
    """The signed area between a series and a reference, per task: the mean of their differences.

    With a freshly initialised network's series on the same seed as the reference, it is what a network gains by what it
    has kept, or loses by what it has become, over the whole stream and not only at its end.

    Args:
        series: One value per task.
        reference: As many.

    Returns:
        The area per task; NaN where a value is not finite or there are no tasks.

    Raises:
        ValueError: If the lengths differ.

    Example:
        >>> area([0.9, 0.7, 0.2], [0.6, 0.6, 0.6])
        0.0
    """
    if len(series) != len(reference):
        raise ValueError(f"the series has {len(series)} tasks, the reference {len(reference)}")
    difference = average([a - b for a, b in zip(series, reference, strict=True)])
    return 0.0 if abs(difference) < 1e-15 else difference


def time_to_threshold(series: Sequence[float], threshold: float, *, window: int = 1) -> float:
    """How many tasks it takes until the mean over the last ``window`` of them is at least the threshold.

    For how long a network stays above a level, give both negated.

    Args:
        series: One value per task.
        threshold: The level, finite.
        window: Tasks that are averaged, ``>= 1``; one lucky task in ten is no arrival.

    Returns:
        The number of tasks seen by then, at least ``window``; infinite where it is never reached; NaN where it is not
        reached and a value is not finite, or there are fewer tasks than the window: then nobody knows.

    Raises:
        ValueError: For a window below 1 or a threshold that is not finite.

    Example:
        >>> series = [0.2, 0.9, 0.3, 0.8, 0.9]
        >>> time_to_threshold(series, 0.8), time_to_threshold(series, 0.8, window=2)
        (2.0, 5.0)
        >>> time_to_threshold([0.2, 0.3], 0.8)
        inf
    """
    if window < 1:
        raise ValueError(f"window must be at least 1, not {window}")
    if not math.isfinite(threshold):
        raise ValueError(f"threshold must be a finite number, not {threshold}")
    if len(series) < window:
        return math.nan
    ends = range(window, len(series) + 1)
    found = tau_trainability([-average(series[end - window : end]) for end in ends], -threshold, steps=ends)
    if found.steps is not None:
        return float(found.steps)
    return math.inf if all(map(math.isfinite, series)) else math.nan


def time_to_loss(series: Sequence[float], reference: Sequence[float], *, window: int = 1) -> float:
    """After how many tasks a series falls behind a reference for good: the mean over the last ``window`` tasks.

    A network that starts slowly, catches up and is never behind again has lost nothing; one that leads and then falls
    has, from the moment on at which it no longer comes back within the stream.

    Args:
        series: One value per task, larger is better.
        reference: As many, such as a freshly initialised network's on the same seed.
        window: Tasks that are averaged, ``>= 1``.

    Returns:
        The number of tasks seen by the first of the windows that are all behind, up to the end; ``window`` where it is
        never ahead; infinite where it is not behind at the end; NaN where a value is not finite, or there are fewer
        tasks than the window.

    Raises:
        ValueError: If the lengths differ, or for a window below 1.

    Example:
        >>> time_to_loss([0.1, 0.9, 0.4, 0.9, 0.3, 0.2], [0.5] * 6)
        5.0
        >>> time_to_loss([0.1, 0.9, 0.8], [0.5] * 3)
        inf
    """
    if window < 1 or len(series) != len(reference):
        raise ValueError(f"{len(series)} and {len(reference)} tasks, window {window}; equal lengths and 1 are needed")
    behind = [b - a for a, b in zip(series, reference, strict=True)]
    if len(series) < window or not all(map(math.isfinite, behind)):
        return math.nan
    # Rounding makes no loss of what is equal.
    tiny = 1e-12 * max(map(abs, (*series, *reference)))
    ends = range(window, len(series) + 1)
    ahead = [end for end in ends if average(behind[end - window : end]) <= tiny]
    if not ahead:
        return float(window)
    return math.inf if ahead[-1] == len(series) else float(ahead[-1] + 1)


class Times(NamedTuple):
    """Times of several seeds, some of which never arrived.

    Attributes:
        median: The median, infinite where at least half never arrived; NaN without any time.
        num_reached: How many arrived.
        num: How many there are, those that never arrived included.
        num_excluded: How many are not known.

    Example:
        >>> import math
        >>> from pliant.statistics import times
        >>> found = times([3.0, 5.0, math.inf])
        >>> found.median, found.num_reached, found.num
        (5.0, 2, 3)
    """

    median: float
    num_reached: int
    num: int
    num_excluded: int


def times(values: Iterable[float]) -> Times:
    """Summarise times that may be infinite; a mean over those that arrived would praise the method that rarely does.

    Args:
        values: Of :func:`time_to_threshold`, one per seed.

    Returns:
        The summary. Of an even number of seeds the later of the two in the middle is the median.

    Example:
        >>> times([3.0, math.inf, 5.0])
        Times(median=5.0, num_reached=2, num=3, num_excluded=0)
    """
    values = list(values)
    known = sorted(value for value in values if not math.isnan(value))
    median = known[len(known) // 2] if known else math.nan
    return Times(median, sum(map(math.isfinite, known)), len(known), len(values) - len(known))


def backward_transfer(scores: ArrayLike) -> float:
    r"""What learning later tasks did to earlier ones: negative where they were forgotten.

    .. math:: \text{BWT} = \frac{1}{T-1} \sum_{j<T} (R_{T,j} - R_{j,j})

    Args:
        scores: :math:`R`, ``[T, T]``: the score on task j after learning task i, in row i and column j.

    Returns:
        The mean change; NaN for fewer than two tasks, and where a score that it needs is not finite.

    Raises:
        ValueError: If the scores are not square.

    Source:
        Lopez-Paz and Ranzato (2017), Gradient Episodic Memory for Continual Learning, NeurIPS.

    Example:
        >>> round(backward_transfer([[0.9, 0.1], [0.6, 0.8]]), 6)
        -0.3
    """
    matrix = _square(scores)
    if len(matrix) < 2:
        return math.nan
    change = matrix[-1, :-1] - np.diag(matrix)[:-1]
    return float(change.mean()) if np.isfinite(change).all() else math.nan


def forgetting(scores: ArrayLike) -> float:
    r"""How far earlier tasks have fallen below the best that they ever were.

    .. math:: F = \frac{1}{T-1} \sum_{j<T} \left(\max_{i<T} R_{i,j} - R_{T,j}\right)

    Args:
        scores: As for :func:`backward_transfer`; NaN where a score was not measured.

    Returns:
        The mean fall, at least minus :func:`backward_transfer`; NaN where the last row lacks a score, or an earlier
        task was never measured.

    Raises:
        ValueError: If the scores are not square.

    Source:
        Chaudhry et al. (2018), Riemannian Walk for Incremental Learning, ECCV.

    Example:
        >>> round(forgetting([[0.9, 0.1], [0.6, 0.8]]), 6)
        0.3
    """
    matrix = _square(scores)
    if len(matrix) < 2:
        return math.nan
    earlier = matrix[:-1, :-1]
    best = np.where(np.isnan(earlier), -np.inf, earlier).max(0)
    fall = best - matrix[-1, :-1]
    return float(fall.mean()) if np.isfinite(fall).all() else math.nan


def recent_transfer(own: Sequence[float], past: Sequence[float], num_recent: int) -> list[float]:
    r"""Backward transfer over the last few tasks, at every task boundary, from two series.

    .. math:: \text{BWT}_t = \text{past}_t - \frac{1}{\min(m, t-1)} \sum_{j=\max(1, t-m)}^{t-1} \text{own}_j

    Args:
        own: Score on each task's held-out examples right after it was learnt.
        past: After each task, the mean score on the held-out examples of up to ``num_recent`` tasks before it.
        num_recent: :math:`m`.

    Returns:
        One value per task; NaN for the first, which has none before it.

    Raises:
        ValueError: If the lengths differ, or ``num_recent`` is below 1.

    Source:
        :func:`backward_transfer`, restricted to the tasks that are remembered.

    Example:
        >>> [round(v, 3) for v in recent_transfer([0.9, 0.8, 0.7], [math.nan, 0.5, 0.6], 1)]
        [nan, -0.4, -0.2]
    """
    if len(own) != len(past) or num_recent < 1:
        raise ValueError(f"{len(own)} and {len(past)} tasks, {num_recent} recent ones; equal lengths and 1 are needed")
    return [math.nan if t == 0 else past[t] - average(own[max(0, t - num_recent) : t]) for t in range(len(own))]


def _square(scores: ArrayLike) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    matrix = np.asarray(scores, dtype=np.float64)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"one row and one column per task are needed, not the shape {matrix.shape}")
    return matrix
