"""Stratified bootstrap intervals: seeded, and widened so that few seeds do not look like many."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pliant.intervals import Estimate, t_quantile

__all__ = ["Array", "Statistic", "bootstrap", "bootstrap_each", "expanded_level"]

Array: TypeAlias = NDArray[np.float64]
Statistic: TypeAlias = Callable[[list[Array]], Array]
"""From one array ``[B, n_k, ...]`` per stratum to ``[B]`` or ``[B, M]``: the same statistic of B samples at once."""

_CHUNK = 400_000  # numbers drawn at once, which bounds the memory


def expanded_level(sizes: Sequence[int]) -> float:
    r"""The tail of the bootstrap distribution that a 95 % interval leaves out at either end.

    Resampling :math:`n` values has a variance that is :math:`(n-1)/n` of what it should be, and ignores that the spread
    itself was estimated. For few values the interval of the plain 2.5 % tails is far too narrow. The expanded one takes

    .. math:: \alpha = \Phi\left(-\sqrt{\tfrac{\sum_k n_k}{\sum_k (n_k-1)}}\; t_{0.975,\ \sum_k (n_k-1)}\right),

    which makes the interval of a mean of symmetric values agree with Student's.

    Args:
        sizes: Number of values in each stratum, each at least 2.

    Returns:
        A number below 0.025, which it approaches as the strata grow.

    Raises:
        ValueError: If a stratum has fewer than two values.

    Source:
        Hesterberg (2015), What Teachers Should Know About the Bootstrap, The American Statistician 69, section 3.1
        (``resample::ExpandProbs`` in R). Deviation: several strata, whose degrees of freedom are added.

    Example:
        >>> round(expanded_level([10]), 4), round(expanded_level([10] * 6), 4), round(expanded_level([10**6]), 4)
        (0.0086, 0.0173, 0.025)
    """
    if not sizes or min(sizes) < 2:
        raise ValueError(f"every stratum needs at least two values, not {list(sizes)}")
    df = sum(sizes) - len(sizes)
    z = math.sqrt(sum(sizes) / df) * t_quantile(df)
    return 0.5 * math.erfc(z / math.sqrt(2))


def bootstrap(
    strata: Sequence[ArrayLike], statistic: Statistic, *, num_resamples: int = 10_000, seed: int = 0
) -> Estimate:
    """A statistic of several groups of runs with its 95 % expanded percentile interval.

    Each stratum (the runs on one stream) is resampled with replacement on its own, so that no resample leaves a stream
    out; :func:`expanded_level` says which quantiles of the resampled statistics are the bounds.

    Args:
        strata: One array per stratum, ``[n_k]``, or ``[n_k, ...]`` whose rows are resampled whole, as where several
            methods ran with the same seed.
        statistic: See :data:`Statistic`.
        num_resamples: How many samples are drawn.
        seed: Of the draws: the same arguments give the same interval.

    Returns:
        The estimate, with the statistic of what was given as its ``mean`` and the number of rows as ``num``. Rows with
        a NaN are left out and counted, resamples for which the statistic is NaN are left out. All NaN where a stratum
        is empty; NaN bounds where one has a single row.

    Raises:
        ValueError: Without any stratum, or for fewer than 100 resamples.

    Source:
        Agarwal et al. (2021), Deep Reinforcement Learning at the Edge of the Statistical Precipice, NeurIPS. Deviation:
        expanded instead of plain percentile intervals.

    Example:
        >>> means = lambda strata: np.mean([s.mean(-1) for s in strata], axis=0)
        >>> e = bootstrap([[0.1, 0.2, 0.3], [0.7, 0.8, 0.9]], means)
        >>> round(e.mean, 3), e.num, 0.3 < e.low < 0.5 < e.high < 0.7
        (0.5, 6, True)
    """
    (estimate,) = bootstrap_each(
        strata, lambda samples: statistic(samples)[..., None], num_resamples=num_resamples, seed=seed
    )
    return estimate


def bootstrap_each(
    strata: Sequence[ArrayLike], statistic: Statistic, *, num_resamples: int = 10_000, seed: int = 0
) -> list[Estimate]:
    """Like :func:`bootstrap`, for a statistic of several numbers ``[B, M]``: one estimate for each of them.

    The numbers come from the same resamples, and each interval holds for its number alone.

    Raises:
        ValueError: See :func:`bootstrap`.

    Example:
        >>> import numpy as np
        >>> from pliant.statistics import bootstrap_each
        >>> def mean_and_largest(strata):
        ...     return np.stack([strata[0].mean(-1), strata[0].max(-1)], axis=-1)
        >>> mean, largest = bootstrap_each([[0.1, 0.2, 0.3]], mean_and_largest, num_resamples=200)
        >>> round(mean.mean, 3), round(largest.mean, 3)
        (0.2, 0.3)
    """
    if not strata or num_resamples < 100:
        raise ValueError(f"{len(strata)} strata and {num_resamples} resamples; at least one and 100 are needed")
    arrays: list[Array] = [np.asarray(stratum, dtype=np.float64) for stratum in strata]
    kept = [array[~np.isnan(array.reshape(len(array), -1)).any(-1)] if array.size else array for array in arrays]
    num, num_excluded = sum(map(len, kept)), sum(map(len, arrays)) - sum(map(len, kept))
    with np.errstate(invalid="ignore"):  # -inf minus -inf, where whole samples diverged
        if any(len(array) == 0 for array in kept):
            width = statistic([np.zeros((1, max(1, len(a)), *a.shape[1:])) for a in kept]).shape[-1]
            return [Estimate(math.nan, math.nan, math.nan, 0, num_excluded + num)] * width
        point = statistic([array[None] for array in kept])[0]
        if any(len(array) == 1 for array in kept):
            return [Estimate(float(value), math.nan, math.nan, num, num_excluded) for value in point]
        values = _resamples(kept, statistic, num_resamples, seed)
    level = expanded_level([len(array) for array in kept])
    bounds = [_bounds(column, level) for column in values.T]
    return [Estimate(float(value), *both, num, num_excluded) for value, both in zip(point, bounds, strict=True)]


def _bounds(values: Array, level: float) -> tuple[float, float]:
    """The quantiles at either end; the next value outwards, because values that diverged have none in between."""
    values = np.sort(values[~np.isnan(values)])
    if not len(values):
        return math.nan, math.nan
    skipped = math.floor(level * (len(values) - 1))
    return float(values[skipped]), float(values[-1 - skipped])


def _resamples(arrays: Sequence[Array], statistic: Statistic, num: int, seed: int) -> Array:
    """``[num, M]``, drawn in pieces of bounded size."""
    generator = np.random.default_rng(seed)
    size = max(1, _CHUNK // sum(array.size * len(array) for array in arrays))
    found: list[Any] = []
    for start in range(0, num, size):
        count = min(size, num - start)
        found.append(statistic([a[generator.integers(len(a), size=(count, len(a)))] for a in arrays]))
    return np.concatenate(found)
