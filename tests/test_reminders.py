"""What waits for a call of the user says so; what is called says nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import pytest
import torch
from torch import nn

import pliant
from pliant import IllegalConfiguration, NoEffectWarning
from pliant.interventions.base import Intervention
from pliant.reminders import BOUNDARY_AFTER, PENALTY_AFTER


@final
@dataclass(frozen=True)
class OutputNorm(Intervention):
    """The squared outputs on a reference batch, as a share of the loss."""

    strength: float = 0.1

    @property
    def needs_penalty(self):
        return self.strength > 0

    def null(self):
        return OutputNorm(0.0)

    def penalty(self, ctx):
        if self.strength == 0:
            return None
        share = 1.0 if ctx.loss is None else float(ctx.loss.detach())
        return share * self.strength * ctx.call(ctx.reference).square().mean()

    def conflicts_with(self, other):
        return "both act on the outputs" if isinstance(other, OutputNorm) else None


def protected(method):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    return model, optimizer, pliant.attach(model, optimizer, method, example_inputs=torch.randn(2, 3))


def train(model, optimizer, steps, extra=lambda: 0.0):
    for _ in range(steps):
        optimizer.zero_grad()
        (model(torch.randn(2, 3)).square().mean() + extra()).backward()
        optimizer.step()


def test_a_missing_penalty_is_said_once():
    model, optimizer, _ = protected(OutputNorm())
    train(model, optimizer, PENALTY_AFTER - 1)
    with pytest.warns(NoEffectWarning, match=r"OutputNorm adds a term.*handle\.penalty\(\)") as caught:
        train(model, optimizer, 20)
    assert len(caught) == 1


def test_a_penalty_that_is_added_is_right_and_quiet():
    model, optimizer, handle = protected(OutputNorm(0.5))
    reference = torch.randn(5, 3)
    term = handle.penalty(loss=torch.tensor(3.0), reference=reference)
    torch.testing.assert_close(term, 1.5 * model(reference).square().mean())
    term.backward()
    assert model[0].weight.grad.any()
    train(model, optimizer, PENALTY_AFTER + 1, lambda: handle.penalty(reference=reference))


def test_the_null_waits_for_nothing():
    model, optimizer, handle = protected([OutputNorm().null(), pliant.ShrinkAndPerturb(every=5)])
    train(model, optimizer, PENALTY_AFTER + 1)
    handle.detach()


def test_a_missing_boundary_is_said_after_many_steps(monkeypatch):
    monkeypatch.setattr("pliant.reminders.BOUNDARY_AFTER", 30)
    assert BOUNDARY_AFTER == 10_000
    model, optimizer, handle = protected(pliant.ShrinkAndPerturb())
    train(model, optimizer, 29)
    with pytest.warns(NoEffectWarning, match=r"ShrinkAndPerturb acts at task boundaries.*30 steps") as caught:
        train(model, optimizer, 40)
    assert len(caught) == 1
    handle.detach()


def test_a_missing_boundary_is_said_at_the_end():
    model, optimizer, handle = protected(pliant.FreshStart())
    train(model, optimizer, 3)
    with pytest.warns(NoEffectWarning, match="FreshStart acts at task boundaries"):
        handle.detach()
    handle.detach()


def test_a_boundary_before_a_checkpoint_counts_after_it():
    model, optimizer, handle = protected(pliant.FreshStart())
    train(model, optimizer, 2)
    handle.task_boundary()
    state = handle.state_dict()
    handle.detach()
    model, optimizer, handle = protected(pliant.FreshStart())
    handle.load_state_dict(state)
    train(model, optimizer, 2)
    handle.detach()


def test_methods_that_undo_each_other_are_refused_by_name():
    with pytest.raises(IllegalConfiguration, match="OutputNorm and OutputNorm do not go together: both act on the out"):
        protected([pliant.L2(), OutputNorm(), OutputNorm(0.2)])
