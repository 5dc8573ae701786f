"""What is measured of a network before a task, and what the estimators say of one matrix."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.spectral.problems import EPS
from pliant import IllegalConfiguration, metrics
from pliant.spectrum import (
    Spectrum,
    condition_number,
    effective_rank,
    eps_rank,
    expected_one_step_gain,
    ggn_operator,
    ggn_spectrum,
    hessian_operator,
    hessian_spectrum,
    lanczos,
    largest_eigenvalue,
    negative_mass,
    ntk_spectrum,
    smallest_eigenvalue,
)

__all__ = ["FACTORS", "PUBLISHED", "QUANTILES", "SAMPLES", "ablation", "before_a_task", "published_recipe", "rounded"]

SAMPLES = 32
"""Of the new task, for the spectra; the features are read on all of them."""

FACTORS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
PUBLISHED = (0.01, 0.03, 0.1)
"""Where the authors' figures have their epsilons."""

QUANTILES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0)


def rounded(value: float) -> float | None:
    """Five digits; what is not finite is null."""
    return float(f"{value:.5g}") if math.isfinite(value) else None


def before_a_task(model: nn.Module, x: Tensor, y: Tensor, *, whole: bool) -> dict[str, Any]:
    """All measures of a network on the task to come; with ``whole`` quantiles, estimators and the Hessian as well.

    A measure that cannot be computed, of a network whose numbers overflow, is null.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # below the resolution there is no number, which the record says by null
        hidden = hidden_features(model, x)
        gradient = torch.autograd.grad(F.cross_entropy(model(x), y), list(model.parameters()))
        found: dict[str, Any] = {
            "feature_rank": sum(float(metrics.effective_rank(act)) for act in hidden) / 2,
            "alive": 1 - sum(float(metrics.dead_fraction(act)) for act in hidden) / 2,
            "gradient": float(metrics.gradient_norm(gradient)),
        }
        try:
            found |= of_spectra(model, (x[:SAMPLES], y[:SAMPLES]), whole=whole)
        except IllegalConfiguration as error:
            found["refused"] = str(error)[:80]
    return {key: rounded(value) if isinstance(value, float) else value for key, value in found.items()}


def hidden_features(model: nn.Module, x: Tensor) -> list[Tensor]:
    """What its ReLUs give: ``[N, U]`` each."""
    found = []
    with torch.no_grad():
        for layer in model.children():
            x = layer(x)
            if isinstance(layer, nn.ReLU):
                found.append(x)
    return found


def of_spectra(model: nn.Module, batch: tuple[Tensor, Tensor], *, whole: bool) -> dict[str, Any]:
    """What is read off the Gauss-Newton matrix and the kernel."""
    double = torch.float64  # in float32 the smallest epsilons are below the resolution
    ggn, kernel = ggn_spectrum(model, batch, dtype=double), ntk_spectrum(model, batch[0], dtype=double)
    found: dict[str, Any] = {
        "shares": [rounded(eps_rank(ggn, EPS * factor, normalised=True).value) for factor in FACTORS],
        "kernel_shares": [rounded(eps_rank(kernel, EPS * factor, normalised=True).value) for factor in FACTORS],
        "relative_share": eps_rank(ggn, 1e-3, relative=True, normalised=True).value,
        "ggn_rank": effective_rank(ggn).value,
        "kernel_rank": effective_rank(kernel).value,
        "kernel_condition": condition_number(kernel).value,
        "largest": largest_eigenvalue(ggn).value,
        "gain": expected_one_step_gain(model, batch, steps=10).best,
    }
    if whole:
        found["quantiles"] = [rounded(v) for v in torch.quantile(ggn.eigenvalues(), torch.tensor(QUANTILES).double())]
        found["kernel_quantiles"] = [
            rounded(v) for v in torch.quantile(kernel.eigenvalues(), torch.tensor(QUANTILES).double())
        ]
        found["hessian"] = beside_the_hessian(model, batch)
    return found


def beside_the_hessian(model: nn.Module, batch: tuple[Tensor, Tensor]) -> dict[str, float | None]:
    r"""How much of the Hessian :math:`H = G + R` is not the Gauss-Newton matrix.

    Squared Frobenius norms are means of :math:`\|Mv\|^2` over the same vectors of signs.
    """
    try:
        operators = [make(model, batch) for make in (hessian_operator, ggn_operator)]
        generator = torch.Generator().manual_seed(0)
        sizes = torch.zeros(3, dtype=torch.float64)
        for _ in range(16):
            signs = torch.randint(0, 2, (operators[0].dimension,), generator=generator) * 2.0 - 1.0
            products = [operator(signs) for operator in operators]
            products.append(products[0] - products[1])
            sizes += torch.stack([product.double().square().sum() for product in products])
        estimate = hessian_spectrum(model, batch, steps=30, num_probes=2)
    except IllegalConfiguration:
        return {}
    return {
        "rest": rounded(float(sizes[2] / sizes[0])) if sizes[0] > 0 else None,
        "largest": rounded(largest_eigenvalue(estimate).value),
        "smallest": rounded(smallest_eigenvalue(estimate).value),
        "negative": rounded(negative_mass(estimate).value),
        "resolution": rounded(estimate.resolution),
    }


# ---- estimators ----
def published_recipe(operator: Any, eps: Sequence[float] = PUBLISHED) -> list[float | None]:
    """The published estimate of the share above an eps: one Gaussian probe, 100 steps, the integral of a density."""
    probe = torch.randn(operator.dimension, generator=torch.Generator().manual_seed(0))
    nodes, weights, _ = lanczos(operator, probe.to(operator.problem.dtype), 100).nodes()
    low, high = float(nodes.min()) - 0.01, float(nodes.max()) + 0.01
    grid = torch.linspace(low, high, 10_000, dtype=torch.float64)
    variance = 1e-5 * max(1.0, high - low)
    density = torch.zeros_like(grid)
    for node, weight in zip(nodes.tolist(), weights.tolist(), strict=True):
        density += weight * (-(grid - node).square() / (2 * variance)).exp() / math.sqrt(2 * math.pi * variance)
    density /= torch.trapezoid(density, grid)
    return [rounded(float(torch.trapezoid(density[grid.abs() > e], grid[grid.abs() > e]))) for e in eps]


def shares_above(spectrum: Spectrum, eps: Sequence[float] = PUBLISHED) -> list[float | None]:
    """The share of all parameters, counted from nodes and weights, null below the resolution."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [rounded(eps_rank(spectrum, e).value / spectrum.num_parameters) for e in eps]


def ablation(model: nn.Module, batch: tuple[Tensor, Tensor]) -> dict[str, Any]:
    """Published recipe, quadrature and truth of the Hessian and of the Gauss-Newton matrix of a small network."""
    exact = hessian_spectrum(model, batch, method="dense", dtype=torch.float64)
    ggn = ggn_spectrum(model, batch, dtype=torch.float64)
    sampled = {
        "hessian": hessian_spectrum(model, batch, steps=100, num_probes=4),
        "ggn": ggn_spectrum(model, batch, method="lanczos", steps=100, num_probes=4),
    }
    values = {"hessian": exact.eigenvalues(), "ggn": ggn.eigenvalues()}
    operators = {"hessian": hessian_operator(model, batch), "ggn": ggn_operator(model, batch)}
    squares = {name: float(v.square().sum()) for name, v in values.items()}
    rest = operators["hessian"].dense() - operators["ggn"].dense()
    both = {
        name: {
            "exact": shares_above(exact if name == "hessian" else ggn),
            "published": published_recipe(operators[name]),
            "quadrature": shares_above(sampled[name]),
            "resolution": rounded(sampled[name].resolution),
            "largest": rounded(float(values[name].max())),
            "smallest": rounded(float(values[name].min())),
            "effective_rank": rounded(effective_rank(exact if name == "hessian" else ggn).value),
            "quadrature_effective_rank": rounded(effective_rank(sampled[name]).value),
        }
        for name in values
    }
    return {
        **both,
        "parameters": exact.num_parameters,
        "rest": rounded(float(rest.double().square().sum()) / squares["hessian"]) if squares["hessian"] else None,
        "negative": rounded(negative_mass(exact).value),
    }
