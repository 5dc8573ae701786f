"""The matrices once more, by brute force: Jacobians and Hessians of plain functions, nothing of the package."""

from __future__ import annotations

import itertools

import torch
from torch import nn
from torch.nn import functional


def mlp(widths, activation=nn.ReLU, seed=0):
    torch.manual_seed(seed)
    layers = []
    for fan_in, fan_out in itertools.pairwise(widths[:-1]):
        layers += [nn.Linear(fan_in, fan_out), activation()]
    return nn.Sequential(*layers, nn.Linear(widths[-2], widths[-1])).double()


def trained(model, x, y, steps=150, lr=0.02):
    """A few hundred steps, then other labels belong to it: its Hessian is strongly indefinite."""
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    for _ in range(steps):
        optimizer.zero_grad()
        functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model


def flat_function(model, x, select=lambda out: out):
    """Outputs as a function of one flat vector, and that vector."""
    named = {name: item.detach() for name, item in model.named_parameters() if item.requires_grad}
    sizes = [item.numel() for item in named.values()]

    def outputs(flat):
        parts = flat.split(sizes)
        tensors = {name: part.view(item.shape) for (name, item), part in zip(named.items(), parts, strict=True)}
        args = (x,) if isinstance(x, torch.Tensor) else x
        return select(torch.func.functional_call(model, tensors, args))

    return outputs, torch.cat([item.reshape(-1) for item in named.values()])


def dense_ggn(model, x, loss, select=lambda out: out):
    """``J^T (d^2 loss / d outputs^2) J`` with everything written out."""
    outputs, at = flat_function(model, x, select)
    out = outputs(at).detach()
    jacobian = torch.func.jacrev(lambda flat: outputs(flat).flatten())(at)
    curvature = torch.func.jacrev(torch.func.jacrev(lambda value: loss(value.view(out.shape))))(out.flatten())
    return jacobian.T @ curvature @ jacobian


def dense_hessian(model, x, loss, select=lambda out: out):
    outputs, at = flat_function(model, x, select)
    return torch.func.jacrev(torch.func.jacrev(lambda flat: loss(outputs(flat))))(at)


def differences(model, x, loss, vector, select=lambda out: out):
    """The Hessian times a vector from two gradients: torch.func's own is off where a norm has a gain."""
    outputs, at = flat_function(model, x, select)
    ends = [torch.func.grad(lambda flat: loss(outputs(flat)))(at + sign * 1e-6 * vector) for sign in (1, -1)]
    return (ends[0] - ends[1]) / 2e-6


def nonzero(values, tolerance=1e-10):
    return values[values.abs() > tolerance * values.abs().max()].sort().values


def assert_same_spectrum(found, matrix, atol=1e-13):
    """Eigenvalues of a Spectrum are those of a matrix, up to zeros."""
    mine = found.eigenvalues()
    theirs = torch.linalg.eigvalsh(matrix.double())
    size = max(len(mine), len(theirs))
    pad = lambda values: torch.cat([values.new_zeros(size - len(values)), values.abs().sort().values])  # noqa: E731
    assert (pad(mine) - pad(theirs)).abs().max() <= atol * max(1.0, float(theirs.abs().max()))
