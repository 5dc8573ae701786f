"""Every penalty on weights: its closed-form gradient, and its three ways of acting."""

from __future__ import annotations

import dataclasses
import functools

import pytest
import torch
from torch import nn

import pliant
from pliant import IllegalConfiguration, NoEffect
from pliant.bench.ensemble import stack
from pliant.interventions import L2, L2Init, Parseval, SpectralRegularisation

PENALTIES = {
    "l2": L2(0.3),
    "l2_init": L2Init(0.3),
    "l1_init": L2Init(0.3, norm="l1"),
    "spectral": SpectralRegularisation(0.02),
    "spectral_now_and_then": SpectralRegularisation(0.01, k=1.5, every=3),
    "parseval": Parseval(0.02, reference_width=None),
    "parseval_rows": Parseval(0.1, scale=1.0, normalise_rows=True, reference_width=6, every=2),
}
WAYS = ("decoupled", "gradient", "loss")


def with_way(method, way, **changes):
    return dataclasses.replace(method, apply=way, **changes)


def network(kind):
    torch.manual_seed(3)
    if kind == "stack":
        make = lambda: nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 6), nn.ReLU(), nn.Linear(6, 3)).double()  # noqa: E731
        return stack([make(), make()]), make(), torch.randn(2, 4, 5, dtype=torch.float64)
    model = nn.Sequential(
        *(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Flatten()),
        *(nn.Linear(16, 5), nn.LayerNorm(5), nn.ReLU(), nn.Linear(5, 3)),
    ).double()
    with torch.no_grad():
        for parameter in model.parameters():  # norms' gains and biases as well away from where they start
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model, model, torch.randn(4, 2, 4, 4, dtype=torch.float64)


@functools.cache
def units_of(kind):
    _, single, x = network(kind)
    return pliant.find_units(single, x[0] if kind == "stack" else x)


def attached(method, kind="conv", lr=0.05):
    model, _, x = network(kind)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    seed = (1, 2) if kind == "stack" else 1
    handle = pliant.attach(model, optimizer, method, units=units_of(kind), seed=seed)
    with torch.no_grad():
        for parameter in model.parameters():  # away from the values at attach
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model, optimizer, handle, x


def step(model, optimizer, handle, x, scale=1.0):
    optimizer.zero_grad()
    (scale * model(x).square().mean() + handle.penalty()).backward()
    optimizer.step()


@pytest.mark.parametrize("kind", ["conv", "stack"])
@pytest.mark.parametrize("name", PENALTIES)
def test_the_closed_form_is_what_autograd_finds(name, kind):
    method = with_way(PENALTIES[name], "loss", strength=1.0)
    _, _, handle, _ = attached(method, kind)
    ctx = handle._contexts[0][0]
    tensors = method.chosen(ctx)
    value = method.value(ctx, tensors)
    assert value.item() == pytest.approx(handle.penalty().item() / method.period)
    wanted = torch.autograd.grad(value, list(tensors.values()))
    with torch.no_grad():
        found = method.gradient(ctx, {key: item.detach() for key, item in tensors.items()})
    assert len(found) == len(wanted) == len(tensors)
    for key, a, b in zip(tensors, found, wanted, strict=True):
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-12), key
    assert any(item.abs().max() > 1e-3 for item in found)


@pytest.mark.parametrize("name", PENALTIES)
def test_before_the_step_and_in_the_loss_are_the_same_steps(name):
    runs = []
    for way in ("gradient", "loss"):
        model, optimizer, handle, x = attached(with_way(PENALTIES[name], way))
        for _ in range(6):
            step(model, optimizer, handle, x)
        runs.append(list(model.parameters()))
    assert all(torch.allclose(p, q, rtol=1e-10, atol=1e-12) for p, q in zip(*runs, strict=True))


@pytest.mark.parametrize("name", PENALTIES)
def test_decoupled_agrees_with_the_others_to_first_order(name):
    """Halving the step size quarters the difference after one step."""
    gaps = []
    for lr in (1e-3, 5e-4):
        ends = []
        for way in ("decoupled", "gradient"):
            model, optimizer, handle, x = attached(with_way(PENALTIES[name], way), lr=lr)
            before = [p.detach().clone() for p in model.parameters()]
            due = PENALTIES[name].period
            for number in range(due):
                step(model, optimizer, handle, x, scale=float(number == due - 1))
            ends.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
            moved = (ends[-1] - torch.cat([p.flatten() for p in before])).norm()
        gaps.append(float((ends[0] - ends[1]).norm()))
        assert gaps[-1] < 0.05 * moved
    assert gaps[1] < 0.3 * gaps[0] or gaps[0] < 1e-12


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", PENALTIES)
def test_the_penalty_goes_down(name, way):
    method = with_way(PENALTIES[name], way)
    model, optimizer, handle, x = attached(method)
    ctx = handle._contexts[0][0]
    before = method.value(ctx, method.chosen(ctx)).item()
    for _ in range(20):
        step(model, optimizer, handle, x, scale=0.0)
    assert method.value(ctx, method.chosen(ctx)).item() < before


@pytest.mark.parametrize("name", PENALTIES)
def test_narrow_parameters_get_a_term_of_their_type(name):
    for way in WAYS:
        model = network("conv")[0].bfloat16()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        handle = pliant.attach(model, optimizer, with_way(PENALTIES[name], way), units=units_of("conv"))
        before = [p.detach().clone() for p in model.parameters()]
        for _ in range(3):
            step(model, optimizer, handle, torch.randn(4, 2, 4, 4).bfloat16())
        assert all(p.dtype == torch.bfloat16 and p.isfinite().all() for p in model.parameters())
        assert any(not torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize("name", PENALTIES)
def test_what_cannot_work_is_refused(name):
    for changes, what in (({"strength": -1.0}, "strength"), ({"apply": "sometimes"}, "apply")):
        with pytest.raises(IllegalConfiguration, match=what):
            attached(type(PENALTIES[name])(**changes))
    with pytest.raises(NoEffect, match="matches where"):
        attached(type(PENALTIES[name])(where="nothing*"))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", PENALTIES)
def test_what_each_way_asks_of_the_loop(name, way):
    method = with_way(PENALTIES[name], way)
    assert method.needs_penalty == (way == "loss")
    assert method.changes_gradients == (way == "gradient")
    assert not method.null().needs_penalty
    assert not method.null().changes_gradients
    model, optimizer, handle, x = attached(method)

    def closure():
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        return loss

    if way == "gradient":
        with pytest.raises(IllegalConfiguration, match="closure"):
            optimizer.step(closure)
    else:
        optimizer.step(closure)
    actions = {event.action for event in handle.events}
    assert actions <= {"shrink", "add"} if way == "decoupled" else not actions
