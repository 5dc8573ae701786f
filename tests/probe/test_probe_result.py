"""What is said about curves that are known."""

from __future__ import annotations

import json
import math

import pytest

from pliant.probe import ProbeResult
from pliant.probe.learning import Run

STEPS = tuple(range(10, 101, 10))


def line(first, last):
    return tuple(first + (last - first) * index / 9 for index in range(10))


def result(aged, fresh, threshold=None):
    """One curve of the aged network for each seed, and a list of curves of fresh twins."""
    runs = []
    for seed, (mine, twins) in enumerate(zip(aged, fresh, strict=True)):
        runs.append(Run("aged", seed, None, STEPS, mine, None))
        runs += [Run("fresh", seed, twin, STEPS, curve, None) for twin, curve in enumerate(twins)]
    return ProbeResult(tuple(runs), {"task": {"name": "lines"}}, threshold)


def test_gap_area_and_progress_of_straight_lines():
    found = result([line(2.0, 1.0)] * 3, [[line(2.0, 0.5)]] * 3)
    assert found.gap.mean == pytest.approx(0.5)
    assert found.area.mean == pytest.approx(0.25)
    assert found.progress.mean == pytest.approx(1.5)
    assert found.accuracy_gap is None
    assert found.outcome == "worse"
    assert result([line(2.0, 0.1)] * 3, [[line(2.0, 0.5)]] * 3).outcome == "better"


def test_the_threshold_is_where_fresh_networks_have_nearly_arrived():
    found = result([line(2.0, 1.0)] * 2, [[line(2.0, 0.5)]] * 2).to_threshold
    assert found.thresholds == pytest.approx((0.65, 0.65))
    assert found.fresh == (100, 100)
    assert found.aged == (None, None)
    assert (found.delay.mean, found.is_lower_bound, found.is_upper_bound) == (0.0, True, False)
    slow, fast = line(2.0, 0.4), line(2.0, -4.0)
    found = result([slow] * 2, [[fast]] * 2, threshold=0.7).to_threshold
    assert found.aged == (90, 90)
    assert found.fresh == (30, 30)
    assert (found.delay.mean, found.is_lower_bound) == (60.0, False)


def test_tau_trainability_of_every_run():
    found = result([line(2.0, 0.4), line(2.0, 1.0)], [[line(2.0, -4.0)], [line(2.0, 0.5)]])
    assert [(run.trainable, run.steps, run.budget) for run in found.trainability(0.7)] == [
        (True, 90, 100),
        (False, None, 100),
    ]
    assert [run.steps for run in found.trainability(0.7, "fresh")] == [30, 90]


def test_where_nobody_arrives_nothing_is_said_about_a_delay():
    found = result([line(2.0, 1.0)] * 3, [[line(2.0, 0.5)]] * 3, threshold=0.1)
    assert found.to_threshold.delay.num == 0
    assert found.to_threshold.delay.num_excluded == 3
    assert math.isnan(found.to_threshold.delay.mean)
    assert "unknown" in str(found)
    half = result([line(2.0, 1.0)] * 2, [[line(2.0, 0.5)], [line(2.0, 1.5)]], threshold=0.9).to_threshold
    assert half.delay.num == 1
    assert half.aged == (None, None)
    assert half.fresh == (80, None)
    both = result([line(2.0, 0.0), line(2.0, 1.0)], [[line(2.0, 1.0)], [line(2.0, 0.0)]], threshold=0.9).to_threshold
    assert (both.is_lower_bound, both.is_upper_bound) == (True, True)


def test_the_verdict_rests_on_the_final_loss_and_its_interval():
    aged = [line(2.0, 0.5 + delta) for delta in (-0.2, 0.3, 0.1)]
    found = result(aged, [[line(2.0, 0.5)]] * 3)
    assert found.outcome == "no difference shown"
    for number in (found.gap.low, found.gap.high):
        assert f"{number:.3g}" in found.verdict
    bump = tuple(value + 0.7 * (0 < index < 9) for index, value in enumerate(line(2.0, 0.5)))
    found = result([bump] * 3, [[line(2.0, 0.5)]] * 3)
    assert found.outcome == "no difference shown"
    assert "On the way its loss was higher" in found.verdict


def test_a_gap_is_seen_beside_the_spread_of_fresh_networks():
    fresh = [[line(2.0, 0.3), line(2.0, 0.7)] for _ in range(3)]
    found = result([line(2.0, 0.51 + 0.001 * seed) for seed in range(3)], fresh)
    assert found.spread == pytest.approx(0.4 / 2**0.5)
    assert found.outcome == "worse"
    assert "Fresh networks differ from each other by as much" in found.verdict
    found = result([line(2.0, 1.9)] * 3, fresh)
    assert "differ from each other" not in found.verdict
    assert math.isnan(result([line(2.0, 1.0)] * 2, [[line(2.0, 0.5)]] * 2).spread)


def test_a_run_that_diverged_in_some_seeds_is_named():
    lost = (*line(2.0, 1.0)[:5], *[math.inf] * 5)
    found = result([line(2.0, 1.0), lost, line(2.0, 1.1)], [[line(2.0, 0.5)]] * 3)
    assert found.gap.num == 2
    assert found.gap.num_excluded == 1
    assert "diverged in 1 of 3 seeds, which are not counted" in found.verdict
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["runs"][2]["loss"][-1] == "inf"
    assert "no fair test" in result([line(2.0, 1.0)] * 2, [[line(2.0, 0.5)], [lost]]).verdict
