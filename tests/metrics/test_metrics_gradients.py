"""Gradient metrics against loops, and against the gradients of real networks."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pliant.metrics import (
    gradient_covariance,
    gradient_dormancy_score,
    gradient_dormant_fraction,
    gradient_dormant_mask,
    gradient_interference,
    gradient_norm,
)

GRADIENTS = hnp.arrays(
    np.float64,
    st.tuples(st.integers(1, 2), st.integers(2, 5), st.integers(1, 4)),
    elements=st.sampled_from([0.0, 1.0, -2.0, 0.5]),
)


def cosine_loop(a_P: np.ndarray, b_P: np.ndarray) -> float:
    size = math.sqrt(sum(a_P**2)) * math.sqrt(sum(b_P**2))
    return sum(a * b for a, b in zip(a_P, b_P, strict=True)) / size if size > 0 else 0.0


@settings(max_examples=60, deadline=None)
@given(GRADIENTS)
def test_covariance_and_interference_are_the_definitions(grads_SNP: np.ndarray) -> None:
    grads = torch.from_numpy(grads_SNP)
    for member, grads_NP in enumerate(grads_SNP):
        expected = [[cosine_loop(a, b) for b in grads_NP] for a in grads_NP]
        np.testing.assert_allclose(gradient_covariance(grads)[member], expected, atol=1e-12)
        with_gradient = [row for row in grads_NP if any(row != 0)]
        pairs = [cosine_loop(a, b) for i, a in enumerate(with_gradient) for j, b in enumerate(with_gradient) if i != j]
        value = gradient_interference(grads)[member].item()
        assert value == pytest.approx(np.mean(pairs), abs=1e-12) if pairs else math.isnan(value)


def test_a_dead_network_has_no_interference_to_report() -> None:
    assert gradient_interference(torch.zeros(4, 7)).isnan()
    assert gradient_covariance(torch.zeros(2, 7)).tolist() == [[0.0, 0.0], [0.0, 0.0]]
    with pytest.raises(ValueError, match="two samples"):
        gradient_interference(torch.ones(1, 7))


@settings(max_examples=40, deadline=None)
@given(
    st.lists(hnp.arrays(np.float64, hnp.array_shapes(max_dims=3, max_side=3), elements=st.floats(-9, 9)), min_size=1)
)
def test_norm_is_the_definition(arrays: list[np.ndarray]) -> None:
    expected = math.sqrt(sum(float(x) ** 2 for array in arrays for x in array.ravel()))
    assert gradient_norm([torch.from_numpy(a) for a in arrays]).item() == pytest.approx(expected, rel=1e-9)


def test_norm_of_a_real_gradient_and_a_missing_one() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.Tanh(), torch.nn.Linear(5, 2))
    model(torch.randn(7, 4)).square().mean().backward()
    grads = [p.grad for p in model.parameters()]
    torch.testing.assert_close(gradient_norm(grads), torch.nn.utils.get_total_norm(grads))
    with pytest.raises(ValueError, match=r"grads\[1\] must be a tensor, not NoneType"):
        gradient_norm([grads[0], None])
    with pytest.raises(ValueError, match="holds no tensors"):
        gradient_norm([])


def test_norm_does_not_overflow() -> None:
    assert gradient_norm([torch.full((4,), 1e30)]).item() == pytest.approx(2e30)
    assert gradient_norm([torch.full((4,), 30_000.0, dtype=torch.float16)]).item() == pytest.approx(60_000)


def test_gradient_dormancy_is_the_formula_of_grama() -> None:
    """Mean |gradient| of the incoming weights over the layer's mean of it, and the threshold on that."""
    generator = torch.Generator().manual_seed(1)
    grad_UI = torch.randn(6, 4, generator=generator)
    grad_UI[2] = 0.0
    grad_UI[4] *= 1e-3
    each = [sum(abs(float(x)) for x in row) / 4 for row in grad_UI]
    expected = [value / (sum(each) / 6 + 1e-8) for value in each]
    mean_abs_U = grad_UI.abs().mean(-1)
    np.testing.assert_allclose(gradient_dormancy_score(mean_abs_U), expected, rtol=1e-5)
    assert gradient_dormant_mask(mean_abs_U).tolist() == [False, False, True, False, True, False]
    assert gradient_dormant_fraction(mean_abs_U).item() == pytest.approx(2 / 6)
    # A network without any gradient is wholly dormant, beside a healthy one.
    assert gradient_dormant_fraction(torch.stack([0 * mean_abs_U, torch.ones(6)])).tolist() == [1.0, 0.0]


def test_errors_speak_of_gradients() -> None:
    for function in (gradient_dormancy_score, gradient_dormant_mask, gradient_dormant_fraction):
        with pytest.raises(ValueError, match="mean_abs_gradient is empty"):
            function(torch.zeros(0))
