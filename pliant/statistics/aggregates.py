"""One number for many streams: interquartile mean, profile, probability of improvement, mean rank."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

from pliant.intervals import Estimate
from pliant.statistics.bootstrap import Array, bootstrap, bootstrap_each

__all__ = [
    "interquartile_mean",
    "iqm",
    "mean_ranks",
    "performance_profile",
    "probability_of_improvement",
    "rank_agreement",
]


def interquartile_mean(values: ArrayLike) -> Array:
    r"""The mean of the middle half: the :math:`\lfloor n/4 \rfloor` smallest and largest values are left out.

    It hardly moves for a few outliers, and wastes less than the median, which looks at one or two values.

    Args:
        values: ``[..., n]``, without NaN; infinite values count as very small or large ones.

    Returns:
        ``[...]``. NaN where ``n`` is 0.

    Source:
        Agarwal et al. (2021), Deep Reinforcement Learning at the Edge of the Statistical Precipice; as in their
        ``rliable``, where ``n`` is no multiple of 4 a little more than the middle half is kept.

    Example:
        >>> float(interquartile_mean([0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 1000.0]))
        3.5
        >>> float(interquartile_mean([-np.inf, 1.0, 2.0, 3.0]))
        1.5
    """
    array = np.sort(np.asarray(values, dtype=np.float64), axis=-1)
    cut = array.shape[-1] // 4
    middle = array[..., cut : array.shape[-1] - cut]
    return np.full(array.shape[:-1], np.nan) if middle.shape[-1] == 0 else np.asarray(middle.mean(-1))


def iqm(strata: Sequence[ArrayLike], *, num_resamples: int = 10_000, seed: int = 0) -> Estimate:
    """Interquartile mean over all runs of all strata, with its stratified bootstrap interval.

    Args:
        strata: The scores of the runs on each stream, ``[n_k]``, on one scale; a stratum with more runs weighs more.
        num_resamples: See :func:`bootstrap`.
        seed: See :func:`bootstrap`.

    Returns:
        The estimate; see :func:`bootstrap`.

    Example:
        >>> e = iqm([[0.80, 0.82, 0.81, 0.10], [0.60, 0.61, 0.62, 0.63]])
        >>> round(e.mean, 3), e.num
        (0.665, 8)
    """

    def statistic(samples: list[Array]) -> Array:
        return interquartile_mean(np.concatenate(samples, axis=-1))

    return bootstrap(strata, statistic, num_resamples=num_resamples, seed=seed)


def probability_of_improvement(
    x: Sequence[Mapping[int, float]],
    y: Sequence[Mapping[int, float]],
    *,
    num_resamples: int = 10_000,
    seed: int = 0,
) -> Estimate:
    r"""How probable it is that a run of X scores higher than a run of Y, on a stream drawn at random.

    .. math:: P = \frac{1}{K} \sum_k \frac{1}{n_k^2} \sum_{i,j} \left([x_{ki} > y_{kj}] + \tfrac12 [x_{ki} = y_{kj}]
        \right)

    It says how sure an improvement is, and nothing about its size. Seeds are resampled for both methods together, which
    is where the interval differs from the published one: two methods on one seed see the same data.

    Args:
        x: Per stream, seed to score.
        y: The same streams in the same order.
        num_resamples: See :func:`bootstrap`.
        seed: See :func:`bootstrap`.

    Returns:
        The estimate over the seeds that both have, others counted as left out; 0.5 says that neither is better. All NaN
        where a stream has no such seed.

    Raises:
        ValueError: Without streams, or if their numbers differ.

    Source:
        Agarwal et al. (2021), section 4.3; the statistic of Mann and Whitney (1947).

    Example:
        >>> p = probability_of_improvement([{0: 0.9, 1: 0.5}], [{0: 0.6, 1: 0.4}])
        >>> p.mean                                               # 3 of the 4 pairs of runs
        0.75
    """
    rows, num_lonely = [], 0
    for a, b in zip(x, y, strict=True):
        seeds = sorted(a.keys() & b.keys())
        num_lonely += len(a.keys() ^ b.keys())
        rows.append(np.array([[a[s], b[s]] for s in seeds], dtype=np.float64).reshape(-1, 2))

    def statistic(samples: list[Array]) -> Array:
        parts = []
        for sample in samples:
            mine, theirs = sample[..., :, None, 0], sample[..., None, :, 1]
            parts.append(((mine > theirs) + 0.5 * (mine == theirs)).mean((-2, -1)))
        return np.asarray(np.mean(parts, axis=0))

    found = bootstrap(rows, statistic, num_resamples=num_resamples, seed=seed)
    return Estimate(found.mean, found.low, found.high, found.num, found.num_excluded + num_lonely)


def performance_profile(
    strata: Sequence[ArrayLike], thresholds: Sequence[float], *, num_resamples: int = 2000, seed: int = 0
) -> list[Estimate]:
    r"""Which fraction of the runs scores above each threshold; every stream counts the same.

    .. math:: F(\tau) = \frac{1}{K} \sum_k \frac{1}{n_k} \sum_i [x_{ki} > \tau]

    A profile that lies above another everywhere belongs to the better method; profiles that cross say that one is
    better at its best and the other at its worst. A mean cannot tell these apart.

    Args:
        strata: The scores of the runs on each stream, ``[n_k]``, on one scale.
        thresholds: The thresholds :math:`\tau`.
        num_resamples: See :func:`bootstrap`.
        seed: See :func:`bootstrap`.

    Returns:
        One estimate per threshold, falling; each band holds for its threshold alone.

    Source:
        Agarwal et al. (2021), section 4.2; Dolan and More (2002), Benchmarking optimization software with performance
        profiles.

    Example:
        >>> [e.mean for e in performance_profile([[0.2, 0.6], [0.4, 0.8]], [0.0, 0.5, 0.7, 0.9])]
        [1.0, 0.5, 0.25, 0.0]
    """
    levels = np.asarray(thresholds, dtype=np.float64)

    def statistic(samples: list[Array]) -> Array:
        return np.asarray(np.mean([(s[..., None] > levels).mean(-2) for s in samples], axis=0))

    return bootstrap_each(strata, statistic, num_resamples=num_resamples, seed=seed)


def mean_ranks(strata: Sequence[ArrayLike], *, num_resamples: int = 10_000, seed: int = 0) -> list[Estimate]:
    """The rank of each method by its mean score on each stream, averaged over streams; 1 is the best.

    It needs no common scale, so that accuracies and errors (negated) go together. It depends on which methods take
    part.

    Args:
        strata: Per stream ``[n_k, M]``: the scores of M methods on the same seeds.
        num_resamples: See :func:`bootstrap`.
        seed: See :func:`bootstrap`.

    Returns:
        One estimate per method; equal means share their mean rank.

    Source:
        Friedman (1937), The use of ranks to avoid the assumption of normality implicit in the analysis of variance.

    Example:
        >>> [e.mean for e in mean_ranks([[[0.9, 0.5], [0.8, 0.4]], [[0.3, 0.3], [0.2, 0.2]]])]
        [1.25, 1.75]
    """

    def statistic(samples: list[Array]) -> Array:
        return np.asarray(np.mean([_ranks(sample.mean(-2)) for sample in samples], axis=0))

    return bootstrap_each(strata, statistic, num_resamples=num_resamples, seed=seed)


def rank_agreement(static: ArrayLike, continual: ArrayLike, *, num_resamples: int = 10_000, seed: int = 0) -> Estimate:
    r"""Whether methods (or architectures) rank alike on static and on continual data: Spearman's :math:`\rho`.

    1: the order is the same, so a static benchmark would have been enough; 0: the one says nothing about the other.

    Args:
        static: ``[n, M]``: the scores of M methods on the same n seeds where nothing changes.
        continual: ``[m, M]``: the same methods, in the same order, where tasks change.
        num_resamples: See :func:`bootstrap`.
        seed: See :func:`bootstrap`.

    Returns:
        The correlation of the ranks of their means, with an interval over seeds, not over methods: it speaks about
        these methods alone. NaN for fewer than two methods or where all means are equal.

    Raises:
        ValueError: If the numbers of methods differ.

    Source:
        Spearman (1904), The proof and measurement of association between two things.

    Example:
        >>> e = rank_agreement([[0.9, 0.8, 0.7], [0.9, 0.8, 0.7]], [[0.3, 0.2, 0.1], [0.3, 0.2, 0.1]])
        >>> round(e.mean, 6)
        1.0
    """
    strata = [np.asarray(static, dtype=np.float64), np.asarray(continual, dtype=np.float64)]
    if any(s.ndim != 2 for s in strata) or strata[0].shape[-1] != strata[1].shape[-1]:
        raise ValueError(f"scores of the same methods are needed, not of shapes {strata[0].shape}, {strata[1].shape}")

    def statistic(samples: list[Array]) -> Array:
        a, b = (_ranks(sample.mean(-2)) for sample in samples)
        a, b = a - a.mean(-1, keepdims=True), b - b.mean(-1, keepdims=True)
        spread = np.sqrt((a * a).sum(-1) * (b * b).sum(-1))
        return np.asarray(np.divide((a * b).sum(-1), spread, out=np.full_like(spread, np.nan), where=spread > 0))

    return bootstrap(strata, statistic, num_resamples=num_resamples, seed=seed)


def _ranks(means: Array) -> Array:
    """Ranks ``[..., M]`` of means ``[..., M]``, 1 the largest, ties sharing their mean rank."""
    above = (means[..., None, :] > means[..., :, None]).sum(-1)
    equal = (means[..., None, :] == means[..., :, None]).sum(-1)
    return np.asarray(above + (equal + 1) / 2)
