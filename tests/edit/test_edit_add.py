"""Adding to whole parameters after the step, and to their gradients before it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import pytest
import torch
from torch import nn

import pliant
from pliant import NotYetSupported
from pliant.interventions.base import Intervention


@final
@dataclass(frozen=True)
class Add(Intervention):
    """Adds ones to some parameters, or to their gradients."""

    where: str = "*"
    before: bool = False

    def null(self):
        return self

    def _add(self, ctx, verb):
        names = list(ctx.parameters(self.where))
        verb(names, [torch.ones_like(ctx.whole(name)) for name in names], reason="ones")

    def before_step(self, ctx):
        if self.before:
            self._add(ctx, ctx.edit.add_to_gradient)

    def after_step(self, ctx):
        if not self.before:
            self._add(ctx, ctx.edit.add)


def one_step(method: Any, *, scaler=None, fused=False, dry_run=False, unused=False):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    spare = nn.Linear(2, 2).double()
    optimizer = torch.optim.SGD([*model.parameters(), *spare.parameters()], lr=0.1, momentum=0.5, fused=fused)
    before = [p.detach().clone() for p in model.parameters()]
    handle = None
    if method is not None:
        units = pliant.find_units(model, torch.randn(2, 3).double())
        handle = pliant.attach(model, optimizer, method, units=units, dry_run=dry_run)
    loss = model(torch.ones(2, 3).double()).square().sum()
    if unused:
        loss = loss.detach() + model[2].bias.sum()
    if scaler is None:
        loss.backward()
        optimizer.step()
    else:
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
    return before, [p.detach().clone() for p in model.parameters()], handle


def test_what_is_added_to_parameters_is_there_after_the_step():
    _, plain, _ = one_step(None)
    _, added, handle = one_step(Add("*weight"))
    for name, a, b in zip("wbwb", plain, added, strict=True):
        torch.testing.assert_close(b - a, torch.full_like(a, float(name == "w")))
    (event,) = handle.events
    assert (event.action, event.tensors, event.reason) == ("add", ("0.weight", "2.weight"), "ones")


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("scale", [None, 1024.0])
def test_what_is_added_to_gradients_moves_the_weights_by_the_step_size(fused, scale):
    """Under mixed precision, too, where a fused optimizer gets gradients that are still scaled."""
    scaler = lambda: None if scale is None else torch.amp.GradScaler("cpu", init_scale=scale)  # noqa: E731
    _, plain, _ = one_step(None, scaler=scaler(), fused=fused)
    _, pushed, handle = one_step(Add(before=True), scaler=scaler(), fused=fused)
    for a, b in zip(plain, pushed, strict=True):
        torch.testing.assert_close(b - a, torch.full_like(a, -0.1))
    assert [event.action for event in handle.events] == ["add_to_gradient"]


def test_parameters_without_a_gradient_are_left_alone():
    before, pushed, handle = one_step(Add(before=True), unused=True)
    assert [torch.equal(a, b) for a, b in zip(before, pushed, strict=True)] == [True, True, True, False]
    assert [event.tensors for event in handle.events] == [("2.bias",)]


@pytest.mark.parametrize("before", [False, True])
def test_a_dry_run_adds_nothing(before):
    _, plain, _ = one_step(None)
    _, same, handle = one_step(Add(before=before), dry_run=True)
    assert all(torch.equal(a, b) for a, b in zip(plain, same, strict=True))
    assert len(handle.events) == 1


def test_a_sparse_gradient_is_refused_by_name():
    model = nn.Sequential(nn.Embedding(5, 4, sparse=True), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pliant.attach(model, optimizer, Add(before=True), example_inputs=torch.tensor([[0, 1]]))
    model(torch.tensor([[0, 1]])).sum().backward()
    with pytest.raises(NotYetSupported, match=r"gradient of '0\.weight' is sparse"):
        optimizer.step()
