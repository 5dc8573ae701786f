"""Saturated and frozen units against loops, and what a derivative means in real networks."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pliant.metrics import frozen_fraction, frozen_mask, saturated_fraction, saturated_mask

DERIVATIVES = hnp.arrays(
    np.float64,
    st.tuples(st.integers(1, 3), st.integers(1, 6), st.integers(1, 5)),
    elements=st.sampled_from([0.0, 0.01, -0.01, 0.05, 0.5, -1.0]),
)


def loop(derivative_SNU: np.ndarray, flat, share: float) -> list[list[bool]]:
    """The definition, one unit after the other: flat on more than this share of the samples, or on all of them."""
    members = []
    for derivative_NU in derivative_SNU:
        mask = []
        for unit in range(derivative_NU.shape[1]):
            count = sum(bool(flat(abs(value))) for value in derivative_NU[:, unit])
            mask.append(count > share * len(derivative_NU) or count == len(derivative_NU))
        members.append(mask)
    return members


@settings(max_examples=60, deadline=None)
@given(DERIVATIVES, st.sampled_from([0.02, 0.05, 0.6]), st.sampled_from([0.0, 0.5, 0.8, 1.0]))
def test_saturated_is_the_definition(derivative_SNU: np.ndarray, tau: float, share: float) -> None:
    derivative = torch.from_numpy(derivative_SNU)
    expected = loop(derivative_SNU, lambda value: value < tau, share)
    assert saturated_mask(derivative, tau, share).tolist() == expected
    np.testing.assert_allclose(saturated_fraction(derivative, tau, share), np.mean(expected, axis=1))


@settings(max_examples=60, deadline=None)
@given(DERIVATIVES, st.sampled_from([0.0, 0.01, 0.05]))
def test_frozen_is_the_definition(derivative_SNU: np.ndarray, tol: float) -> None:
    derivative = torch.from_numpy(derivative_SNU)
    expected = loop(derivative_SNU, lambda value: value <= tol, 1.0)
    assert frozen_mask(derivative, tol).tolist() == expected
    np.testing.assert_allclose(frozen_fraction(derivative, tol), np.mean(expected, axis=1))
    # Frozen is the stronger word, and more samples can only thaw.
    assert (frozen_mask(derivative, 0.0) <= saturated_mask(derivative, 0.05, 0.5)).all()
    assert (frozen_mask(derivative, tol) <= frozen_mask(derivative[:, :1], tol)).all()


def test_a_frozen_unit_has_no_gradient_and_another_has() -> None:
    generator = torch.Generator().manual_seed(0)
    layer = torch.nn.Linear(5, 6)
    with torch.no_grad():
        layer.bias[:2] = -100.0  # below zero on every sample
    z_NU = layer(torch.randn(32, 5, generator=generator))
    torch.randn(6, generator=generator).mul(z_NU.relu()).sum().backward()
    frozen = frozen_mask((z_NU > 0).float())
    assert frozen[:2].all()
    assert torch.equal(frozen, (layer.weight.grad == 0).all(1))


def test_saturation_does_not_follow_the_loss() -> None:
    """The published measure takes the loss's gradient, which a loss of one millionth makes small everywhere."""
    z_NU = torch.linspace(-1, 1, 40).reshape(20, 2)
    assert saturated_fraction(1 - z_NU.tanh() ** 2) == 0
    assert saturated_fraction(1 - (z_NU * 0 + 9).tanh() ** 2) == 1


@pytest.mark.parametrize("fraction", [saturated_fraction, frozen_fraction])
def test_wrong_arguments(fraction) -> None:
    with pytest.raises(ValueError, match="at least 2 axes"):
        fraction(torch.zeros(3))
    for bad in (-0.1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=r"(tau|tol) must be"):
            fraction(torch.zeros(3, 2), bad)


def test_wrong_share_and_a_threshold_of_zero() -> None:
    with pytest.raises(ValueError, match="share must be"):
        saturated_mask(torch.zeros(3, 2), share=1.1)
    with pytest.raises(ValueError, match="frozen_mask counts"):
        saturated_mask(torch.zeros(3, 2), tau=0.0)
