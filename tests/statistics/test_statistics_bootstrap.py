"""Intervals by resampling: seeded, stratified, and covering the truth as often as they say."""

import itertools
import math

import numpy as np
import pytest

from pliant.intervals import estimate
from pliant.statistics import (
    bootstrap,
    bootstrap_each,
    expanded_level,
    interquartile_mean,
    iqm,
    mean_ranks,
    performance_profile,
    probability_of_improvement,
    rank_agreement,
)


def mean(samples):
    return np.mean([s.mean(-1) for s in samples], axis=0)


def test_the_same_arguments_give_the_same_interval_and_another_seed_another():
    values = [[0.1, 0.5, 0.2, 0.9, 0.4]]
    assert bootstrap(values, mean) == bootstrap(values, mean)
    assert bootstrap(values, mean) != bootstrap(values, mean, seed=1)


def test_the_resampled_distribution_is_that_of_all_resamples():
    """Of four values all 256 resamples can be listed; the plain tails of many draws are theirs."""
    values = np.array([0.0, 1.0, 3.0, 10.0])
    listed = np.sort([np.mean(choice) for choice in itertools.product(values, repeat=4)])
    level = expanded_level([4])
    found = bootstrap([values], mean, num_resamples=50_000)
    # The quantile of the list lies between its neighbours there; a step of the list is at most 1.75 in the tails.
    below, above = np.quantile(listed, level), np.quantile(listed, 1 - level)
    assert found.low == pytest.approx(below, abs=0.26)
    assert found.high == pytest.approx(above, abs=1.76)
    assert found.mean == 3.5


def test_the_interval_of_a_mean_is_students_where_the_values_are_symmetric():
    values = np.random.default_rng(3).normal(size=20)
    student, found = estimate(values), bootstrap([values], mean)
    assert found.half_width == pytest.approx(student.half_width, rel=0.08)
    assert expanded_level([10**7]) == pytest.approx(0.025, abs=1e-6)
    assert expanded_level([5]) < expanded_level([10]) < expanded_level([10, 10]) < 0.025
    with pytest.raises(ValueError, match="at least two values"):
        expanded_level([5, 1])


@pytest.mark.parametrize(
    ("draw", "truth", "least"),
    [
        (lambda g: g.normal(1.0, 2.0, size=10), 1.0, 0.93),
        (lambda g: g.uniform(size=5), 0.5, 0.91),
        (lambda g: (g.uniform(size=10) < 0.7) * 0.5 + g.normal(0, 0.02, size=10), 0.35, 0.88),  # some seeds collapse
    ],
)
def test_the_interval_covers_the_truth_about_95_times_in_100(draw, truth, least):
    generator = np.random.default_rng(0)
    covered = 0
    for number in range(400):
        found = bootstrap([draw(generator)], mean, num_resamples=1500, seed=number)
        covered += found.low <= truth <= found.high
    assert least <= covered / 400 <= 0.99


def test_every_stratum_keeps_its_size():
    seen = []

    def sizes(samples):
        seen.append([s.shape[1:] for s in samples])
        return samples[0].mean(-1)

    bootstrap([[1.0, 2.0, 3.0], [4.0, 5.0]], sizes, num_resamples=200)
    assert all(shapes == [(3,), (2,)] for shapes in seen)


def test_rows_are_resampled_whole():
    rows = np.stack([np.arange(6.0), np.arange(6.0)], axis=1)
    found = bootstrap([rows], lambda samples: (samples[0][..., 0] - samples[0][..., 1]).mean(-1))
    assert (found.mean, found.low, found.high) == (0.0, 0.0, 0.0)


def test_what_is_missing_is_counted_and_what_is_unknown_stays_unknown():
    found = bootstrap([[1.0, math.nan, 2.0, 3.0]], mean)
    assert (found.num, found.num_excluded, found.mean) == (3, 1, 2.0)
    for strata in ([[1.0, 2.0], []], [[1.0], [math.nan]], [np.zeros((0, 2))]):
        none = bootstrap(strata, lambda samples: samples[0].reshape(len(samples[0]), -1).mean(-1))
        assert none.num == 0
        assert math.isnan(none.mean)
    single = bootstrap([[1.0, 2.0], [5.0]], mean)
    assert single.mean == 3.25
    assert math.isnan(single.low)
    with pytest.raises(ValueError, match="strata"):
        bootstrap([], mean)
    with pytest.raises(ValueError, match="resamples"):
        bootstrap([[1.0]], mean, num_resamples=10)


def test_several_numbers_come_from_the_same_resamples():
    values = [[0.1, 0.5, 0.2, 0.9, 0.4]]
    both = bootstrap_each(values, lambda s: np.stack([s[0].mean(-1), 2 * s[0].mean(-1)], axis=-1))
    assert both[1].low == pytest.approx(2 * both[0].low)
    assert both[0] == bootstrap(values, mean)


# ---- aggregates


def test_interquartile_mean_against_sorting_by_hand():
    generator = np.random.default_rng(1)
    for num in range(1, 30):
        values = generator.normal(size=num)
        middle = sorted(values)[num // 4 : num - num // 4]
        assert float(interquartile_mean(values)) == pytest.approx(sum(middle) / len(middle))
    # scipy.stats.trim_mean([1, 2, 3, 4, 5, 6, 7, 8, 9, 100], 0.25), with SciPy 1.17.1.
    assert float(interquartile_mean([1, 2, 3, 4, 5, 6, 7, 8, 9, 100])) == 5.5
    assert math.isnan(float(interquartile_mean([])))
    assert interquartile_mean(np.zeros((3, 2, 8))).shape == (3, 2)


def test_an_interquartile_mean_takes_in_what_diverged():
    assert iqm([[-math.inf, 0.5, 0.6, 0.7]]).mean == pytest.approx(0.55)
    assert iqm([[-math.inf, -math.inf, 0.6, 0.7]]).mean == -math.inf
    robust = iqm([[0.5, 0.52, 0.51, 0.53, 0.5, 0.52, -math.inf, 0.5]])
    assert robust.low == -math.inf
    assert robust.high < 0.54


def pairs(x, y):
    return sum((a > b) + 0.5 * (a == b) for a in x for b in y) / (len(x) * len(y))


def test_probability_of_improvement_counts_pairs():
    generator = np.random.default_rng(2)
    x = [dict(enumerate(generator.integers(0, 5, size=n).astype(float))) for n in (4, 7)]
    y = [dict(enumerate(generator.integers(0, 5, size=n).astype(float))) for n in (4, 7)]
    expected = np.mean([pairs(a.values(), b.values()) for a, b in zip(x, y, strict=True)])
    assert probability_of_improvement(x, y).mean == pytest.approx(expected)
    assert probability_of_improvement(y, x).mean == pytest.approx(1 - expected)
    # scipy.stats.mannwhitneyu([3, 1, 4, 1], [2, 7, 1, 8], alternative="greater").statistic / 16, with SciPy 1.17.1.
    seven = probability_of_improvement([dict(enumerate([3.0, 1, 4, 1]))], [dict(enumerate([2.0, 7, 1, 8]))])
    assert seven.mean == 0.3125


def test_probability_of_improvement_in_closed_cases():
    better, worse = {s: 1.0 + s for s in range(5)}, {s: -1.0 - s for s in range(5)}
    sure = probability_of_improvement([better], [worse])
    assert (sure.mean, sure.low, sure.high) == (1.0, 1.0, 1.0)
    same = probability_of_improvement([better], [better])
    assert same.mean == 0.5
    diverged = probability_of_improvement([{0: 0.5, 1: 0.5}], [{0: -math.inf, 1: -math.inf}])
    assert diverged.mean == 1.0
    both_diverged = probability_of_improvement([{0: -math.inf}], [{0: -math.inf}])
    assert both_diverged.mean == 0.5
    lonely = probability_of_improvement([{0: 1.0, 1: 2.0, 9: 3.0}], [{0: 0.0, 1: 0.0, 8: 0.0}])
    assert (lonely.num, lonely.num_excluded) == (2, 2)
    assert math.isnan(probability_of_improvement([{0: 1.0}], [{1: 1.0}]).mean)
    with pytest.raises(ValueError, match="zip"):
        probability_of_improvement([{}], [{}, {}])


def test_a_profile_is_the_share_above():
    strata = [[0.1, 0.3, 0.5, 0.7], [0.2, 0.9]]
    levels = [0.0, 0.25, 0.5, 0.89, 0.9]
    for level, found in zip(levels, performance_profile(strata, levels), strict=True):
        expected = np.mean([sum(v > level for v in s) / len(s) for s in strata])
        assert found.mean == pytest.approx(expected)
        assert found.low <= found.mean <= found.high
    assert performance_profile([[-math.inf, 0.5]], [0.0])[0].mean == 0.5


def test_mean_ranks_in_closed_cases():
    strata = [np.tile([0.9, 0.5, 0.1], (4, 1)), np.tile([0.1, 0.5, 0.9], (4, 1))]
    assert [e.mean for e in mean_ranks(strata)] == [2.0, 2.0, 2.0]
    certain = mean_ranks(strata[:1])
    assert [(e.low, e.high) for e in certain] == [(1.0, 1.0), (2.0, 2.0), (3.0, 3.0)]
    tied = mean_ranks([np.tile([0.5, 0.5, 0.9, -math.inf], (3, 1))])
    assert [e.mean for e in tied] == [2.5, 2.5, 1.0, 4.0]
    generator = np.random.default_rng(0)
    for e in (ranks := mean_ranks([generator.normal(size=(6, 5)) for _ in range(3)])):
        assert e.low <= e.mean <= e.high
    assert sum(e.mean for e in ranks) == pytest.approx(15)


def test_rank_agreement_is_spearmans():
    from pliant.intervals import rank_correlation

    generator = np.random.default_rng(4)
    for num in (2, 5, 9):
        a, b = generator.normal(size=(6, num)), generator.normal(size=(8, num))
        expected = rank_correlation(list(a.mean(0)), list(b.mean(0)))
        found = rank_agreement(a, b, num_resamples=200)
        assert found.mean == pytest.approx(expected)
        assert -1 <= found.low <= found.high <= 1
    assert math.isnan(rank_agreement([[1.0], [1.0]], [[2.0], [2.0]]).mean)
    with pytest.raises(ValueError, match="same methods"):
        rank_agreement([[1.0, 2.0]], [[1.0]])
