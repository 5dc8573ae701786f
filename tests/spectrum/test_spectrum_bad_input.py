"""What cannot be computed is refused, with what to do about it."""

from __future__ import annotations

import math

import pytest
import torch
from spectrum_tools import mlp
from torch import nn
from torch.autograd.function import once_differentiable

from pliant.errors import IllegalConfiguration, NoEffect, UnsupportedOp
from pliant.spectrum import (
    basis_bytes,
    budget_eps,
    density,
    eps_rank,
    ggn_operator,
    ggn_spectrum,
    gram_bytes,
    hessian_operator,
    hessian_spectrum,
    lanczos,
    negative_mass,
    quadrature,
)

X, Y = torch.randn(6, 5, generator=torch.Generator().manual_seed(0)).double(), torch.tensor([0, 1, 2, 0, 1, 2])


@pytest.mark.parametrize(
    ("batch", "options", "message"),
    [
        (X, {}, "pass inputs and targets"),
        ((X[:0], Y[:0]), {}, "the batch is empty"),
        ((torch.tensor(1.0), Y), {}, "no tensor with samples"),
        ((X * math.nan, Y), {}, "is nan"),
        ((X, Y + 1), {}, "has 3 logits"),
        ((X, Y[:4]), {}, "do not fit together"),
        ((X, Y.double()), {}, "pass class indices"),
        ((X, Y.double()), {"loss": "mse"}, "do not fit together"),
        ((X, Y), {"loss": "hinge"}, "is not known"),
        ((X, Y), {"loss": lambda out, _: out}, "must return one number"),
        ((X, Y), {"active": [0, 1]}, r"targets of class 2, which are not among the 2 active"),
        ((X, Y), {"active": [0, 1, 2, 3]}, "names logit 3"),
        ((X, Y), {"active": []}, "at least one logit"),
        ((X, Y), {"active": torch.tensor([True, True])}, "a mask of shape"),
        ((X, torch.zeros_like(Y)), {"active": [0]}, "two logits or more"),
        ((X, torch.full_like(Y, -100)), {}, "no position of the batch has a target"),
        ((X, Y), {"mode": "test"}, "'eval' or 'train'"),
        ((X, Y), {"dtype": torch.float16}, "float32 or float64"),
    ],
)
def test_a_batch_that_does_not_fit(batch, options, message):
    with pytest.raises(IllegalConfiguration, match=message):
        ggn_spectrum(mlp([5, 8, 3]), batch, **options)
    with pytest.raises(IllegalConfiguration, match=message):
        hessian_operator(mlp([5, 8, 3]), batch, **options)


def test_models_that_do_not_fit():
    with pytest.raises(NoEffect, match="no trainable parameter"):
        ggn_spectrum(mlp([5, 8, 3]), (X, Y), where="body")
    with pytest.raises(IllegalConfiguration, match="is a batch norm"):
        ggn_spectrum(nn.Sequential(nn.Linear(5, 3), nn.BatchNorm1d(3)).double(), (X, Y))
    with pytest.raises(IllegalConfiguration, match="drops units at random"):
        ggn_spectrum(nn.Sequential(nn.Dropout(), nn.Linear(5, 3)).double(), (X, Y), mode="train")

    class Two(nn.Linear):
        def forward(self, x):
            return super().forward(x), x

    with pytest.raises(IllegalConfiguration, match="returns 2 tensors"):
        ggn_spectrum(Two(5, 3).double(), (X, Y))

    class Mean(nn.Linear):
        def forward(self, x):
            return super().forward(x).mean(0)

    with pytest.raises(IllegalConfiguration, match="first dimension must be"):
        ggn_spectrum(Mean(5, 3).double(), (X, Y))
    broken = mlp([5, 8, 3])
    with torch.no_grad():
        broken[0].weight[0, 0] = math.inf
    with pytest.raises(IllegalConfiguration, match="Look for NaN"):
        hessian_spectrum(broken, (X, Y))


def test_a_derivative_that_is_not_finite_where_the_loss_is():
    class Root(nn.Linear):
        def forward(self, x):
            return super().forward(x).sqrt()

    model = Root(5, 3, bias=False).double()
    with torch.no_grad():
        model.weight.zero_()
    with pytest.raises(IllegalConfiguration, match="although the loss is finite"):
        ggn_spectrum(model, (X, Y))
    with pytest.raises(IllegalConfiguration, match="operator gave nan"):
        hessian_spectrum(model, (X, Y))


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.tanh()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return grad * (1 - x.tanh() ** 2)


def test_an_operation_without_a_second_derivative():
    class Custom(nn.Linear):
        def forward(self, x):
            return Once.apply(super().forward(x))

    model = Custom(5, 3).double()
    with pytest.raises(UnsupportedOp, match="cannot be differentiated as often"):
        hessian_operator(model, (X, Y))
    plain = nn.Sequential(nn.Linear(5, 3), nn.Tanh()).double()
    plain[0].load_state_dict(model.state_dict())
    a, b = (ggn_spectrum(item, (X, Y)).eigenvalues() for item in (model, plain))
    assert (a - b).abs().max() < 1e-15, "first derivatives are enough for the exact Gauss-Newton spectrum"
    a, b = (ggn_spectrum(item, (X, Y), method="jacobian").eigenvalues() for item in (model, plain))
    assert (a - b).abs().max() < 1e-15, "one row at a time where the backward pass takes no more"


def test_an_operation_that_writes_into_what_is_needed():
    class Overwrites(nn.Linear):
        def forward(self, x):
            h = super().forward(x).tanh()
            h += 1
            return h

    model = Overwrites(5, 3).double()
    for compute in (ggn_spectrum, hessian_spectrum, lambda *args: ggn_spectrum(*args, method="jacobian")):
        with pytest.raises(UnsupportedOp, match="Write out of place"):
            compute(model, (X, Y))


def test_losses_without_a_gram_form():
    model = mlp([5, 8, 3])
    mean = lambda out, _: (out.mean(0) - 1).square().sum()  # noqa: E731
    concave = lambda out, _: -out.square().mean()  # noqa: E731
    with pytest.raises(IllegalConfiguration, match="couples the samples"):
        ggn_spectrum(model, (X, Y), mean)
    with pytest.raises(IllegalConfiguration, match="not convex"):
        ggn_spectrum(model, (X, Y), concave)
    assert ggn_spectrum(model, (X, Y), concave, method="lanczos", steps=5, num_probes=1).nodes[0][0] < 0
    line = ggn_spectrum(model, (X, Y), lambda out, _: out.mean())
    assert not line.eigenvalues().any(), "a loss that is linear in the outputs has no curvature there"


def test_what_does_not_fit_into_memory_is_refused_before_it_is_computed():
    model = mlp([5, 8, 3])
    rows = 6 * 2
    assert gram_bytes(rows, 75, torch.float64) == rows**2 * 32
    for compute in (ggn_spectrum, lambda *args, **kwargs: ggn_spectrum(*args, method="jacobian", **kwargs)):
        with pytest.raises(IllegalConfiguration, match=r"Take at most 5 positions"):
            compute(model, (X, Y), memory=gram_bytes(10, 75, torch.float64))
    with pytest.raises(IllegalConfiguration, match=r"Jacobian of 12 outputs with respect to '0.weight'"):
        ggn_spectrum(model, (X, Y), method="jacobian", memory=gram_bytes(rows, 75, torch.float64))
    small = ggn_spectrum(model, (X, Y), method="jacobian", memory=2 * 12 * 8 * 41)  # several blocks of parameters
    assert (small.eigenvalues() - ggn_spectrum(model, (X, Y)).eigenvalues()).abs().max() < 1e-15
    assert basis_bytes(75, 50, torch.float64) == 75 * 50 * 8
    with pytest.raises(IllegalConfiguration, match="at most 9 steps"):
        hessian_spectrum(model, (X, Y), steps=50, memory=75 * 8 * 9)
    with pytest.raises(IllegalConfiguration, match="the whole Hessian"):
        hessian_spectrum(model, (X, Y), method="dense", memory=1000)


def test_options_out_of_range():
    model = mlp([5, 8, 3])
    spectrum = ggn_spectrum(model, (X, Y))
    for call, message in (
        (lambda: eps_rank(spectrum, 0.0), "must be positive"),
        (lambda: eps_rank(spectrum, math.nan), "must be positive"),
        (lambda: negative_mass(spectrum, -1.0), "must not be negative"),
        (lambda: budget_eps(0.0, 10), "must be positive"),
        (lambda: density(spectrum, width=0.0), "must be positive"),
        (lambda: hessian_spectrum(model, (X, Y), steps=3).eigenvalues(), "not the eigenvalues"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    for call, message in (
        (lambda: ggn_spectrum(model, (X, Y), method="svd"), "it is 'auto'"),
        (lambda: hessian_spectrum(model, (X, Y), method="svd"), "it is 'lanczos'"),
        (lambda: hessian_spectrum(model, (X, Y), num_probes=0), "at least one probe"),
        (lambda: hessian_spectrum(model, (X, Y), steps=0), "at least one step"),
        (lambda: ggn_operator(model, (X, Y))(torch.ones(7)), "one entry for each parameter"),
        (lambda: lanczos(lambda v: v, torch.zeros(4), 2), "has length 0"),
        (lambda: quadrature(lambda v: v, 4, steps=2, seeds=(), dtype=torch.float32), "at least one probe"),
    ):
        with pytest.raises(IllegalConfiguration, match=message):
            call()
