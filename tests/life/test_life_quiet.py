"""A quiet period: nothing is given a new start, statistics go on, and the state knows of it."""

from __future__ import annotations

import pytest
import torch
from life_tools import METHOD, Run, assert_same
from torch import nn

import pliant
from pliant import IllegalConfiguration
from pliant.interventions import (
    L2,
    HareAndTortoise,
    LayerReset,
    PlasticityInjection,
    ReDo,
    SelectiveWeightReset,
    SelfNormalizedReset,
    ShrinkAndPerturb,
    WeightNoise,
)

STARTS_ANEW = [METHOD, ReDo(tau=1.0, every=2), ShrinkAndPerturb(0.5, 0.5, every=2), WeightNoise(0.1),
               SelectiveWeightReset(0.1, every=2), LayerReset(every=2), HareAndTortoise(every=2),
               SelfNormalizedReset(initial_threshold=1, max_threshold=4)]  # fmt: skip


@pytest.mark.parametrize("method", STARTS_ANEW, ids=lambda method: type(method).__name__)
def test_in_a_quiet_period_the_weights_are_those_of_training_alone(method):
    run, plain = Run(method), Run(())
    run.handle.pause()
    run.train(0, 12)
    plain.train(0, 12)
    assert_same([run.model.state_dict(), run.optimizer.state_dict()],
                [plain.model.state_dict(), plain.optimizer.state_dict()])  # fmt: skip
    assert not list(run.handle.events)
    assert "quiet since step 0" in repr(run.handle)
    run.handle.resume()
    assert list(run.train(12, 40).handle.events)


def test_what_keeps_weights_in_bounds_goes_on():
    run = Run(L2(0.1))
    with run.handle.quiet():
        run.train(0, 3)
    assert [event.count for event in run.handle.events] == [3]


def test_statistics_go_on_and_nothing_is_made_up_for_later():
    run, plain = Run(METHOD), Run(METHOD)
    run.train(0, 8)
    plain.train(0, 8)
    with run.handle.quiet():
        run.train(8, 208)
    ages = run.handle.state_dict()["state"][0]["body.0"]["age"]
    assert int(ages.min()) >= 200, "units go on to age"
    before = sum(int(count) for count in run.handle.num_resets.values())
    run.train(208, 218)
    reset = sum(int(count) for count in run.handle.num_resets.values()) - before
    assert 0 < reset <= 2 + 10 * 0.02 * 26, "the budget of 200 quiet steps (100 units) is not spent at once"


def test_the_state_knows_of_it():
    cut = Run(METHOD).train(0, 8)
    cut.handle.pause()
    saved = cut.train(8, 12).saved()
    rest = Run(METHOD, seed=3).load(saved)
    assert rest.handle.is_quiet
    for run in (cut, rest):
        run.train(12, 20).handle.resume()
        run.train(20, 30)
    assert_same(rest.saved(), cut.saved())
    fresh = Run(METHOD).load(saved)
    with fresh.handle.quiet():  # as the loop of a resumed job does
        fresh.train(12, 14)
    assert not fresh.handle.is_quiet


def test_immature_units_are_counted():
    run = Run(METHOD)
    assert set(run.handle.immature()) == {"words", "body.0", "body.2"}
    run.train(0, 30)
    latest = {}
    for event in run.handle.events:
        latest.update({(event.group, unit): event.step for unit in event.units})
    for within in (1, 4, 10, 1000):
        want = sum(step > 30 - within for step in latest.values())
        assert sum(int(count) for count in run.handle.immature(within).values()) == want
    assert_same(run.handle.immature(), run.handle.immature(4))
    rest = Run(METHOD, seed=2).load(run.saved())
    assert_same(rest.handle.immature(10), run.handle.immature(10))
    with run.handle.quiet():
        run.train(30, 41)
    assert not any(int(count) for count in run.handle.immature(10).values()), "ready to be exported"


def test_what_would_be_left_out_for_ever_is_refused():
    run = Run(LayerReset())
    run.handle.pause()
    with pytest.raises(IllegalConfiguration, match=r"LayerReset acts at task boundaries.*resume"):
        run.handle.task_boundary()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    handle = pliant.attach(model, optimizer, PlasticityInjection("2", at=2), example_inputs=torch.ones(2, 6))
    handle.pause()
    model(torch.ones(2, 6)).square().mean().backward()
    optimizer.step()
    with pytest.raises(IllegalConfiguration, match="due at step 2, in a quiet period"):
        optimizer.step()
