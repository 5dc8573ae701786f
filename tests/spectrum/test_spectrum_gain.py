"""The expected gain of a step, against steps that are taken."""

from __future__ import annotations

import pytest
import torch
from spectrum_tools import mlp
from torch import nn

from pliant.errors import IllegalConfiguration
from pliant.spectrum import expected_one_step_gain

X = torch.randn(40, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def half_squares(model, x, y):
    return (model(x) - y).square().sum() / (2 * len(x))


def test_without_noise_a_step_on_a_quadratic_gains_at_least_as_much():
    torch.manual_seed(0)
    model = nn.Linear(5, 2).double()
    x, y = X[:20].repeat(2, 1), torch.randn(20, 2).double().repeat(2, 1)  # both halves are the same
    gain = expected_one_step_gain(model, (x, y), "mse")
    start = half_squares(model, x, y)
    grads = torch.autograd.grad(start, list(model.parameters()))
    size = float(torch.cat([grad.flatten() for grad in grads]).square().sum())
    inputs = torch.cat([x, torch.ones(40, 1).double()], 1)
    curvature = float(torch.linalg.eigvalsh(inputs.T @ inputs / 40)[-1])
    assert gain.strength == pytest.approx(size, rel=1e-10)
    assert gain.noise == pytest.approx(0, abs=1e-20)
    assert gain.curvature == pytest.approx(curvature, rel=1e-8)
    assert (gain.reliability, gain.best_lr) == (pytest.approx(1), pytest.approx(1 / curvature))
    assert gain.best == pytest.approx(size / (2 * curvature), rel=1e-8)
    before = [item.detach().clone() for item in model.parameters()]
    for share in (0.1, 0.5, 1.0, 1.5, 1.9):
        lr = share * gain.best_lr
        with torch.no_grad():
            for item, grad, origin in zip(model.parameters(), grads, before, strict=True):
                item.copy_(origin - lr * grad)
            found = float(start - half_squares(model, x, y))
        assert found >= gain.at(lr) * (1 - 1e-9) == pytest.approx(lr * (1 - lr * curvature / 2) * size, rel=1e-7)
        assert gain.at(lr) <= gain.best


def test_strength_and_noise_are_unbiased():
    """Over all pairs of halves, their means are the squared mean gradient and the variance of a batch's."""
    generator = torch.Generator().manual_seed(1)
    model, x = nn.Linear(5, 1, bias=False).double(), X
    y = torch.randn(40, 1, generator=generator, dtype=torch.float64)
    each = (model(x) - y).detach() * x
    mean, variance = each.mean(0), each.var(0, correction=0).sum()
    found = []
    for _ in range(100):
        rows = torch.randint(40, (8,), generator=generator)
        gain = expected_one_step_gain(model, (x[rows], y[rows]), "mse", steps=1)
        found.append((gain.strength, gain.noise))
    values = torch.tensor(found).double()
    errors = values.std(0) / len(found) ** 0.5
    assert (values.mean(0) - torch.stack([mean.square().sum(), variance / 8])).abs().le(3 * errors).all()


def test_a_network_that_gets_no_gradient_can_gain_nothing():
    labels = X[:, :3].argmax(1)
    fresh, dead = mlp([5, 12, 3]), mlp([5, 12, 3])
    with torch.no_grad():
        dead[0].bias.fill_(-100.0)
        dead[2].bias.zero_()
    batch = (X, labels)
    assert 2 * expected_one_step_gain(dead, batch).best < expected_one_step_gain(fresh, batch).best
    flat = expected_one_step_gain(dead, batch, where="0")
    assert (flat.strength, flat.best, flat.reliability, flat.curvature) == (0, 0, 0, 0)
    with pytest.raises(IllegalConfiguration, match="two samples or more"):
        expected_one_step_gain(fresh, (X[:1], labels[:1]))
