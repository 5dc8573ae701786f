"""Layers against slow re-derivations: values, gradients, and networks trained with either, in float64."""

from __future__ import annotations

import pytest
import torch
from parity_tools import OPTIMIZERS
from torch import nn

from pliant.nn import CReLU, DeepFourierFeatures, SmoothLeakyReLU
from references import crelu, deep_fourier_features, smooth_leaky_relu

LAYERS = {
    "crelu": (CReLU, crelu, {}),
    "deep_fourier_features": (DeepFourierFeatures, deep_fourier_features, {}),
    "smooth_leaky_relu": (SmoothLeakyReLU, smooth_leaky_relu, {}),
    "smooth_leaky_relu_steep": (SmoothLeakyReLU, smooth_leaky_relu, {"negative_slope": 0.3, "p": 0.5, "c": 4.0}),
}


@pytest.mark.parametrize("name", LAYERS)
def test_values_and_gradients_are_the_papers(name):
    layer, slow, options = LAYERS[name]
    x = 3 * torch.randn(5, 7, dtype=torch.float64)
    x[0, :3] = torch.tensor([0.0, -20.0, 20.0])
    x.requires_grad_()
    out = layer(**options)(x)
    wanted = slow.forward(x.detach(), **options)
    assert out.shape == wanted.shape
    assert torch.allclose(out, wanted, rtol=1e-12, atol=1e-14)
    grad = torch.randn(out.shape, dtype=torch.float64)
    (found,) = torch.autograd.grad(out, x, grad)
    assert torch.allclose(found, slow.backward(x.detach(), grad, **options), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", LAYERS)
def test_a_network_learns_as_by_the_chain_rule(name, optimizer):
    """The reference has no autograd: every gradient of the small network is written out."""
    layer, slow, options = LAYERS[name]
    units = 6
    width = 2 * units if slow.TWO_FOR_ONE else units
    model = nn.Sequential(nn.Linear(4, units), layer(**options), nn.Linear(width, 3)).double()
    fast_optimizer = OPTIMIZERS[optimizer](model.parameters())
    weights = [parameter.detach().clone() for parameter in model.parameters()]
    first = [weight.clone() for weight in weights]
    slow_optimizer = OPTIMIZERS[optimizer](weights)
    for number in range(8):
        generator = torch.Generator().manual_seed(number)
        x = torch.randn(5, 4, generator=generator, dtype=torch.float64)
        y = torch.randn(5, 3, generator=generator, dtype=torch.float64)
        fast_optimizer.zero_grad()
        (model(x) - y).square().mean().backward()
        fast_optimizer.step()
        hidden = x @ weights[0].T + weights[1]
        features = slow.forward(hidden, **options)
        error = 2 * (features @ weights[2].T + weights[3] - y) / y.numel()
        inner = slow.backward(hidden, error @ weights[2], **options)
        for weight, gradient in zip(
            weights, (inner.T @ x, inner.sum(0), error.T @ features, error.sum(0)), strict=True
        ):
            weight.grad = gradient
        slow_optimizer.step()
    for parameter, weight, before in zip(model.parameters(), weights, first, strict=True):
        assert torch.allclose(parameter, weight, rtol=1e-9, atol=1e-12)
        assert not torch.allclose(weight, before)
