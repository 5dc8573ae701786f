"""Means and intervals against known values, and the honesty rules for what is missing."""

import math
import random
import statistics
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pliant.intervals import band, estimate, first_last, paired_difference, rank_correlation, t_quantile

FINITE = st.floats(-1e3, 1e3)


# Computed with SciPy 1.17: scipy.stats.t.ppf(0.975, df).
@pytest.mark.parametrize(
    ("df", "expected"),
    [
        (1, 12.706204736174694),
        (2, 4.302652729749462),
        (9, 2.2621571628540993),
        (29, 2.045229642132703),
        (30, 2.0422724563012373),
        (31, 2.039513446396408),
        (35, 2.030107928250343),
        (40, 2.021075390306273),
        (60, 2.0002978220142604),
        (99, 1.9842169515864174),
        (1000, 1.9623390808264083),
        (10_000, 1.960201239890626),
    ],
)
def test_t_quantile(df: int, expected: float) -> None:
    assert t_quantile(df) == pytest.approx(expected, abs=1e-7)


def test_every_quantile_of_the_table_holds_95_percent_of_the_density() -> None:
    for df in range(1, 45):
        # Simpson's rule over the density of Student's t, from the centre to the quantile.
        scale = math.exp(math.lgamma((df + 1) / 2) - math.lgamma(df / 2)) / math.sqrt(df * math.pi)
        num, t = 4000, t_quantile(df)
        density = [scale * (1 + (t * i / num) ** 2 / df) ** (-(df + 1) / 2) for i in range(num + 1)]
        area = t / num / 3 * (density[0] + density[-1] + 4 * sum(density[1:-1:2]) + 2 * sum(density[2:-1:2]))
        assert 2 * area == pytest.approx(0.95, abs=2e-8)


def test_quantiles_fall() -> None:
    values = [t_quantile(df) for df in range(1, 200)]
    assert all(a > b for a, b in pairwise(values))
    with pytest.raises(ValueError, match="at least 1"):
        t_quantile(0)


@settings(deadline=None)
@given(st.lists(FINITE, min_size=2, max_size=12))
def test_estimate_is_the_textbook_interval(values: list[float]) -> None:
    e = estimate(values)
    half = t_quantile(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    assert e.mean == pytest.approx(statistics.fmean(values), abs=1e-9)
    assert e.half_width == pytest.approx(half, abs=1e-9)
    assert (e.num, e.num_excluded) == (len(values), 0)


@settings(deadline=None)
@given(st.lists(FINITE, min_size=2, max_size=8), st.floats(-5, 5), st.floats(0.1, 10))
def test_estimate_moves_and_scales_with_its_values(values: list[float], shift: float, scale: float) -> None:
    a, b = estimate(values), estimate([scale * v + shift for v in values])
    assert b.low == pytest.approx(scale * a.low + shift, abs=1e-6)
    assert b.high == pytest.approx(scale * a.high + shift, abs=1e-6)


def test_the_interval_covers_the_truth_95_times_in_100() -> None:
    generator = random.Random(0)
    covered = 0
    for _ in range(4000):
        e = estimate([generator.gauss(3.0, 2.0) for _ in range(5)])
        covered += e.low <= 3.0 <= e.high
    assert covered / 4000 == pytest.approx(0.95, abs=0.012)  # three and a half standard errors


def test_one_seed_has_no_interval_and_none_has_no_mean() -> None:
    one = estimate([0.5])
    assert (one.mean, one.num) == (0.5, 1)
    assert math.isnan(one.low)
    assert math.isnan(one.half_width)
    assert not one.excludes_zero
    none = estimate([])
    assert math.isnan(none.mean)
    assert none.num == 0


def test_values_that_are_not_finite_are_left_out_and_counted() -> None:
    e = estimate([1.0, math.nan, 3.0, math.inf])
    assert (e.mean, e.num, e.num_excluded) == (2.0, 2, 2)
    assert estimate([math.nan]).num_excluded == 1


def test_paired_difference_ignores_what_the_seeds_share() -> None:
    shared = {seed: 10.0 * seed for seed in range(5)}
    d = paired_difference({s: v + 1 + 0.01 * s for s, v in shared.items()}, shared)
    assert d.mean == pytest.approx(1.02)
    assert d.half_width < 0.03
    assert d.excludes_zero
    back = paired_difference(shared, {s: v + 1 + 0.01 * s for s, v in shared.items()})
    assert back.mean == pytest.approx(-d.mean)
    assert back.excludes_zero


def test_paired_difference_counts_seeds_without_a_partner() -> None:
    d = paired_difference({0: 1.0, 1: 2.0, 2: math.nan, 7: 1.0}, {0: 0.5, 1: 1.0, 2: 1.0, 8: 1.0})
    assert (d.num, d.num_excluded) == (2, 3)
    assert paired_difference({0: 1.0}, {1: 1.0}).num == 0


@settings(deadline=None)
@given(st.lists(FINITE, max_size=30), st.integers(1, 12))
def test_first_last(series: list[float], k: int) -> None:
    summary = first_last(series, k)
    width = min(k, len(series) // 2)
    assert summary.k == width
    if width == 0:
        assert all(map(math.isnan, summary[:3]))
    else:
        assert summary.first == pytest.approx(statistics.fmean(series[:width]), abs=1e-9)
        assert summary.last == pytest.approx(statistics.fmean(series[-width:]), abs=1e-9)
        assert summary.change == summary.last - summary.first


def test_first_last_has_no_verdict_from_broken_data() -> None:
    series = [1.0] * 10 + [math.nan] * 5 + [2.0] * 10
    assert first_last(series, 10)[:3] == (1.0, 2.0, 1.0)
    assert math.isnan(first_last([*series, math.inf], 10).last)
    assert first_last([*series, math.inf], 10).first == 1.0
    with pytest.raises(ValueError, match="k must be"):
        first_last(series, 0)


def test_band() -> None:
    points = band([[1.0, 2.0], [3.0, math.nan]])
    assert [(p.mean, p.num, p.num_excluded) for p in points] == [(2.0, 2, 0), (2.0, 1, 1)]
    with pytest.raises(ValueError, match="zip"):
        band([[1.0], [1.0, 2.0]])
    assert band([]) == []


def test_rank_correlation_against_known_values():
    # Computed with SciPy 1.17: scipy.stats.spearmanr.
    assert rank_correlation([1, 2, 3, 4, 5], [5, 6, 7, 8, 7]) == pytest.approx(0.8207826816681233)
    assert rank_correlation([1, 2, 2, 4], [1, 3, 2, 4]) == pytest.approx(0.9486832980505138)
    assert rank_correlation([1, 2, 3], [-1, -20, -300]) == pytest.approx(-1)


def test_rank_correlation_of_what_has_none():
    assert math.isnan(rank_correlation([1, 2, 3], [7, 7, 7]))
    assert math.isnan(rank_correlation([1.0], [2.0]))
    assert math.isnan(rank_correlation([1.0, math.nan, 2.0], [1.0, 2.0, 3.0]))
    assert rank_correlation([1.0, math.inf, 2.0], [1.0, 9.0, 3.0]) == pytest.approx(1)
    with pytest.raises(ValueError, match="do not pair up"):
        rank_correlation([1, 2], [1])


@given(st.lists(st.tuples(FINITE, FINITE), min_size=2, max_size=20))
@settings(max_examples=50)
def test_rank_correlation_is_symmetric_and_bounded(pairs):
    x, y = zip(*pairs, strict=True)
    rho = rank_correlation(x, y)
    assert math.isnan(rho) or -1 - 1e-9 <= rho <= 1 + 1e-9
    other = rank_correlation(y, x)
    assert (math.isnan(rho) and math.isnan(other)) or rho == pytest.approx(other)
