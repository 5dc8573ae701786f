"""What is particular to C-CHAIN: the share, what it asks of the loop, and that nothing but real steps counts."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import pliant
from pliant import IllegalConfiguration, NoEffectWarning, devices
from pliant.bench.ensemble import stack
from pliant.interventions import CChain
from pliant.reminders import PENALTY_AFTER


def make():
    return nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 2))


def attached(method, fused=False, kind=None):
    torch.manual_seed(0)
    model = make()
    optimizer = (kind or torch.optim.SGD)(model.parameters(), lr=0.003 if kind else 0.05, fused=fused)
    return model, optimizer, pliant.attach(model, optimizer, method, example_inputs=torch.randn(4, 5))


def batches(number):
    generator = torch.Generator().manual_seed(number)
    return (torch.randn(16, n, generator=generator) for n in (5, 2, 5))


def step(model, optimizer, handle, number, scaler=None, scale=1.0):
    x, y, other = batches(number)
    optimizer.zero_grad()
    loss = (model(x) - y).square().mean()
    term = handle.penalty(loss=loss, reference=other)
    total = scale * (loss + term)
    if scaler is None:
        total.backward()
        optimizer.step()
    else:
        scaler.scale(total).backward()
        scaler.step(optimizer)
        scaler.update()
    return loss.item(), term.item()


@pytest.mark.parametrize("share", [0.05, 0.5])
def test_the_term_is_a_share_of_the_loss_and_reduces_churn(share):
    model, optimizer, handle = attached(CChain(share, start=20, window=20), kind=torch.optim.Adam)
    seen = [step(model, optimizer, handle, number) for number in range(200)]
    assert all(term == 0 for _, term in seen[:20])
    losses, terms = (sum(values[-100:]) for values in zip(*seen, strict=True))
    assert terms / losses == pytest.approx(share, rel=0.2)
    record = handle.record()
    assert record["CChain.coefficient"] > 0
    plain, plain_optimizer, measured = attached(CChain(1e-9, start=20, window=20), kind=torch.optim.Adam)
    for number in range(200):
        step(plain, plain_optimizer, measured, number)
    assert record["CChain.churn"] < 0.7 * measured.record()["CChain.churn"]


def test_the_copy_is_of_lag_steps_ago():
    model, optimizer, handle = attached(CChain(lag=2))
    history = []
    for number in range(6):
        history.append(model[0].weight.detach().clone())
        assert torch.equal(handle._contexts[0][0].snapshot("theta_2")["0.weight"], history[max(number - 2, 0)])
        step(model, optimizer, handle, number)


def test_between_comparisons_no_further_pass_is_run():
    model, optimizer, handle = attached(CChain(0.5, start=0, every=3))
    calls, terms = [], []
    model[-1].register_forward_hook(lambda *_: calls.append(None))
    for number in range(12):
        before = len(calls)
        terms.append((len(calls), step(model, optimizer, handle, number)[1]))
        terms[-1] = (len(calls) - before, terms[-1][1])
    assert [term != 0 for _, term in terms] == [False] * 5 + [True] + [False, False, True] * 2
    assert len({count for count, _ in terms[::3]}) == 1  # the training pass, and what hooks hear of it
    handle.detach()


def test_asking_twice_changes_nothing():
    model, optimizer, handle = attached(CChain(0.5, start=2))
    for number in range(5):
        step(model, optimizer, handle, number)
    x, y, other = batches(7)
    terms = [handle.penalty(loss=(model(x) - y).square().mean(), reference=other).item() for _ in range(2)]
    assert terms[0] == terms[1] > 0


@pytest.mark.parametrize("accelerated", [False, True])
def test_a_step_that_is_skipped_leaves_no_trace(accelerated, monkeypatch):
    monkeypatch.setattr(devices, "_as_accelerator", accelerated)
    states = []
    for overflow in (False, True):
        model, optimizer, handle = attached(CChain(0.5, start=100), fused=True)
        scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=1000)
        for number in range(5):
            step(model, optimizer, handle, number, scaler)
        if overflow:
            step(model, optimizer, handle, 50, scaler, scale=float("inf"))
        memory = handle.state_dict()["memory"]["0"]
        states.append((memory["scalars"], memory["snapshots"]))
    for a, b in zip(*states, strict=True):
        for outer, tensors in a.items():
            if outer not in ("loss", "churn"):  # the values in progress
                assert all(torch.equal(tensor, b[outer][inner]) for inner, tensor in tensors.items()), outer


def test_a_loss_that_is_not_finite_does_not_enter_the_means():
    model, optimizer, handle = attached(CChain(0.5))
    for number in range(4):
        step(model, optimizer, handle, number)
    before = handle.record()
    handle.penalty(loss=torch.tensor(float("nan")), reference=torch.randn(4, 5))
    optimizer.step()
    assert handle.record()["CChain.coefficient"] == before["CChain.coefficient"]


def test_what_is_missing_is_said():
    model, _, handle = attached(CChain())
    x = torch.randn(4, 5)
    with pytest.raises(IllegalConfiguration, match="without loss=loss"):
        handle.penalty(reference=x)
    with pytest.raises(IllegalConfiguration, match="without reference=batch"):
        handle.penalty(loss=model(x).sum())
    with pytest.raises(IllegalConfiguration, match=r"shape \(4, 2\); pass a scalar"):
        handle.penalty(loss=model(x), reference=x)
    for wrong, what in ((CChain(-1.0), "share"), (CChain(lag=0), "lag"), (CChain(start=-1), "start")):
        with pytest.raises(IllegalConfiguration, match=what):
            attached(wrong)
    with pytest.raises(IllegalConfiguration, match="window"):
        attached(CChain(window=0))
    model, optimizer, _ = attached(CChain())
    model(x).sum().backward()
    for _ in range(PENALTY_AFTER - 1):
        optimizer.step()
    with pytest.warns(NoEffectWarning, match="CChain adds a term"):
        optimizer.step()


def test_a_stack_needs_the_loss_of_each_member():
    stacked = stack([make(), make()])
    optimizer = torch.optim.SGD(stacked.parameters(), lr=0.05)
    x = torch.randn(2, 4, 5)
    units = pliant.find_units(make(), x[0])
    handle = pliant.attach(stacked, optimizer, CChain(start=0), units=units, seed=(1, 2))
    with pytest.raises(IllegalConfiguration, match=r"the loss of each member, \(2,\)"):
        handle.penalty(loss=stacked(x).sum(), reference=x)
    assert handle.penalty(loss=stacked(x).sum((1, 2)), reference=x).shape == ()
