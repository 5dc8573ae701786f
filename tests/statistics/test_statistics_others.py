"""Comparisons, series, tuning and cost: against counting by hand and known values."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pliant.intervals import Estimate, estimate, paired_difference, t_quantile
from pliant.statistics import (
    Times,
    area,
    at_budget,
    average,
    backward_transfer,
    best_of_k,
    cost_per_gain,
    forgetting,
    holm,
    p_value,
    recent_transfer,
    time_to_loss,
    time_to_threshold,
    times,
)

NAN, INF = math.nan, math.inf


# ---- comparisons


# Computed with SciPy 1.17.1: 2 * scipy.stats.t.sf(t, df).
@pytest.mark.parametrize(
    ("t", "df", "expected"),
    [
        (1.0, 1, 0.5),
        (1.0, 2, 0.4226497308103742),
        (2.0, 3, 0.13932596855884305),
        (2.262157162798205, 9, 0.05),
        (3.0, 10, 0.01334365502256957),
        (5.0, 29, 2.536631573542329e-05),
        (0.1, 30, 0.9210096117902712),
        (2.5, 99, 0.014062596921149069),
    ],
)
def test_p_value(t: float, df: int, expected: float):
    half = t_quantile(df)  # a standard error of 1
    assert p_value(Estimate(t, t - half, t + half, df + 1)) == pytest.approx(expected, rel=1e-6)
    assert p_value(Estimate(-t, -t - half, -t + half, df + 1)) == pytest.approx(expected, rel=1e-6)


@settings(deadline=None)
@given(st.lists(st.floats(-5, 5), min_size=2, max_size=40))
def test_a_p_value_and_its_interval_agree(values: list[float]):
    e = estimate(values)
    p = p_value(e)
    assert 0 <= p <= 1
    if abs(p - 0.05) > 1e-6:
        assert (p < 0.05) == e.excludes_zero


def test_p_values_without_spread_or_interval():
    assert p_value(estimate([0.0, 0.0])) == 1.0
    assert p_value(estimate([0.5, 0.5])) == 0.0
    assert math.isnan(p_value(estimate([0.5])))
    assert math.isnan(p_value(paired_difference({0: 1.0}, {1: 1.0})))


def test_false_alarms_are_as_rare_as_promised():
    """Ten methods that do nothing: four in ten families have a false alarm, with the correction one in twenty."""
    generator = np.random.default_rng(0)
    plain = corrected = 0
    for _ in range(600):
        p = [p_value(estimate(generator.normal(size=10))) for _ in range(10)]
        plain += min(p) < 0.05
        corrected += min(holm(p)) < 0.05
    assert plain / 600 > 0.3
    assert corrected / 600 == pytest.approx(0.05, abs=0.025)


def closed_test(p: list[float], i: int) -> float:
    """Holm's correction is the closed test of Bonferroni: the worst over all subsets that hold i."""
    others = [k for k in range(len(p)) if k != i]
    subsets = (s for r in range(len(p)) for s in itertools.combinations(others, r))
    return max(min(1.0, min(p[k] for k in (*s, i)) * (len(s) + 1)) for s in subsets)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_holm_is_the_closed_test(p: list[float]):
    found = holm(p)
    for i in range(len(p)):
        assert found[i] == pytest.approx(closed_test(p, i))


def test_holm_leaves_out_what_was_not_tested():
    found = holm([0.02, NAN, 0.03])
    assert found[0] == 0.04
    assert math.isnan(found[1])
    assert found[2] == 0.04
    assert holm([]) == []
    with pytest.raises(ValueError, match="in \\[0, 1\\]"):
        holm([1.5])


# ---- series


def test_average_and_area():
    assert average([1.0, 2.0, 6.0]) == 3.0
    assert math.isnan(average([1.0, NAN]))
    assert math.isnan(average([1.0, INF]))
    assert math.isnan(average([]))
    assert area([3.0, 5.0], [1.0, 1.0]) == 3.0
    assert math.isnan(area([1.0, NAN], [1.0, 1.0]))
    with pytest.raises(ValueError, match="2 tasks, the reference 1"):
        area([1.0, 2.0], [1.0])


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), max_size=20), st.floats(0.01, 0.99), st.integers(1, 5))
def test_time_to_threshold_against_looking_at_every_window(series, threshold, window):
    expected = INF if len(series) >= window else NAN
    for end in range(len(series), window - 1, -1):
        if math.fsum(series[end - window : end]) / window >= threshold:
            expected = float(end)
    assert time_to_threshold(series, threshold, window=window) == pytest.approx(expected, nan_ok=True)


@settings(deadline=None)
@given(st.lists(st.integers(-2, 2), max_size=12), st.integers(1, 3))
def test_time_to_loss_against_looking_at_every_rest_of_the_stream(lead, window):
    """A lead over the reference in whole numbers: the first window from which on all windows are behind."""
    expected = NAN
    if len(lead) >= window:
        sums = {end: sum(lead[end - window : end]) for end in range(window, len(lead) + 1)}
        behind = [end for end in sums if all(sums[later] < 0 for later in sums if later >= end)]
        expected = float(behind[0]) if behind else INF
    reference = [5.0] * len(lead)
    found = time_to_loss([5.0 + d for d in lead], reference, window=window)
    assert found == pytest.approx(expected, nan_ok=True)


def test_a_loss_is_none_where_the_end_is_not_behind():
    assert time_to_loss([0.1, 0.9], [0.5, 0.5]) == INF
    assert time_to_loss([0.3, 0.3], [0.3, 0.3]) == INF
    assert math.isnan(time_to_loss([0.3, NAN], [0.3, 0.3]))
    with pytest.raises(ValueError, match="equal lengths"):
        time_to_loss([0.3], [])


def test_times_that_nobody_knows():
    assert time_to_threshold([0.1, NAN, 0.9], 0.8) == 3.0
    assert math.isnan(time_to_threshold([0.1, NAN, 0.2], 0.8))
    assert math.isnan(time_to_threshold([], 0.8))
    assert times([1.0, INF, NAN, INF]) == Times(INF, 1, 3, 1)
    assert times([4.0, 2.0]).median == 4.0
    assert math.isnan(times([NAN]).median)
    for bad in ({"threshold": NAN}, {"threshold": 0.5, "window": 0}):
        with pytest.raises(ValueError, match="must be"):
            time_to_threshold([0.1], **bad)


def test_transfer_and_forgetting_in_closed_cases():
    # Nothing is forgotten; everything is forgotten; later tasks help earlier ones.
    keeps = [[0.9, NAN, NAN], [0.9, 0.8, NAN], [0.9, 0.8, 0.7]]
    assert backward_transfer(keeps) == forgetting(keeps) == 0.0
    loses = [[0.9, NAN, NAN], [0.1, 0.9, NAN], [0.1, 0.1, 0.9]]
    assert backward_transfer(loses) == pytest.approx(-0.8)
    assert forgetting(loses) == pytest.approx(0.8)
    helps = [[0.5, NAN], [0.8, 0.6]]
    assert backward_transfer(helps) == pytest.approx(0.3)
    assert forgetting(helps) == pytest.approx(-0.3)
    # Best in the middle: forgetting sees the fall from there, backward transfer does not.
    middle = [[0.5, 0, 0], [0.9, 0.5, 0], [0.5, 0.5, 0.5]]
    assert backward_transfer(middle) == 0.0
    assert forgetting(middle) == pytest.approx(0.2)
    assert math.isnan(backward_transfer([[0.5]]))
    assert math.isnan(forgetting([[NAN, 0], [0.5, 0.5]]))
    with pytest.raises(ValueError, match="one row and one column"):
        forgetting([[1.0, 2.0]])


def test_transfer_from_two_series_is_that_of_the_matrix():
    generator = np.random.default_rng(0)
    matrix = generator.uniform(size=(6, 6))
    own = list(np.diag(matrix))
    past = [NAN, *(float(matrix[t, :t].mean()) for t in range(1, 6))]
    assert recent_transfer(own, past, 100)[-1] == pytest.approx(backward_transfer(matrix))
    near = [NAN, *(float(matrix[t, max(0, t - 2) : t].mean()) for t in range(1, 6))]
    expected = np.mean([matrix[5, 3] - matrix[3, 3], matrix[5, 4] - matrix[4, 4]])
    assert recent_transfer(own, near, 2)[-1] == pytest.approx(expected)
    with pytest.raises(ValueError, match="equal lengths"):
        recent_transfer([0.5], [], 5)


# ---- tuning


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=7))
def test_best_of_k_against_every_choice(trials):
    scores, reported = [float(a) for a, _ in trials], [float(b) for _, b in trials]
    for best in best_of_k(scores, reported):
        outcomes = []
        for choice in itertools.combinations(range(len(trials)), best.k):
            chosen = max(choice, key=lambda i: (scores[i], -i))
            outcomes.append(reported[chosen])
        outcomes.sort()
        assert best.mean == pytest.approx(sum(outcomes) / len(outcomes))
        assert best.low == outcomes[math.ceil(len(outcomes) / 4) - 1]
        assert best.high == outcomes[math.ceil(3 * len(outcomes) / 4) - 1]


def test_best_of_k_rises_and_ends_at_the_best():
    curve = best_of_k([0.3, 0.1, 0.9, 0.5])
    assert [b.k for b in curve] == [1, 2, 3, 4]
    assert curve[0].mean == pytest.approx(0.45)
    assert curve[-1] == (4, 0.9, 0.9, 0.9)
    assert all(a.mean <= b.mean for a, b in itertools.pairwise(curve))
    many = best_of_k([i / 1500 for i in range(1500)])  # binomials beyond the range of floats
    assert many[749].mean == pytest.approx(750 * 1501 / 751 / 1500 - 1 / 1500)
    assert best_of_k([-INF, 1.0])[0].mean == -INF
    for bad in ([], [NAN]):
        with pytest.raises(ValueError, match="score"):
            best_of_k(bad)
    with pytest.raises(ValueError, match="equally many"):
        best_of_k([1.0], [1.0, 2.0])


# ---- cost


def test_at_budget_goes_by_cost_alone():
    points = [(2.0, 0.1), (1.0, 0.9), (2.0, 0.5), (5.0, 1.0)]
    assert at_budget(points, 4.0) == 0.1
    assert at_budget(points, 1.999) == 0.1  # within one in a hundred
    assert at_budget(points, 1.5) == 0.9
    assert at_budget(points, 0.5) is None
    with pytest.raises(ValueError, match="finite"):
        at_budget([(NAN, 1)], 1.0)


def test_cost_per_gain():
    gain = Estimate(0.1, 0.05, 0.2, 10)
    dear = cost_per_gain(12.0, 10.0, gain)
    assert (dear.mean, dear.low, dear.high) == pytest.approx((20.0, 10.0, 40.0))
    cheaper = cost_per_gain(8.0, 10.0, gain)
    assert cheaper.high < 0
    for unclear in (Estimate(0.1, -0.1, 0.3, 10), Estimate(0.1, NAN, NAN, 1), Estimate(-0.1, -0.2, -0.05, 9)):
        assert math.isnan(cost_per_gain(12.0, 10.0, unclear).mean)
    assert math.isnan(cost_per_gain(NAN, 10.0, gain).mean)
