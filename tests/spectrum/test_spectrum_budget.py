"""The eps of a budget, and the bound that it stands for, against gradient descent that is really run."""

from __future__ import annotations

import math

import pytest
import torch
from spectrum_tools import mlp
from torch import nn

from pliant.errors import ResolutionWarning
from pliant.spectrum import budget_eps, budget_rank, eps_rank, ggn_spectrum, linearise, ntk_spectrum

X = torch.randn(24, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Y = torch.randn(24, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def descend(model, lr, steps):
    """Plain gradient descent on half the mean squared error."""
    for _ in range(steps):
        loss = (model(X) - Y).square().sum() / (2 * len(X))
        grads = torch.autograd.grad(loss, list(model.parameters()))
        with torch.no_grad():
            for item, grad in zip(model.parameters(), grads, strict=True):
                item.sub_(lr * grad)
    with torch.no_grad():
        return float((model(X) - Y).square().sum() / (2 * len(X)))


@pytest.mark.parametrize("steps", [1, 10, 100])
def test_a_linear_model_descends_by_the_formula(steps):
    torch.manual_seed(0)
    model = nn.Linear(6, 2).double()
    linear = linearise(model, (X, Y))
    assert float(linear.energies.sum()) == pytest.approx(linear.loss(lr=0.3, steps=0), rel=1e-12)
    assert linear.loss(lr=0.3, steps=steps) == pytest.approx(descend(model, 0.3, steps), rel=1e-11)


def test_a_planted_spectrum():
    """Loss of a quadratic: half the sum of lambda (1 - eta lambda)^(2T) c^2, with the distances c to the optimum."""
    values = torch.tensor([4.0, 1.0, 0.25, 0.0625, 0.01], dtype=torch.float64)
    model = nn.Linear(5, 1, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, -2.0, 0.5, 3.0, 1.0]]))
    x = torch.diag(values.sqrt()) * 5**0.5
    linear = linearise(model, (x, torch.zeros(5, 1).double()))
    c = model.weight.detach().flatten()
    for steps in (0, 3, 50):
        wanted = 0.5 * (values * (1 - 0.2 * values) ** (2 * steps) * c**2).sum()
        assert linear.loss(lr=0.2, steps=steps) == pytest.approx(float(wanted), rel=1e-12)
    assert linear.lower_bound(lr=0.2, steps=50) > 0


@pytest.mark.parametrize("steps", [10, 100, 1000])
def test_the_bound_holds_for_every_eps_and_is_not_empty(steps):
    model = mlp([6, 5, 2], nn.Tanh)
    linear, lr = linearise(model, (X, Y)), 0.05
    reached = linear.loss(lr=lr, steps=steps)
    limits = [*torch.logspace(-8, math.log10(0.99 / lr), 40).tolist(), budget_eps(lr, steps)]
    bounds = [linear.lower_bound(lr=lr, steps=steps, eps=eps) for eps in limits]
    assert all(bound <= reached * (1 + 1e-12) for bound in bounds)
    assert max(bounds) > 0.5 * reached
    assert linear.may_reach(reached, lr=lr, steps=steps)
    assert not linear.may_reach(max(bounds) * 0.99, lr=lr, steps=steps)
    with pytest.raises(ValueError, match="no bound"):
        linear.lower_bound(lr=lr, steps=steps, eps=2 / lr)


def test_a_collapsed_network_cannot_reach_what_a_fresh_one_can():
    fresh, dead = mlp([6, 40, 2]), mlp([6, 40, 2])
    with torch.no_grad():
        dead[0].bias.fill_(-100)
    lr, steps, tau = 0.05, 4000, 0.1
    start = float(linearise(dead, (X, Y)).energies.sum())
    assert not linearise(dead, (X, Y)).may_reach(tau, lr=lr, steps=steps)
    assert linearise(fresh, (X, Y)).may_reach(tau, lr=lr, steps=steps)
    assert descend(dead, lr, steps) > tau
    assert descend(fresh, lr, steps) < tau < start
    shares = [budget_rank(ntk_spectrum(model, X), lr=lr, steps=steps).rank.value for model in (dead, mlp([6, 40, 2]))]
    assert shares[0] == pytest.approx(2 / 48)  # the last layer's biases
    assert shares[1] > 0.5


def test_the_budget_names_eps_and_the_curve_stands_beside_it():
    model = mlp([6, 20, 2])
    spectrum = ggn_spectrum(model, (X, torch.arange(24) % 2))
    found = budget_rank(spectrum, lr=0.1, steps=500)
    assert found.eps == budget_eps(0.1, 500) == 0.01
    assert found.rank == eps_rank(spectrum, 0.01, normalised=True)
    assert found.curve[4][0] == pytest.approx(0.01)
    shares = [rank.value for _, rank in found.curve]
    assert shares == sorted(shares, reverse=True)
    assert [eps for eps, _ in found.curve][::8] == pytest.approx([1e-4, 1.0])
    assert "eps* = 0.01" in str(found)
    assert len(str(found).splitlines()) == 11
    rough = ggn_spectrum(model, (X, torch.arange(24) % 2), method="lanczos", steps=6, num_probes=2)
    with pytest.warns(ResolutionWarning):
        below = budget_rank(rough, lr=1.0, steps=100_000)
    assert math.isnan(below.rank.value)
    assert math.isnan(below.curve[0][1].value)
