"""ReDo: scores by hand, the edges of the threshold, and the period."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import nn

import pliant
from pliant import IllegalConfiguration, ReDo

ACTIVITIES = [4.0, 0.0, 1.0, 0.1, 2.9]  # their mean is 1.6


def network(activities=ACTIVITIES) -> nn.Sequential:
    """Constant activations, whatever the input; training itself changes next to nothing."""
    model = nn.Sequential(nn.Linear(2, len(activities)), nn.ReLU(), nn.Linear(len(activities), 1))
    with torch.no_grad():
        model[0].weight.zero_()
        model[0].bias.copy_(torch.tensor(activities))
    return model


def reset_by(method, activities=ACTIVITIES, steps=1):
    model = network(activities)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-9)
    handle = pliant.attach(model, optimizer, method, example_inputs=torch.randn(2, 2), seed=0)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(4, 2)).sum().backward()
        optimizer.step()
    return [(event.step, event.units) for event in handle.events], model


@pytest.mark.parametrize(
    ("tau", "units"),
    [(0.0, (1,)), (0.06, (1,)), (0.0626, (1, 3)), (0.62, (1, 3)), (0.626, (1, 2, 3)), (100.0, (0, 1, 2, 3, 4))],
)
def test_scores_are_activities_over_their_mean(tau, units):
    assert reset_by(ReDo(tau=tau, every=1))[0] == [(1, units)]


def test_a_silent_layer_is_wholly_dormant():
    assert reset_by(ReDo(tau=0.0, every=1), [0.0, 0.0, 0.0])[0] == [(1, (0, 1, 2))]


def test_it_acts_at_the_end_of_each_period_only():
    found, _ = reset_by(ReDo(tau=0.0, every=3), steps=8)
    assert [step for step, _ in found] in ([3], [3, 6])  # a fresh unit may be silent for these inputs
    assert reset_by(ReDo(tau=0.0, every=None), steps=8)[0] == []


def test_what_a_reset_leaves_behind():
    torch.manual_seed(0)
    _, model = reset_by(ReDo(tau=0.1, every=1))
    assert model[0].bias.tolist() == pytest.approx([4.0, 0.0, 1.0, 0.0, 2.9], abs=1e-6)
    assert (model[0].weight.abs().sum(1) > 1e-6).tolist() == [False, True, False, True, False]
    assert model[0].weight.abs().max() <= 2**-0.5
    assert (model[2].weight[0] == 0).tolist() == [False, True, False, True, False]


@pytest.mark.parametrize(("field", "value"), [("tau", -0.1), ("tau", math.nan), ("tau", math.inf), ("every", 0)])
def test_hyper_parameters_out_of_range_are_refused(field, value):
    with pytest.raises(IllegalConfiguration, match=f"ReDo: {field}="):
        reset_by(ReDo(**{field: value}))


def test_every_default_has_a_source():
    assert set(ReDo.defaults) == {field.name for field in dataclasses.fields(ReDo)}
    assert ReDo.source
