"""ReGraMa: which gradients count, and what happens where there are none."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import nn

import pliant
from pliant import IllegalConfiguration, ReGraMa
from pliant.bench.ensemble import stack


def mlp(activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 6), activation(), nn.Linear(6, 5), activation(), nn.Linear(5, 1))


def attach(model, method, optimizer=None, **more):
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.01)
    return optimizer, pliant.attach(model, optimizer, method, example_inputs=torch.randn(2, 3), seed=0, **more)


def train(model, optimizer, steps=1):
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(16, 3)).square().mean().backward()
        optimizer.step()


def test_a_dead_unit_is_reset_and_learns_again():
    model = mlp()
    with torch.no_grad():
        model[0].bias[[1, 4]] = -50.0
    optimizer, handle = attach(model, ReGraMa(tau=0.0, every=4, where="0"))
    train(model, optimizer, 3)
    assert list(handle.events) == []
    train(model, optimizer)
    assert [(event.step, event.group, event.units) for event in handle.events] == [(4, "0", (1, 4))]
    assert (model[2].weight[:, [1, 4]] == 0).all()
    train(model, optimizer)  # outgoing weights of zero: they must grow before the incoming ones see a gradient
    train(model, optimizer)
    assert (model[0].weight.grad[[1, 4]].abs().sum(1) > 0).all()


def test_a_unit_that_is_large_and_saturated_is_seen():
    """Its activation is 1 everywhere, so that ReDo takes it for one of the most active ones."""
    model = mlp(nn.Tanh)
    with torch.no_grad():
        model[0].bias[2] = 50.0
    optimizer, handle = attach(model, [ReGraMa(tau=0.01, every=1), pliant.ReDo(tau=0.01, every=1)])
    train(model, optimizer)
    assert [(event.intervention, event.group, event.units) for event in handle.events] == [("ReGraMa", "0", (2,))]


def test_scores_are_relative_to_the_layer_and_blind_to_the_scale_of_the_loss():
    chosen = []
    for scale in (1.0, 2.0**16):
        model = mlp()
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-9)
        _, handle = attach(model, ReGraMa(tau=0.6, every=1), optimizer)
        torch.manual_seed(3)
        (model(torch.randn(16, 3)).square().mean() * scale).backward()
        wanted = {}
        for name, layer in (("0", model[0]), ("2", model[2])):
            size = layer.weight.grad.abs().mean(1)
            wanted[name] = tuple((size <= 0.6 * size.mean()).nonzero().flatten().tolist())
        optimizer.step()
        found = {event.group: event.units for event in handle.events}
        assert found == {name: units for name, units in wanted.items() if units}
        chosen.append(found)
    assert chosen[0] == chosen[1]
    assert chosen[0]


def test_accumulated_gradients_are_those_of_the_whole_batch():
    x = torch.randn(16, 3)
    chosen = []
    for parts in (1, 4):
        model = mlp()
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-9)
        _, handle = attach(model, ReGraMa(tau=0.7, every=1), optimizer)
        for part in x.chunk(parts):
            (model(part).square().mean() / parts).backward()
        optimizer.step()
        chosen.append([(event.group, event.units) for event in handle.events])
    assert chosen[0] == chosen[1] != []


def test_it_works_under_a_closure():
    model = mlp()
    with torch.no_grad():
        model[0].bias[1] = -50.0
    optimizer, handle = attach(model, ReGraMa(tau=0.0, every=1))

    def closure():
        optimizer.zero_grad()
        loss = model(torch.ones(4, 3)).square().mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert 1 in next(event.units for event in handle.events if event.group == "0")


def test_gradients_that_are_gone_are_an_error_and_not_a_reset_of_everything():
    model = mlp()
    optimizer, handle = attach(model, ReGraMa(every=2))

    def closure():
        loss = model(torch.randn(4, 3)).square().mean()
        loss.backward()
        optimizer.zero_grad()
        return loss

    optimizer.step(closure)  # not due
    with pytest.raises(IllegalConfiguration, match=r"gradients of step 2.*closure"):
        optimizer.step(closure)
    assert list(handle.events) == []


def test_a_layer_without_any_gradient_is_left_alone():
    model = mlp()
    optimizer, handle = attach(model, ReGraMa(tau=0.5, every=1))
    (model(torch.randn(4, 3)).sum() * 0).backward()
    optimizer.step()
    assert list(handle.events) == []


def test_one_head_of_two_is_judged_where_only_one_is_used():
    actor, critic = mlp(), mlp()
    optimizer = torch.optim.SGD([*actor.parameters(), *critic.parameters()], lr=1e-3)
    handle = pliant.attach(
        {"actor": actor, "critic": critic},
        optimizer,
        ReGraMa(tau=0.9, every=1),
        example_inputs={"actor": torch.randn(2, 3), "critic": torch.randn(2, 3)},
    )
    actor(torch.randn(8, 3)).square().mean().backward()
    optimizer.step()
    assert {event.group.split(".")[0] for event in handle.events} == {"actor"}


def test_several_producers_of_one_group_are_summed():
    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate, self.up, self.down = nn.Linear(3, 6), nn.Linear(3, 6), nn.Linear(6, 1)

        def forward(self, x):
            return self.down(torch.sigmoid(self.gate(x)) * self.up(x))

    torch.manual_seed(0)
    model = Gated()
    optimizer, handle = attach(model, ReGraMa(tau=0.8, every=1), torch.optim.SGD(model.parameters(), lr=1e-9))
    model(torch.randn(16, 3)).square().mean().backward()
    size = model.gate.weight.grad.abs().sum(1) + model.up.weight.grad.abs().sum(1)
    optimizer.step()
    (event,) = handle.events
    assert event.units == tuple((size <= 0.8 * size.mean()).nonzero().flatten().tolist())
    assert 0 < len(event.units) < 6


def test_sparse_gradients_count():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.out = nn.Embedding(9, 6, sparse=True), nn.Linear(6, 1)

        def forward(self, x):
            return self.out(torch.relu(self.embedding(x)).mean(1))

    torch.manual_seed(0)
    model = Tokens()
    with torch.no_grad():
        model.embedding.weight[:, 3] = -1.0
    x = torch.randint(0, 9, (8, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    handle = pliant.attach(model, optimizer, ReGraMa(tau=0.0, every=1), example_inputs=x, seed=0)
    model(x).square().mean().backward()
    assert model.embedding.weight.grad.is_sparse
    optimizer.step()
    (event,) = handle.events
    assert event.units == (3,)


def test_broken_gradients_stop_the_run_or_spare_their_member():
    model = mlp()
    optimizer, handle = attach(model, ReGraMa(tau=0.9, every=1))
    (model(torch.randn(4, 3)).square().mean() * math.nan).backward()
    with pytest.raises(IllegalConfiguration, match=r"gradients of '0' are not finite.*Nothing was reset"):
        optimizer.step()
    assert list(handle.events) == []

    stacked = stack([mlp(), mlp()])
    optimizer = torch.optim.SGD(stacked.parameters(), lr=0.01)
    units = pliant.find_units(mlp(), torch.randn(2, 3))
    handle = pliant.attach(stacked, optimizer, ReGraMa(tau=0.9, every=1), units=units, seed=(0, 1))
    losses = stacked(torch.randn(2, 8, 3)).square().mean((1, 2))
    (losses * torch.tensor([1.0, math.nan])).sum().backward()
    optimizer.step()
    assert {member for event in handle.events for member in event.members} == {0}


@pytest.mark.parametrize(("field", "value"), [("tau", -0.1), ("tau", math.nan), ("tau", math.inf), ("every", 0)])
def test_hyper_parameters_out_of_range_are_refused(field, value):
    with pytest.raises(IllegalConfiguration, match=f"ReGraMa: {field}="):
        attach(mlp(), ReGraMa(**{field: value}))


def test_every_default_has_a_source():
    assert set(ReGraMa.defaults) == {field.name for field in dataclasses.fields(ReGraMa)}
    assert ReGraMa.source
