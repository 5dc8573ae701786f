"""Rank tension: correlation maps against closed forms, and the inequality on random correlation matrices."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pliant.errors import IllegalConfiguration
from pliant.manifolds import rank_tension as rt


def correlation(rows: int, seed: int, rank: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    factor = torch.randn(rows, rank, generator=generator, dtype=torch.float64)
    return torch.corrcoef(torch.cat([factor, 1e-3 * torch.eye(rows, dtype=torch.float64)], 1))


def test_the_map_of_relu_is_the_arc_cosine_kernel():
    r = torch.linspace(-1, 1, 21, dtype=torch.float64)
    raw = ((1 - r * r).clamp(min=0).sqrt() + (math.pi - r.clamp(-1, 1).arccos()) * r) / (2 * math.pi)
    expected = (raw - 1 / (2 * math.pi)) / (0.5 - 1 / (2 * math.pi))
    torch.testing.assert_close(rt.correlation_map(torch.relu, r), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(rt.correlation_map(torch.relu, r[1:-1]), expected[1:-1], rtol=0, atol=3e-6)


def test_the_map_of_the_sign_is_the_arc_sine():
    r = torch.linspace(-0.9, 0.9, 13, dtype=torch.float64)
    torch.testing.assert_close(rt.correlation_map(torch.sign, r), 2 / math.pi * r.arcsin(), rtol=0, atol=2e-3)


def test_hermite_polynomials_have_one_weight_and_a_shift_of_the_output_changes_nothing():
    weights = rt.hermite_weights(lambda z: z**3 - 3 * z, degree=6)
    torch.testing.assert_close(weights, torch.tensor([0, 0, 1.0, 0, 0, 0], dtype=torch.float64), rtol=0, atol=1e-9)
    a, b = (rt.hermite_weights(f, degree=9) for f in (torch.tanh, lambda z: 3 * torch.tanh(z) + 5))
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
    assert rt.nonlinearity(rt.hermite_weights(lambda z: 2 * z, degree=2)) == pytest.approx(0, abs=1e-9)
    assert rt.nonlinearity(rt.hermite_weights(torch.square, degree=2)) == pytest.approx(1, abs=1e-9)


@settings(max_examples=8, deadline=None, derandomize=True)
@given(st.sampled_from(["relu", "tanh", "shifted"]), st.integers(0, 99), st.integers(1, 8))
def test_activations_raise_the_rank_by_at_least_the_bound(name: str, seed: int, rank: int):
    activation = {"relu": torch.relu, "tanh": lambda z: torch.tanh(3 * z), "shifted": lambda z: torch.relu(z - 1)}[name]
    before = correlation(8, seed, rank)
    after = rt.correlation_map(activation, before, degree=300)
    after.fill_diagonal_(1.0)
    gain = rt.rank_gain(before, after)
    bound = rt.rank_gain_bound(before, rt.hermite_weights(activation, degree=300))
    assert gain >= bound - 1e-4
    assert bound >= 1
    # the identity of the theorem: the ratio of participation ratios, computed from eigenvalues
    ratio = [torch.linalg.eigvalsh(c) for c in (after, before)]
    ranks = [float(v.sum() ** 2 / v.square().sum()) for v in ratio]
    assert gain == pytest.approx(ranks[0] / ranks[1], rel=1e-9)


def test_clones_and_independent_units_are_where_the_rank_does_not_rise():
    pairs = torch.kron(torch.eye(3, dtype=torch.float64), torch.ones(2, 2, dtype=torch.float64))
    assert rt.tension(pairs) == pytest.approx(0, abs=1e-15)
    assert rt.rank_gain(pairs, pairs) == 1
    assert rt.tension(correlation(6, 0, 2)) > 0.1
    assert rt.decorrelation_strength(torch.relu, grid=21) > rt.decorrelation_strength(torch.tanh, grid=21) > 0


def test_samples_agree_with_the_map():
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(2, 400_000, generator=generator, dtype=torch.float64)
    other = 0.6 * z[0] + 0.8 * z[1]
    measured = float(torch.corrcoef(torch.stack([torch.tanh(z[0]), torch.tanh(other)]))[0, 1])
    expected = float(rt.correlation_map(torch.tanh, torch.tensor(0.6), degree=50))
    assert measured == pytest.approx(expected, abs=4 / math.sqrt(400_000))


def test_bad_input_is_refused():
    with pytest.raises(IllegalConfiguration, match="constant"):
        rt.hermite_weights(lambda z: torch.ones_like(z))
    with pytest.raises(IllegalConfiguration, match=r"\[-1, 1\]"):
        rt.correlation_map(torch.relu, torch.tensor([1.5]))
    with pytest.raises(IllegalConfiguration, match="ones on its diagonal"):
        rt.tension(2 * torch.eye(3))
    with pytest.raises(IllegalConfiguration, match="degree=0"):
        rt.hermite_weights(torch.relu, degree=0)
