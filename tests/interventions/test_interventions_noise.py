"""What is particular to noise on gradients and weights: its size, its decay, its scale under mixed precision."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import pliant
from pliant import IllegalConfiguration, NoEffect, devices
from pliant.interventions import GradientNoise, WeightNoise


def attached(method, *, seed=3, fused=False, lr=0.1):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 50), nn.ReLU(), nn.Linear(50, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, fused=fused)
    handle = None
    if method is not None:
        handle = pliant.attach(model, optimizer, method, example_inputs=torch.randn(4, 40), seed=seed)
    return model, optimizer, handle


def step(model, optimizer, scaler=None, scale=1.0):
    optimizer.zero_grad()
    loss = scale * model(torch.ones(4, 40)).square().mean()
    (loss if scaler is None else scaler.scale(loss)).backward()
    gradient = model[0].weight.grad.clone()
    if scaler is None:
        optimizer.step()
    else:
        scaler.step(optimizer)
        scaler.update()
    return gradient


@pytest.mark.parametrize(("relative_to", "ratio"), [("tensor", 0.05 * 2000**0.5), ("entry", 0.05), ("nothing", None)])
def test_the_size_of_the_noise(relative_to, ratio):
    model, optimizer, _ = attached(GradientNoise(0.05, relative_to=relative_to))
    before = step(model, optimizer)
    noise = model[0].weight.grad - before
    if ratio is None:
        assert noise.std() == pytest.approx(0.05, rel=0.1)
    else:
        assert noise.norm() / before.norm() == pytest.approx(ratio, rel=0.1)


def test_the_noise_decays():
    sizes = []
    model, optimizer, _ = attached(GradientNoise(0.5, 0.5, relative_to="nothing"), lr=1e-3)
    for _ in range(4):
        before = step(model, optimizer)
        sizes.append(float((model[0].weight.grad - before).std()))
    assert sizes == pytest.approx([0.5, 0.25, 0.125, 0.0625], rel=0.1)
    model, optimizer, _ = attached(GradientNoise(0.5, 0.0), lr=1e-3)
    step(model, optimizer)
    before = step(model, optimizer)
    assert torch.equal(before, model[0].weight.grad)  # at the first step only


@pytest.mark.parametrize("relative_to", ["tensor", "nothing"])
def test_the_loss_scale_does_not_change_the_noise(relative_to):
    """A fused optimizer unscales the gradients itself, after the noise was added to scaled ones."""
    weights = []
    for scaler in (None, torch.amp.GradScaler("cpu", init_scale=1024.0)):
        model, optimizer, _ = attached(GradientNoise(0.05, relative_to=relative_to), fused=True)
        for _ in range(3):
            step(model, optimizer, scaler)
        weights.append(model[0].weight.detach().clone())
    assert torch.allclose(*weights, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", [GradientNoise(0.1), WeightNoise(0.1)])
def test_a_step_that_is_skipped_draws_nothing(method):
    states = []
    for overflow in (False, True):
        model, optimizer, handle = attached(method, fused=True)
        scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=1000, backoff_factor=0.5)
        step(model, optimizer, scaler)
        if overflow:
            step(model, optimizer, scaler, scale=float("inf"))
        step(model, optimizer, scaler)
        states.append((handle.state_dict()["random"]["cpu"][0], model[0].weight.detach().clone()))
    assert torch.equal(states[0][0], states[1][0])
    assert torch.equal(states[0][1], states[1][1])


def test_a_skipped_step_that_the_host_does_not_know_of_adds_nothing(monkeypatch):
    monkeypatch.setattr(devices, "_as_accelerator", True)
    model, optimizer, _ = attached(GradientNoise(0.1), fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    before = model[0].weight.detach().clone()
    step(model, optimizer, scaler, scale=float("inf"))
    assert torch.equal(before, model[0].weight)
    step(model, optimizer, scaler)
    assert not torch.equal(before, model[0].weight)


def test_weight_noise_is_the_step_size_times_gaussian():
    for relative_to, wanted in (("step_size", 0.2 * 0.1), ("nothing", 0.2), ("entry", 0.2 / 40**0.5 / 3**0.5)):
        plain, other = attached(None), attached(WeightNoise(0.2, relative_to, every=2))
        for number in range(2):
            for model, optimizer, _ in (plain, other):
                step(model, optimizer)
            if number == 0:
                assert torch.equal(plain[0][0].weight, other[0][0].weight)
        noise = (other[0][0].weight - plain[0][0].weight).detach()
        assert noise.std() == pytest.approx(wanted, rel=0.1)
        assert abs(noise.mean()) < 0.1 * wanted


def test_what_cannot_work_is_refused():
    for wrong, what in (
        (GradientNoise(-1.0), "noise_scale"),
        (GradientNoise(float("inf")), "noise_scale"),
        (GradientNoise(decay=1.1), "decay"),
        (GradientNoise(relative_to="everything"), "relative_to"),
        (WeightNoise(-1.0), "noise_scale"),
        (WeightNoise(relative_to="everything"), "relative_to"),
        (WeightNoise(every=0), "every"),
    ):
        with pytest.raises(IllegalConfiguration, match=what):
            attached(wrong)
    for wrong in (GradientNoise(where="nothing"), WeightNoise(where="nothing")):
        with pytest.raises(NoEffect, match="matches"):
            attached(wrong)
    model, optimizer, _ = attached(GradientNoise())
    with pytest.raises(IllegalConfiguration, match="closure"):
        optimizer.step(lambda: model(torch.ones(4, 40)).square().mean())
