"""Ranks against numpy, and the bounds and invariances that define them."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pliant.metrics import effective_rank, stable_rank

MATRICES = hnp.arrays(
    np.float64,
    st.tuples(st.integers(1, 3), st.integers(1, 6), st.integers(1, 6)),
    elements=st.integers(-4, 4).map(float),
)


def effective_rank_reference(matrix_NU: np.ndarray) -> float:
    sigma = np.linalg.svd(matrix_NU, compute_uv=False)
    if sigma.sum() == 0:
        return 0.0
    return math.exp(-sum(p * math.log(p) for p in sigma / sigma.sum() if p > 0))


def stable_rank_reference(matrix_NU: np.ndarray) -> float:
    spectral = np.linalg.norm(matrix_NU, 2)
    return float(np.linalg.norm(matrix_NU, "fro") ** 2 / spectral**2) if spectral > 0 else 0.0


@settings(max_examples=80, deadline=None)
@given(MATRICES)
def test_ranks_are_the_formulas_for_every_member(matrix_SNU: np.ndarray) -> None:
    matrix = torch.from_numpy(matrix_SNU)
    expected = [effective_rank_reference(m) for m in matrix_SNU]
    np.testing.assert_allclose(effective_rank(matrix).numpy(), expected, rtol=1e-9, atol=1e-12)
    expected = [stable_rank_reference(m) for m in matrix_SNU]
    np.testing.assert_allclose(stable_rank(matrix).numpy(), expected, rtol=1e-9, atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(MATRICES)
def test_bounds(matrix_SNU: np.ndarray) -> None:
    matrix = torch.from_numpy(matrix_SNU)
    exact = torch.linalg.matrix_rank(matrix).double()
    # stable rank <= rank, 1 <= effective rank <= rank; both 0 exactly for the zero matrix.
    assert (stable_rank(matrix) <= exact + 1e-9).all()
    assert (effective_rank(matrix) <= exact + 1e-9).all()
    assert ((effective_rank(matrix) >= 1 - 1e-9) | (exact == 0)).all()
    assert ((stable_rank(matrix) >= 1 - 1e-9) | (exact == 0)).all()


@settings(max_examples=60, deadline=None)
@given(MATRICES, st.floats(1e-3, 1e3), st.randoms(use_true_random=False))
def test_invariances(matrix_SNU: np.ndarray, scale: float, random) -> None:
    matrix = torch.from_numpy(matrix_SNU)
    order = list(range(matrix.shape[-1]))
    random.shuffle(order)
    for rank in (effective_rank, stable_rank):
        torch.testing.assert_close(rank(-scale * matrix), rank(matrix))
        torch.testing.assert_close(rank(matrix.mT), rank(matrix))
        torch.testing.assert_close(rank(matrix[..., order]), rank(matrix))
        # The examples seen twice: every singular value grows by the same factor.
        torch.testing.assert_close(rank(torch.cat([matrix, matrix], dim=-2)), rank(matrix))


@pytest.mark.parametrize("rank", [effective_rank, stable_rank])
def test_a_stack_is_its_members_bit_for_bit(rank) -> None:
    stack_SLNU = torch.randn(3, 2, 40, 12, generator=torch.Generator().manual_seed(0)).relu()
    values = rank(stack_SLNU)
    assert values.shape == (3, 2)
    assert torch.equal(values, torch.stack([torch.stack([rank(m) for m in layers]) for layers in stack_SLNU]))


@pytest.mark.parametrize("width", [1, 7, 64])
def test_equal_singular_values_count_fully(width: int) -> None:
    assert effective_rank(3 * torch.eye(width)).item() == pytest.approx(width, rel=1e-5)
    assert stable_rank(3 * torch.eye(width)).item() == pytest.approx(width, rel=1e-5)


def test_a_collapsed_matrix_reads_as_one_in_single_precision() -> None:
    generator = torch.Generator().manual_seed(0)
    act_NU = torch.rand(512, 1, generator=generator) @ torch.rand(1, 100, generator=generator)
    assert effective_rank(act_NU).item() == pytest.approx(1, abs=1e-3)
    assert stable_rank(act_NU).item() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("rank", [effective_rank, stable_rank])
def test_zero_matrix_is_zero_beside_a_healthy_one(rank) -> None:
    values = rank(torch.stack([torch.zeros(4, 3), torch.randn(4, 3)]))
    assert values[0] == 0
    assert values[1] >= 1


@pytest.mark.parametrize("rank", [effective_rank, stable_rank])
@pytest.mark.parametrize("broken", [float("nan"), float("inf"), -float("inf")])
def test_broken_data_has_no_verdict_and_spares_the_other_members(rank, broken: float) -> None:
    stack_SNU = torch.randn(3, 6, 4, generator=torch.Generator().manual_seed(0))
    healthy = rank(stack_SNU)
    stack_SNU[1, 2, 3] = broken
    values = rank(stack_SNU)
    assert values[1].isnan()
    assert torch.equal(values[[0, 2]], healthy[[0, 2]])


@pytest.mark.parametrize("rank", [effective_rank, stable_rank])
@pytest.mark.parametrize("scale", [1e-40, 1e-25, 1e25, 1e38])
def test_extreme_scales(rank, scale: float) -> None:
    generator = torch.Generator().manual_seed(0)
    matrix_NU = torch.rand(8, 4, generator=generator, dtype=torch.float64)
    value = rank((matrix_NU * scale).float()).item()
    # At 1e-40 the entries themselves have only a few bits left.
    assert value == pytest.approx(rank(matrix_NU).item(), rel=1e-2 if scale < 1e-38 else 1e-5)


@pytest.mark.parametrize("rank", [effective_rank, stable_rank])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_types(rank, dtype: torch.dtype) -> None:
    matrix_NU = torch.arange(12, dtype=dtype).reshape(4, 3).requires_grad_()
    value = rank(matrix_NU)
    assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert not value.requires_grad
    assert value.item() == pytest.approx(rank(matrix_NU.double()).item(), rel=1e-4)


def test_half_precision_does_not_overflow() -> None:
    # The float16 sum of squares of 30,000s is infinite, and so is their norm.
    assert stable_rank(torch.full((64, 64), 30_000.0, dtype=torch.float16)).item() == pytest.approx(1)


@pytest.mark.parametrize("rank", [effective_rank, stable_rank])
def test_wrong_input(rank) -> None:
    for shape in [(0, 3), (3, 0), (0, 2, 3)]:
        with pytest.raises(ValueError, match="is empty"):
            rank(torch.zeros(shape))
    with pytest.raises(ValueError, match="at least 2 axes"):
        rank(torch.zeros(3))
    with pytest.raises(ValueError, match="complex"):
        rank(torch.eye(3, dtype=torch.complex64))
