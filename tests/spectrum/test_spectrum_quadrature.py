"""Lanczos' method, the quadrature, and every defect of the published estimator as something that cannot happen here."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from spectrum_tools import mlp, trained

from pliant.errors import ResolutionWarning
from pliant.spectrum import (
    condition_number,
    density,
    effective_rank,
    eps_rank,
    ggn_spectrum,
    hessian_spectrum,
    lanczos,
    largest_eigenvalue,
    negative_mass,
    quadrature,
    smallest_eigenvalue,
    trace,
)


def rotated(values, seed=0):
    """A symmetric matrix with given eigenvalues."""
    values = torch.as_tensor(values, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(len(values), len(values), generator=generator, dtype=torch.float64))[0]
    return basis @ torch.diag(values) @ basis.T


@pytest.fixture(scope="module")
def aged():
    """A trained network on new labels: model, batch and the exact spectrum of its strongly indefinite Hessian."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, 10, generator=generator, dtype=torch.float64)
    labels = [torch.randint(5, (60,), generator=generator) for _ in range(2)]
    model = trained(mlp([10, 12, 8, 5]), x, labels[0])
    batch = (x, labels[1])
    return model, batch, hessian_spectrum(model, batch, method="dense")


@pytest.fixture(scope="module")
def estimated(aged):
    model, batch, _ = aged
    return hessian_spectrum(model, batch, steps=60, num_probes=10)


# ---- Lanczos' method ----
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_basis_stays_orthogonal_so_that_no_eigenvalue_is_found_twice(dtype):
    """Without re-orthogonalisation large eigenvalues come again and again, as ghosts."""
    values = torch.cat([torch.logspace(-6, 0, 80), torch.tensor([10.0, 100.0, 1000.0])]).double()
    matrix = rotated(values).to(dtype)
    start = torch.ones(len(values), dtype=dtype)
    nodes, weights, residuals = lanczos(lambda v: matrix @ v, start, 60).nodes()
    assert int((nodes > 5).sum()) == 3
    tolerance = 1e-4 if dtype == torch.float32 else 1e-11
    assert (nodes[-3:] - values[-3:]).abs().max() < 1000 * tolerance
    assert float(weights.sum()) == pytest.approx(1, abs=1e-12)
    assert (residuals[-3:] < 1e-2).all()


def test_it_stops_where_an_invariant_subspace_ends():
    """What a collapsed network gives: a few directions, and zeros. Going on would divide by rounding."""
    values = torch.zeros(50)
    values[:3] = torch.tensor([5.0, 2.0, 1.0])
    for dtype in (torch.float32, torch.float64):
        matrix = rotated(values).to(dtype)
        done = lanczos(lambda v: matrix @ v, torch.ones(50, dtype=dtype), 30)  # noqa: B023
        assert done.broke_down
        assert len(done.alpha) == 4
        nodes, weights, residuals = done.nodes()
        assert nodes.tolist() == pytest.approx([0, 1, 2, 5], abs=1e-4)
        assert torch.isfinite(weights).all()
        assert not residuals.any()
    zero = lanczos(torch.zeros_like, torch.ones(7), 5)
    assert zero.broke_down
    assert zero.nodes()[0].tolist() == [0.0]


def test_with_all_steps_the_quadrature_of_each_probe_is_exact():
    values = torch.linspace(-2, 3, 20)
    matrix = rotated(values)
    found = quadrature(lambda v: matrix @ v, 20, steps=20, seeds=(3, 4), dtype=torch.float64)
    for node, weight, seed in zip(found.nodes, found.weights, (3, 4), strict=True):
        assert (node - values).abs().max() < 1e-6
        signs = torch.randint(0, 2, (20,), generator=torch.Generator().manual_seed(seed), dtype=torch.int8)
        probe = (2.0 * signs - 1).double() / 20**0.5
        for power in (1, 2, 5):
            wanted = probe @ torch.linalg.matrix_power(matrix, power) @ probe
            assert float((weight * node**power).sum()) == pytest.approx(float(wanted), rel=1e-9)
    assert found.resolution < 1e-12


def test_residuals_bound_how_far_an_eigenvalue_is():
    matrix = rotated(torch.randn(100, generator=torch.Generator().manual_seed(1)))
    exact = torch.linalg.eigvalsh(matrix)
    nodes, _, residuals = lanczos(lambda v: matrix @ v, torch.ones(100).double(), 25).nodes()
    nearest = (nodes[:, None] - exact).abs().amin(1)
    assert (nearest <= residuals + 1e-12).all()
    assert residuals.max() > 1e-3


# ---- what is read off ----
def test_an_exact_hessian_has_exact_numbers(aged):
    model, _, exact = aged
    values = exact.eigenvalues()
    assert exact.dimension == exact.max_rank == len(values) == sum(p.numel() for p in model.parameters())
    assert values[0] < -0.1 < 0.1 < values[-1]
    for estimate, wanted in (
        (largest_eigenvalue(exact), values[-1]),
        (smallest_eigenvalue(exact), values[0]),
        (trace(exact), values.sum()),
        (negative_mass(exact, 1e-3), (values < -1e-3).double().mean()),
        (eps_rank(exact, 1e-3), (values.abs() > 1e-3).sum()),
        (eps_rank(exact, 1e-3, relative=True), (values.abs() > 1e-3 * values.abs().max()).sum()),
    ):
        assert estimate.value == pytest.approx(float(wanted), rel=1e-9)
        assert estimate.standard_error == 0
    p = values.abs() / values.abs().sum()
    assert effective_rank(exact).value == pytest.approx(float(torch.special.entr(p).sum().exp()), rel=1e-9)


def test_estimates_lie_within_their_errors(aged, estimated):
    _, _, exact = aged
    eps = 2 * estimated.resolution
    within = lambda found, wanted, bias: abs(found.value - wanted.value) <= 3 * found.standard_error + bias  # noqa: E731
    assert within(trace(estimated), trace(exact), 0)
    assert within(eps_rank(estimated, eps, normalised=True), eps_rank(exact, eps, normalised=True), 0.02)
    assert within(negative_mass(estimated, eps), negative_mass(exact, eps), 0.02)
    assert within(effective_rank(estimated), effective_rank(exact), 0.05 * effective_rank(exact).value)
    for end in (largest_eigenvalue, smallest_eigenvalue):
        assert abs(end(estimated).value - end(exact).value) <= end(estimated).standard_error + 1e-9
    assert all(0 < item.standard_error < math.inf for item in (trace(estimated), effective_rank(estimated)))


def test_one_probe_knows_no_error(aged):
    model, batch, _ = aged
    single = hessian_spectrum(model, batch, steps=20, num_probes=1)
    assert math.isnan(trace(single).standard_error)
    assert "± unknown" in str(single)
    assert single.seeds == (0,)
    again = hessian_spectrum(model, batch, steps=20, num_probes=1, seed=7)
    assert trace(again).value != trace(single).value
    assert hessian_spectrum(model, batch, steps=20, num_probes=1, seed=7).nodes[0].equal(again.nodes[0])


# ---- defects of the published estimator ----
def test_below_the_resolution_there_is_a_warning_and_no_number(aged, estimated):
    model, batch, exact = aged
    with pytest.warns(ResolutionWarning, match="below the resolution"):
        assert math.isnan(eps_rank(estimated, estimated.resolution / 2).value)
    with pytest.warns(ResolutionWarning):
        assert math.isnan(negative_mass(estimated, estimated.resolution / 2).value)
    with pytest.warns(ResolutionWarning):
        assert math.isnan(condition_number(estimated).value)
    finer = hessian_spectrum(model, batch, steps=120, num_probes=1)
    assert finer.resolution < 0.7 * estimated.resolution
    with pytest.warns(ResolutionWarning, match="float64"):
        assert math.isnan(eps_rank(exact, exact.resolution / 2).value)


def test_the_rank_is_a_count_and_no_integral(aged, estimated):
    """A trapezoid over a masked grid bridges the gap round zero: shares above 1, other ones on another grid."""
    _, _, exact = aged
    for spectrum in (exact, estimated):
        largest = largest_eigenvalue(spectrum).value
        for eps in torch.logspace(math.log10(2 * spectrum.resolution), math.log10(2 * largest), 12).tolist():
            share = eps_rank(spectrum, eps, normalised=True)
            assert 0 <= share.value <= 1
            assert share.value * spectrum.max_rank == pytest.approx(eps_rank(spectrum, eps).value, abs=0.5)
    grid, values = density(exact, width=0.05)
    masked = grid.abs() > 0.1
    published = float(torch.trapezoid(values[masked], grid[masked]))
    assert published > eps_rank(exact, 0.1, normalised=True).value + 0.02, "the defect itself, on the same spectrum"
    before = eps_rank(exact, 0.1)
    density(exact, points=17)
    assert eps_rank(exact, 0.1) == before


def test_a_huge_eigenvalue_does_not_count_as_rank():
    """Their grid and kernel grow with the largest eigenvalue, so that the statistic followed sharpness."""
    small = torch.cat([torch.full((30,), 0.5), torch.zeros(70)])
    ranks = []
    for top in (1.0, 5912.0):
        values = small.clone()
        values[0] = top
        found = torch.linalg.eigvalsh(rotated(values))
        ranks.append(int((found.abs() > 0.01).sum()))
        x = torch.diag(values.double().sqrt()) * 10
        model = torch.nn.Linear(100, 1, bias=False).double()
        batch = (x, torch.zeros(100, 1).double())
        assert eps_rank(ggn_spectrum(model, batch, "mse"), 0.01).value == 30
        estimate = ggn_spectrum(model, batch, "mse", method="lanczos", steps=100, num_probes=3)
        assert eps_rank(estimate, 0.01).value == pytest.approx(
            30, abs=3 * eps_rank(estimate, 0.01).standard_error + 1e-6
        )
        coarse = ggn_spectrum(model, batch, "mse", method="lanczos", steps=2, num_probes=3)
        with pytest.warns(ResolutionWarning):
            assert math.isnan(eps_rank(coarse, 0.01).value)
    assert ranks == [30, 30]


def test_the_effective_rank_weighs_its_nodes(aged, estimated):
    """The entropy of unweighted Ritz values cannot be above their number, whatever the matrix."""
    _, _, exact = aged
    nodes = estimated.nodes[0].abs()
    unweighted = float(torch.special.entr(nodes / nodes.sum()).sum().exp())
    wanted = effective_rank(exact).value
    assert unweighted < 0.7 * wanted
    assert effective_rank(estimated).value == pytest.approx(wanted, rel=0.1)


def test_a_collapsed_network_breaks_down_and_says_so():
    model = mlp([8, 12, 12, 4])
    with torch.no_grad():
        model[2].bias.fill_(-1e3)
    x = torch.randn(16, 8, generator=torch.Generator().manual_seed(0)).double()
    labels = torch.arange(16) % 4
    found = ggn_spectrum(model, (x, labels), method="lanczos", steps=50, num_probes=20)
    assert all(len(node) <= 6 for node in found.nodes)
    rank = eps_rank(found, 1e-6)
    assert abs(rank.value - 3) <= 3 * rank.standard_error
    assert not torch.isnan(torch.cat(found.nodes)).any()


def test_a_density_is_a_picture_of_the_nodes(aged, estimated):
    grid, values = density(estimated, points=4000)
    assert float(torch.trapezoid(values, grid)) == pytest.approx(1, abs=1e-3)
    assert (values >= 0).all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        density(aged[2])


def test_a_spectrum_prints_what_it_rests_on(aged, estimated):
    text = str(estimated)
    assert "Lanczos, 60 steps, 10 probes" in text
    assert "mode eval" in text
    assert "exact (dense)" in str(aged[2])
    for name in ("resolution", "largest eigenvalue", "smallest eigenvalue", "trace", "effective rank", "negative mass"):
        assert name in text
