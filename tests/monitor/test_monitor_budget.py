"""The cost stays within the budget, the first reading included; processes decide alike."""

from __future__ import annotations

import warnings

import pytest
from monitor_tools import DEFAULT, Run

import pliant
from pliant.monitor.ledger import Ledger

RANKS = {("effective_rank", "a"): 1e8, ("effective_rank", "b"): 4e8, ("cloned_fraction", "a"): 1e7}
COSTS = {("effective_rank", "a"): 0.02, ("effective_rank", "b"): 0.09, ("cloned_fraction", "a"): 0.001}


def simulate(budget: float | None, *, light: float = 0.001, step: float = 0.003, readings: int = 400, every: int = 500):
    """A ledger over many readings; what was spent after each, in seconds, and what was run."""
    ledger, spent, ran = Ledger(budget, None), [0.0], []
    ledger.register(RANKS)
    for _ in range(readings):
        ledger.settle(every, step, light)
        due = ledger.due()
        for task in due:
            ledger.book(task, COSTS[task])
        ran.append(due)
        spent.append(spent[-1] + light + sum(COSTS[task] for task in due))
    return ledger, spent, ran


@pytest.mark.parametrize("budget", [0.01, 0.003])
def test_the_total_stays_under_the_budget_at_every_time(budget):
    ledger, spent, ran = simulate(budget)
    for reading, seconds in enumerate(spent[1:], 1):
        # a task's first cost is a guess, which may be too low by as much as the task costs
        assert seconds <= budget * reading * 500 * 0.003 + sum(COSTS.values()), reading
    assert spent[-1] <= 0.82 * budget * 400 * 500 * 0.003
    assert spent[-1] >= 0.7 * budget * 400 * 500 * 0.003, "and is used"
    counts = {task: sum(task in due for due in ran) for task in RANKS}
    assert all(counts.values())
    assert counts["cloned_fraction", "a"] > 2 * counts["effective_rank", "a"] > 4 * counts["effective_rank", "b"]
    for task, count in counts.items():
        assert ledger.interval(task) == pytest.approx(400 * 500 / count, rel=0.7) or count == 400


def test_the_first_reading_is_no_exception():
    ledger = Ledger(0.01, None)
    ledger.register(RANKS)
    ledger.settle(500, 1e-4, 1e-4)  # half a millisecond is there, and a tenth of one is gone
    assert ledger.due() == []
    for _ in range(20):
        ledger.settle(500, 1e-4, 1e-4)
    assert ledger.due() == [("cloned_fraction", "a")]


def test_no_limit_runs_everything_and_too_little_runs_nothing():
    assert all(due == list(RANKS) for due in simulate(None, readings=5)[2])
    ledger, _, ran = simulate(0.01, light=0.1)
    assert not any(ran)
    assert ledger.light_share(500) == pytest.approx(0.1 / (500 * 0.003))
    assert all(ledger.interval(task) == float("inf") for task in RANKS)


def test_a_pause_counts_for_nothing():
    ledger = Ledger(0.01, None)
    ledger.register(RANKS)
    for index in range(20):
        ledger.settle(1, 60.0 if index % 5 == 4 else 0.003, 0.0)  # an evaluation fell into the window
    assert ledger.step_seconds == 0.003
    assert ledger.due() == []


def test_the_state_goes_on():
    ledger, _, _ = simulate(0.01, readings=30)
    other = Ledger(0.01, None)
    other.load_state_dict(ledger.state_dict())
    other.register(RANKS)
    for one in (ledger, other):
        one.settle(500, 0.003, 0.001)
    assert one.due() == ledger.due()
    assert other.share == ledger.share


def test_a_processes_clock_is_the_slowest_ones(single_process_group):
    import torch

    ledger = Ledger(0.01, torch.distributed.group.WORLD)
    ledger.register(RANKS)
    ledger.settle(500, 0.003, 0.001)
    assert (ledger.step_seconds, ledger.light) == (0.003, 0.001)


def test_a_run_spaces_out_what_is_heavy():
    """With the default budget, a tiny network has time for few of the heavy readings; without one, for all."""
    run = Run("mlp", budget=0.01, every=5, reference=False).train(40)
    without = Run("mlp", budget=None, every=5, reference=False).train(40)

    def count(run: Run, metric: str) -> int:
        return sum(metric in reading.values for reading in run.watch.history)

    assert count(run, "dead_fraction") == count(without, "dead_fraction") == 8
    assert count(without, "effective_rank") == 8
    assert count(run, "effective_rank") < 8
    assert run.watch.cost > 0
    assert without.watch.cadence == dict.fromkeys(DEFAULT, 5.0)


def test_readings_that_cannot_be_afforded_are_said():
    """A number that is given is kept to; if that leaves nothing for the ranks, nobody must take them for fine."""
    run = Run("mlp", budget=1e-4, every=1, reference=False, metrics=["dead_fraction", "effective_rank"])
    with pytest.warns(pliant.NoEffectWarning, match="nothing is left for effective_rank"):
        run.train(20)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run.train(5)
    assert "effective_rank" not in run.watch.current
    assert run.watch.cadence["effective_rank"] == float("inf")
    free = Run("mlp", budget=1e-4, every=None, reference=False, metrics=["dead_fraction", "effective_rank"])
    assert free.watch.every == 500


def test_light_readings_are_spaced_out_no_further_than_needed():
    """Where nobody has said how often: until they take half of the budget, and not once more for every reading."""
    ledger, every = Ledger(0.01, None), 500
    for reading in range(30):
        ledger.settle(every, 1e-4, 0.5 if reading == 0 else 0.0012)  # the first one warms up
        every = ledger.spaced(every)
    assert every == 4000
    assert ledger.light_share(4000) <= 0.005 < ledger.light_share(2000)
    assert Ledger(None, None).spaced(500) == 500
