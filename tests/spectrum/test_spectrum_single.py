"""The metrics that need a model: what the catalogue says of them is shown, and they are the numbers of the spectra."""

from __future__ import annotations

import math
import re

import pytest
import torch
from spectrum_tools import mlp

from pliant import IllegalConfiguration
from pliant.mechanisms import MECHANISMS
from pliant.metrics import CATALOGUE
from pliant.observation import MEASURABLE, measure, observe
from pliant.spectrum import (
    budget_rank,
    curvature_share,
    effective_rank,
    fisher_trace,
    ggn_spectrum,
    hessian_spectrum,
    largest_eigenvalue,
    ntk_condition,
    ntk_effective_rank,
    ntk_spectrum,
    sharpness,
    trace,
)

NAMES = [name for name, info in CATALOGUE.items() if info.needs == "model"]
X = torch.randn(48, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Y = (X[:, :3] + 0.5 * torch.randn(48, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)).argmax(1)
FEW = 4


def value(name, model, rows=slice(None)):
    function = CATALOGUE[name].function
    options = {"lr": 0.5, "steps": 100} if name == "curvature_share" else {}
    found = function(model, X[rows] if name.startswith("ntk") else (X[rows], Y[rows]), **options)
    return found.best if name == "expected_one_step_gain" else found.value


def changed(factor=1.0, constant=0.0):
    """The network, its outputs times a factor and plus a constant."""
    model = mlp([6, 10, 8, 3], torch.nn.Tanh)
    with torch.no_grad():
        model[-1].weight.mul_(factor), model[-1].bias.mul_(factor).add_(constant)
    return model


def apart(a, b):
    return abs(a - b) / max(abs(a), abs(b), 1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_what_the_catalogue_says_of_them(name):
    info, model = CATALOGUE[name], changed()
    assert info.module == "pliant.spectrum"
    for sentence in (info.depends_on_batch, info.depends_on_offset, info.depends_on_scale):
        assert re.fullmatch(r"(No|Yes): [^A-Z].*\.", sentence), sentence
    plain = value(name, model)
    assert math.isfinite(plain)
    assert plain > 0
    pairs = [(info.depends_on_offset, value(name, changed(constant=7.0)), 1e-6, 0.02)]
    pairs.append((info.depends_on_scale, value(name, changed(factor=16.0)), 1e-6, 0.02))
    generator = torch.Generator().manual_seed(2)
    draws = [torch.randperm(48, generator=generator)[:FEW] for _ in range(16)]
    pairs.append((info.depends_on_batch, sum(value(name, model, rows) for rows in draws) / len(draws), 0.05, 0.08))
    for sentence, other, same, different in pairs:
        is_apart = apart(plain, other)
        assert is_apart < same if sentence.startswith("No") else is_apart > different, (sentence, plain, other)


def test_they_are_numbers_of_the_spectra():
    model, batch = changed(), (X[:12], Y[:12])
    ggn, kernel = ggn_spectrum(model, batch), ntk_spectrum(model, X[:12])
    assert curvature_share(model, batch, lr=0.1, steps=50) == budget_rank(ggn, lr=0.1, steps=50).rank
    assert ntk_effective_rank(model, X[:12]) == effective_rank(kernel)
    values = kernel.eigenvalues()
    assert ntk_condition(model, X[:12]).value == pytest.approx(float(values[-1] / values[0]), rel=1e-6)
    assert fisher_trace(model, batch).value == pytest.approx(trace(ggn).value, rel=1e-12)
    exact = largest_eigenvalue(hessian_spectrum(model, batch, method="dense"))
    found = sharpness(model, batch, steps=40)
    assert found.value == pytest.approx(exact.value, rel=1e-8)
    assert abs(sharpness(model, batch, steps=4).value - exact.value) <= sharpness(model, batch, steps=4).standard_error
    head = curvature_share(model, batch, lr=0.1, steps=50, where="4")
    assert head == budget_rank(ggn_spectrum(model, batch, where="4"), lr=0.1, steps=50).rank
    for refused in (lambda: fisher_trace(model, batch, memory=10), lambda: sharpness(model, batch, memory=10)):
        with pytest.raises(IllegalConfiguration, match="more than memory"):
            refused()


def test_a_collapsed_network_is_worse_by_what_the_mechanism_names():
    fresh, dead = mlp([6, 10, 8, 3]), mlp([6, 10, 8, 3])
    with torch.no_grad():
        dead[2].bias.fill_(-100.0)
    for name in MECHANISMS["spectral_collapse"].metrics:
        assert value(name, dead) < 0.5 * value(name, fresh)
    # What is left are the biases of the last layer, which are perfectly conditioned: no number to go by alone.
    assert value("ntk_condition", dead) == pytest.approx(1)
    assert value("ntk_condition", fresh) > 10


def test_one_look_does_not_have_them_and_says_who_does():
    model = changed()
    seen = observe(model, X, lambda out: torch.nn.functional.cross_entropy(out, Y))
    assert not set(NAMES) & set(MEASURABLE)
    assert measure(seen, ["isotropy_gap"])["isotropy_gap"].keys() == seen.groups.keys()
    with pytest.raises(IllegalConfiguration, match=r"call pliant.spectrum.sharpness on model and batch"):
        measure(seen, ["sharpness"])
    with pytest.raises(IllegalConfiguration, match="gradient of every example"):
        measure(seen, ["gradient_rank"])
