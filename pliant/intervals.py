"""Means with 95 % intervals over seeds, without any dependency.

Every interval in a report is Student's t interval of a mean over independent seeds. It assumes that the seeds'
values are roughly normal; it is symmetric, so near 0 or 1 it may reach outside of what an accuracy can be, and it
is not corrected for looking at several methods. One seed has no interval: its bounds are NaN, never zero width.

A value that is not a finite number is left out of a mean *and counted*, in :attr:`Estimate.num_excluded`, so that
whoever shows the mean can and must show that it speaks for fewer seeds.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

__all__ = [
    "Estimate",
    "FirstLast",
    "band",
    "estimate",
    "first_last",
    "paired_difference",
    "rank_correlation",
    "t_quantile",
]

# The 0.975 quantile of Student's t for 1 to 30 degrees of freedom, to eight decimals.
_T_TABLE = (
    *(12.70620474, 4.30265273, 3.18244631, 2.77644511, 2.57058184, 2.44691185, 2.36462425, 2.30600414, 2.26215716),
    *(2.22813885, 2.20098516, 2.17881283, 2.16036866, 2.14478669, 2.13144955, 2.11990530, 2.10981558, 2.10092204),
    *(2.09302405, 2.08596345, 2.07961384, 2.07387307, 2.06865761, 2.06389856, 2.05953855, 2.05552944, 2.05183052),
    *(2.04840714, 2.04522964, 2.04227246),
)
_Z = 1.959963984540054  # the same quantile of the standard normal


def t_quantile(df: int) -> float:
    r"""The 0.975 quantile of Student's t: half the width of a 95 % interval in standard errors.

    A table up to 30 degrees of freedom; beyond it the expansion in :math:`1/\nu` around the normal quantile
    :math:`z` (Fisher and Cornish), whose error is below :math:`10^{-7}` there:

    .. math:: t = z + \frac{z^3+z}{4\nu} + \frac{5z^5+16z^3+3z}{96\nu^2} + \frac{3z^7+19z^5+17z^3-15z}{384\nu^3}
        + \frac{79z^9+776z^7+1482z^5-1920z^3-945z}{92160\nu^4}

    Args:
        df: Degrees of freedom :math:`\nu`, ``>= 1``.

    Raises:
        ValueError: If ``df`` is below 1.

    Source:
        Abramowitz and Stegun (1964), *Handbook of Mathematical Functions*, 26.7.5.

    Example:
        >>> round(t_quantile(9), 3)
        2.262
        >>> assert t_quantile(30) > t_quantile(31) > t_quantile(1_000_000) > 1.959963
    """
    if df < 1:
        raise ValueError(f"degrees of freedom must be at least 1, not {df}")
    if df <= len(_T_TABLE):
        return _T_TABLE[df - 1]
    z = _Z
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return math.fsum(term / float(df) ** power for power, term in enumerate(terms))


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds with its 95 % interval.

    Args:
        mean: Mean over the finite values; NaN if there is none.
        low: Lower bound of the interval; NaN with fewer than two values.
        high: Upper bound, likewise.
        num: How many values the mean speaks for.
        num_excluded: How many values were no finite numbers, or had no partner in a paired difference.
    """

    mean: float
    low: float
    high: float
    num: int
    num_excluded: int = 0

    @property
    def half_width(self) -> float:
        """Half the width of the interval; NaN with fewer than two values."""
        return (self.high - self.low) / 2

    @property
    def excludes_zero(self) -> bool:
        """Whether the whole interval lies on one side of zero; false where there is no interval."""
        return self.low > 0 or self.high < 0


def estimate(values: Iterable[float]) -> Estimate:
    r"""Mean and 95 % interval: :math:`\bar x \pm t_{n-1}\, s / \sqrt n`, with :math:`s` the sample deviation.

    Args:
        values: One value per seed.

    Returns:
        The estimate; values that are not finite are left out and counted.

    Example:
        >>> e = estimate([1.0, 2.0, 3.0, float("nan")])
        >>> e.mean, round(e.half_width, 3), e.num, e.num_excluded
        (2.0, 2.484, 3, 1)
        >>> estimate([1.0]).low                                  # one seed has no interval
        nan
    """
    values = list(values)
    finite = [value for value in values if math.isfinite(value)]
    num, num_excluded = len(finite), len(values) - len(finite)
    if num == 0:
        return Estimate(math.nan, math.nan, math.nan, 0, num_excluded)
    mean = math.fsum(finite) / num
    if num == 1:
        return Estimate(mean, math.nan, math.nan, 1, num_excluded)
    variance = math.fsum((value - mean) * (value - mean) for value in finite) / (num - 1)
    half = t_quantile(num - 1) * math.sqrt(variance / num)
    return Estimate(mean, mean - half, mean + half, num, num_excluded)


def paired_difference(a: Mapping[int, float], b: Mapping[int, float]) -> Estimate:
    """Mean of ``a - b`` over the seeds that both have, with its 95 % interval.

    Two methods on the same seed see the same data in the same order, so their difference varies less from seed to
    seed than either of them; an interval of the differences is the fair comparison.

    Args:
        a: Seed to value.
        b: Seed to value.

    Returns:
        The estimate; seeds that only one of the two has, or where one is not finite, are left out and counted.

    Example:
        >>> d = paired_difference({0: 0.9, 1: 0.8, 2: 0.7}, {0: 0.5, 1: 0.4, 2: 0.3, 3: 0.2})
        >>> round(d.mean, 6), d.num, d.num_excluded              # the seeds differ, their differences do not
        (0.4, 3, 1)
        >>> assert d.half_width < 1e-9
    """
    both = estimate(a[seed] - b[seed] for seed in sorted(a.keys() & b.keys()))
    return Estimate(both.mean, both.low, both.high, both.num, both.num_excluded + len(a.keys() ^ b.keys()))


class FirstLast(NamedTuple):
    """How a series starts and ends: means over its first and last ``k`` values, and last minus first."""

    first: float
    last: float
    change: float
    k: int


def first_last(series: Sequence[float], k: int = 10) -> FirstLast:
    """Means of the first and last ``k`` values of a series, and their difference.

    Args:
        series: One value per task.
        k: The width of both windows, ``>= 1``; halves of the series where it is shorter than ``2 k``, so that the
            windows never share a task. The width used is in the result.

    Returns:
        The summary. A window that holds a value that is not finite has the mean NaN: no verdict from broken data.
        All NaN, with ``k`` 0, for fewer than two values.

    Raises:
        ValueError: If ``k`` is below 1.

    Example:
        >>> first_last([1.0, 3.0, 9.0, 5.0, 7.0], k=2)
        FirstLast(first=2.0, last=6.0, change=4.0, k=2)
        >>> first_last([1.0, 2.0, 3.0]).k
        1
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, not {k}")
    k = min(k, len(series) // 2)
    if k == 0:
        return FirstLast(math.nan, math.nan, math.nan, 0)
    first, last = (_mean(window) for window in (series[:k], series[-k:]))
    return FirstLast(first, last, last - first, k)


def band(curves: Sequence[Sequence[float]]) -> list[Estimate]:
    """One estimate per task over several seeds' series.

    Args:
        curves: One series per seed, equally long.

    Returns:
        As many estimates as there are tasks; where a seed's value is not finite, it is left out and counted.

    Raises:
        ValueError: If the series are not equally long.

    Example:
        >>> [e.mean for e in band([[1.0, 2.0], [3.0, 4.0]])]
        [2.0, 3.0]
    """
    return [estimate(values) for values in zip(*curves, strict=True)]


def rank_correlation(x: Sequence[float], y: Sequence[float]) -> float:
    r"""Spearman's rank correlation :math:`\rho`: Pearson's correlation of the ranks, ties sharing their mean rank.

    Args:
        x: Values, one per pair.
        y: Values, as many.

    Returns:
        A number in [-1, 1]; NaN for fewer than two pairs, where one side is constant, or where a value is NaN.

    Raises:
        ValueError: If the lengths differ.

    Source:
        Spearman (1904), The proof and measurement of association between two things.

    Example:
        >>> round(rank_correlation([1, 2, 3], [10, 100, 1000]), 9), round(rank_correlation([1, 2, 3], [3, 2, 1]), 9)
        (1.0, -1.0)
    """
    if len(x) != len(y):
        raise ValueError(f"there are {len(x)} and {len(y)} values, which do not pair up")
    if any(math.isnan(value) for value in (*x, *y)):
        return math.nan
    a, b = _ranks(x), _ranks(y)
    middle = (len(x) + 1) / 2
    product = math.fsum((p - middle) * (q - middle) for p, q in zip(a, b, strict=True))
    spread = math.fsum((p - middle) ** 2 for p in a) * math.fsum((q - middle) ** 2 for q in b)
    return product / math.sqrt(spread) if spread else math.nan


def _ranks(values: Sequence[float]) -> list[float]:
    ordered = sorted(values)
    return [(bisect_left(ordered, value) + 1 + bisect_right(ordered, value)) / 2 for value in values]


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if all(map(math.isfinite, values)) else math.nan
