"""An independent implementation as an oracle, where it is installed (it needs care: see docs/spectrum.md)."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from spectrum_tools import mlp
from torch import nn

from pliant.spectrum import ggn_operator, ggn_spectrum, hessian_operator

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("curvlinops") is None, reason="curvlinops-for-pytorch is not installed"
)

X = torch.randn(20, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
LABELS = torch.arange(20) % 4


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh])
def test_products_and_spectra_are_those_of_curvlinops(activation):
    import curvlinops

    model = mlp([6, 9, 7, 4], activation)
    parameters = list(model.parameters())
    identity = torch.eye(sum(item.numel() for item in parameters)).double()
    for kind, make in (("HessianLinearOperator", hessian_operator), ("GGNLinearOperator", ggn_operator)):
        operator = getattr(curvlinops, kind)(model, nn.CrossEntropyLoss(), parameters, [(X, LABELS)])
        theirs = operator @ identity
        assert (make(model, (X, LABELS)).dense() - theirs).abs().max() < 1e-14
    largest = torch.linalg.eigvalsh(theirs)[-80:]
    mine = ggn_spectrum(model, (X, LABELS)).eigenvalues()
    assert (mine - largest).abs().max() < 1e-14
