"""Ranks that count or compare singular values, against numpy, and the three quantities called "stable rank"."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pliant.metrics import approximate_rank, effective_rank, numerical_rank, participation_ratio, srank, stable_rank

MATRICES = hnp.arrays(
    np.float64,
    st.tuples(st.integers(1, 2), st.integers(2, 6), st.integers(1, 5)),
    elements=st.integers(-4, 4).map(float),
)
EPS = 1e-9


def singular_values(matrix_NU: np.ndarray, centred: bool) -> np.ndarray:
    return np.linalg.svd(matrix_NU - matrix_NU.mean(0) if centred else matrix_NU, compute_uv=False)


def leading(values: np.ndarray, share: float) -> int:
    """How many, one after the other, until the share is reached."""
    if values.max() < EPS:
        return 0
    total, count = 0.0, 0
    while total < share * values.sum() - EPS:
        total, count = total + values[count], count + 1
    return max(count, 1)


@settings(max_examples=60, deadline=None)
@given(MATRICES, st.sampled_from([0.0, 0.013, 0.31]), st.booleans())
def test_everything_is_the_definition(matrix_SNU: np.ndarray, loose: float, centred: bool) -> None:
    matrix = torch.from_numpy(matrix_SNU)
    for member, matrix_NU in enumerate(matrix_SNU):
        sigma = singular_values(matrix_NU, centred)
        squares = sigma**2
        # With nothing left out, round-off decides whether a value of 0 is one: the definition says nothing there.
        if loose > 0:
            assert srank(matrix, loose, centred)[member] == leading(sigma, 1 - loose)
            assert approximate_rank(matrix, 1 - loose, centred)[member] == leading(squares, 1 - loose)
        ratio = squares.sum() ** 2 / (squares**2).sum() if squares.max() > EPS else 0.0
        assert participation_ratio(matrix, centred)[member].item() == pytest.approx(ratio, rel=1e-9)
        tol = 0.37 + loose
        for relative_to, divisor in (("samples", len(matrix_NU) ** 0.5), ("largest", sigma.max()), ("nothing", 1.0)):
            expected = sum(bool(s / divisor > tol) for s in sigma) if sigma.max() > EPS else 0
            assert numerical_rank(matrix, tol, relative_to, centred)[member] == expected, relative_to


@settings(max_examples=40, deadline=None)
@given(MATRICES)
def test_centring_is_what_it_says(matrix_SNU: np.ndarray) -> None:
    matrix = torch.from_numpy(matrix_SNU)
    by_hand = matrix - matrix.mean(-2, keepdim=True)
    for rank in (effective_rank, stable_rank, srank, approximate_rank, participation_ratio):
        torch.testing.assert_close(rank(matrix, centred=True), rank(by_hand, centred=False), atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(rank(matrix + 5, centred=True), rank(matrix, centred=True), atol=1e-6, rtol=1e-6)


def test_three_quantities_called_stable_rank() -> None:
    """On a 200 x 20 Gaussian the counts read 20, the ratio of norms 12.5, the participation ratio 18."""
    matrix_NU = torch.randn(200, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sigma = np.linalg.svd(matrix_NU.numpy(), compute_uv=False)
    plasticine = int((np.cumsum(sigma) / sigma.sum() < 0.99).sum()) + 1
    assert plasticine == srank(matrix_NU) == 20
    ratio = (sigma**2).sum() / sigma[0] ** 2
    assert stable_rank(matrix_NU).item() == pytest.approx(ratio)
    assert ratio == pytest.approx(12.5, abs=1.0)
    centred = matrix_NU - matrix_NU.mean(0)
    joudaki = float((centred**2).sum() ** 2 / ((centred.T @ centred) ** 2).sum())
    assert participation_ratio(matrix_NU).item() == pytest.approx(joudaki)
    assert ratio < joudaki < plasticine


def test_known_figures() -> None:
    diagonal = torch.diag(torch.tensor([2.0, 1.0, 1.0], dtype=torch.float64))
    assert effective_rank(diagonal).item() == pytest.approx(2 * 2**0.5)
    assert participation_ratio(diagonal, centred=False).item() == pytest.approx(36 / 18)
    # An effective rank of zeros is 1 with the published formula, which claims a direction.
    assert effective_rank(torch.zeros(5, 3)) == srank(torch.zeros(5, 3)) == 0
    # An offset that all units share: 15 directions read as four.
    act_NU = torch.randn(400, 16, generator=torch.Generator().manual_seed(0)).relu()
    assert effective_rank(act_NU) > 13
    assert effective_rank(act_NU + 5) < 6
    assert effective_rank(act_NU + 5, centred=True).item() == pytest.approx(
        effective_rank(act_NU, centred=True).item(), rel=1e-4
    )


@pytest.mark.parametrize("name", ["float16", "bfloat16", "float32", "float64"])
def test_constant_features_have_no_centred_rank(name: str) -> None:
    """Means of a constant are not exactly it; what is left must not count as variation."""
    constant_NU = torch.linspace(0.1, 300, 7).expand(30, 7).to(getattr(torch, name))
    for rank in (effective_rank, stable_rank, srank, approximate_rank, participation_ratio):
        assert rank(constant_NU, centred=True) == 0
        with pytest.raises(ValueError, match="one sample minus its mean"):
            rank(constant_NU[:1], centred=True)


def test_the_feature_rank_does_not_count_the_batch() -> None:
    """Relative to samples the singular values of features seen twice stay as they are."""
    act_NU = 0.02 * torch.randn(50, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for tol in (0.01, 0.019, 0.021, 0.1):
        assert numerical_rank(act_NU, tol) == numerical_rank(act_NU.repeat(4, 1), tol)
    assert numerical_rank(act_NU, 0.3, "nothing") < numerical_rank(act_NU.repeat(9, 1), 0.3, "nothing")
    assert numerical_rank(1e-3 * act_NU) == 0
    assert numerical_rank(1e30 * act_NU.float()) == 6


def test_wrong_arguments() -> None:
    matrix_NU = torch.randn(5, 3)
    for bad in (-0.1, 1.0, float("nan")):
        with pytest.raises(ValueError, match="delta must be"):
            srank(matrix_NU, bad)
    for bad in (0.0, 1.1, float("nan")):
        with pytest.raises(ValueError, match="share must be"):
            approximate_rank(matrix_NU, bad)
    for bad in (-1.0, float("inf")):
        with pytest.raises(ValueError, match="tol must be"):
            numerical_rank(matrix_NU, bad)
    with pytest.raises(ValueError, match="relative_to must be"):
        numerical_rank(matrix_NU, relative_to="median")
