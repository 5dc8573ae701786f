"""A fresh start is a new network and a new optimizer, and leaves alone what is not trained."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import pliant
from pliant import FreshStart, IllegalConfiguration


def trained(every=1, frozen: tuple[str, ...] = ()):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    for name in frozen:
        model.get_parameter(name).requires_grad_(False)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad])
    handle = pliant.attach(model, optimizer, FreshStart(every), example_inputs=torch.randn(6, 4))
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(6, 4)).square().mean().backward()
        optimizer.step()
    return model, optimizer, handle


def test_everything_begins_again():
    model, optimizer, handle = trained()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    handle.task_boundary()
    assert torch.equal(model[1].running_mean, torch.zeros(8))
    assert torch.equal(model[1].weight, torch.ones(8))
    assert int(model[1].num_batches_tracked) == 0
    for name in ("0.weight", "0.bias", "3.weight", "3.bias"):
        value = model.state_dict()[name]
        assert not bool((value == before[name]).any()), name
        assert float(value.abs().max()) <= (8 if name[0] == "3" else 4) ** -0.5
    for state in optimizer.state.values():
        assert not any(bool(value.any()) for value in state.values())


def test_what_no_optimizer_trains_stays():
    model, _, handle = trained(frozen=("0.weight", "1.weight", "1.bias"))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    handle.task_boundary()
    same = {name for name, value in model.state_dict().items() if torch.equal(value, before[name])}
    assert same == {name for name in before if name.startswith("1.")} | {"0.weight"}


def test_every_second_boundary_and_never():
    model, _, handle = trained(every=2)
    before = model[0].weight.detach().clone()
    handle.task_boundary()
    assert torch.equal(model[0].weight, before)
    handle.task_boundary()
    assert not torch.equal(model[0].weight, before)
    assert FreshStart().needs_boundary
    assert not FreshStart().null().needs_boundary


def test_a_period_below_one_is_refused():
    with pytest.raises(IllegalConfiguration, match="every=0"):
        trained(every=0)
