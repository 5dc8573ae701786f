"""What a method sees of gradients after the step, and the chance that it may take."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import final

import torch
from torch import nn

import pliant
from pliant.bench.ensemble import stack
from pliant.interventions.base import Context, Intervention


@final
@dataclass(frozen=True)
class Look(Intervention):
    """Hands its context to a function after each step."""

    see: Callable[[Context], object] = field(default=lambda ctx: None, compare=False)

    def null(self) -> Look:
        return replace(self, see=lambda ctx: None)

    def unit_pattern(self) -> str:
        return "*"

    def after_step(self, ctx: Context) -> None:
        self.see(ctx)


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2))


def test_gradients_are_those_that_the_optimizer_has_used():
    model, found = mlp(), {}

    def see(ctx):
        found.update({name: ctx.gradient(name) for name in ctx.parameters()})
        found["magnitude"] = ctx.gradient_magnitude(ctx.groups()[0])

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pliant.attach(model, optimizer, Look(see), example_inputs=torch.randn(2, 3))
    model(torch.randn(4, 3)).square().sum().backward()
    model[2].bias.grad = None
    wanted = {name: p.grad if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}
    optimizer.step()
    assert found["2.bias"] is wanted["2.bias"] is None
    for name in ("0.weight", "0.bias", "2.weight"):
        assert torch.equal(found[name], wanted[name])
        assert not found[name].requires_grad
    assert torch.allclose(found["magnitude"], wanted["0.weight"].abs().sum(1))
    optimizer.zero_grad()
    optimizer.step()
    assert found["magnitude"] is None


def test_sparse_gradients_are_given_as_dense_ones():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.out = nn.Embedding(7, 4, sparse=True), nn.Linear(4, 1)

        def forward(self, x):
            return self.out(torch.relu(self.embedding(x)).mean(1))

    model, found = Tokens(), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x = torch.tensor([[1, 2, 2]])
    pliant.attach(model, optimizer, Look(lambda ctx: found.append(ctx.gradient("embedding.weight"))), example_inputs=x)
    model(x).sum().backward()
    wanted = model.embedding.weight.grad.to_dense()
    optimizer.step()
    assert torch.equal(found[0], wanted)
    assert (wanted[[0, 3]] == 0).all()


def test_each_member_has_its_gradients_and_its_own_chance():
    models = [mlp(), mlp(), mlp()]
    units, stacked, found = pliant.find_units(mlp(), torch.randn(2, 3)), stack(models), {}

    def see(ctx):
        found["magnitude"] = ctx.gradient_magnitude(ctx.groups()[0])
        found["chance"] = ctx.edit.uniform("0.weight")

    optimizer = torch.optim.SGD(stacked.parameters(), lr=0.1)
    pliant.attach(stacked, optimizer, Look(see), units=units, seed=(3, 4, 3))
    stacked(torch.randn(3, 4, 3)).square().sum().backward()
    wanted = stacked[0].weight.grad.abs().sum(-1 if stacked[0].weight.shape[1] == 5 else -2)
    optimizer.step()
    assert torch.allclose(found["magnitude"], wanted)
    chance = found["chance"]
    assert chance.shape == (3,)
    assert chance[0] == chance[2] != chance[1]
    assert ((chance >= 0) & (chance < 1)).all()


def test_chance_is_part_of_the_state_of_the_generators():
    model, found = mlp(), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    look = Look(lambda ctx: found.append(float(ctx.edit.uniform("0.weight"))))
    handle = pliant.attach(model, optimizer, look, example_inputs=torch.randn(2, 3), seed=0)
    saved = handle.state_dict()
    for _ in range(3):
        optimizer.step()
    handle.load_state_dict(saved)
    for _ in range(3):
        optimizer.step()
    assert found[:3] == found[3:]
    assert len(set(found)) == 3


def test_directions_are_told_from_other_tensors():
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 5)), nn.ReLU(), nn.Linear(5, 2))
    optimizer, found = torch.optim.SGD(model.parameters(), lr=0.1), {}
    look = Look(lambda ctx: found.update({name: ctx.edit.is_direction(name) for name in ctx.parameters()}))
    pliant.attach(model, optimizer, look, example_inputs=torch.randn(2, 3))
    model(torch.randn(4, 3)).sum().backward()
    optimizer.step()
    assert [name for name, is_direction in found.items() if is_direction] == ["0.parametrizations.weight.original1"]
