"""What is particular to weight clipping: the bound of each kind of layer, and what has none."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import pliant
from pliant import IllegalConfiguration, NoEffect
from pliant.interventions import WeightClipping


def after_one_step(model, x, method, **attach):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    handle = pliant.attach(model, optimizer, method, example_inputs=x, **attach)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(9.0)
            parameter.view(-1)[0] = -9.0
    model(x).square().mean().backward()
    optimizer.step()
    return handle


def test_the_bound_of_each_kind_of_layer():
    model = nn.Sequential(
        *(nn.Conv2d(3, 4, 2), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 5), nn.PReLU()),
        nn.Linear(5, 2, bias=False),
    )
    handle = after_one_step(model, torch.randn(4, 3, 3, 3), WeightClipping(2.0))
    for name, fan_in in (("0.weight", 12), ("0.bias", 12), ("4.weight", 16), ("4.bias", 16), ("6.weight", 5)):
        parameter = model.get_parameter(name).detach()
        assert float(parameter.max()) == pytest.approx(2 / math.sqrt(fan_in))
        assert float(parameter.min()) == pytest.approx(-2 / math.sqrt(fan_in))
    for name in ("1.weight", "1.bias", "5.weight"):  # they start at a constant
        assert model.get_parameter(name).detach().abs().max() == 9
    (event,) = handle.events
    assert (event.action, len(event.tensors)) == ("clamp", 5)


def test_the_bound_follows_the_initialisation_that_is_used():
    model = nn.Sequential(nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 2))
    after_one_step(model, torch.randn(4, 8), WeightClipping(1.0), init="kaiming_normal")
    assert float(model[0].weight.detach().max()) == pytest.approx(math.sqrt(2 / 8) * math.sqrt(3))
    assert float(model[0].bias.detach().max()) == 9  # kaiming_normal starts biases at zero


def test_nothing_inside_the_bound_is_touched():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 2))
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    pliant.attach(model, optimizer, WeightClipping(), example_inputs=torch.randn(4, 8))
    model(torch.randn(4, 8)).square().mean().backward()
    optimizer.step()
    assert all(torch.equal(p, q) for p, q in zip(before, model.parameters(), strict=True))


def test_what_cannot_work_is_refused():
    model = nn.Sequential(nn.Linear(8, 5), nn.LayerNorm(5), nn.ReLU(), nn.Linear(5, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for wrong in (WeightClipping(0.0), WeightClipping(-1.0)):
        with pytest.raises(IllegalConfiguration, match="kappa"):
            pliant.attach(model, optimizer, wrong, example_inputs=torch.randn(4, 8))
    for where in ("1.*", "nothing"):
        with pytest.raises(NoEffect, match="was drawn at random"):
            pliant.attach(model, optimizer, WeightClipping(where=where), example_inputs=torch.randn(4, 8))
