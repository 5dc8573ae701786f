"""Dormancy against a loop-by-loop numpy reference, and the properties that make it a fair measure."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pliant.metrics import dead_fraction, dead_mask, dormancy_score, dormant_fraction, dormant_mask

ACTIVATIONS = hnp.arrays(
    np.float64,
    st.tuples(st.integers(1, 4), st.integers(1, 9)),
    elements=st.floats(0, 100, allow_subnormal=False).map(lambda x: x if x > 1e-6 else 0.0),
)
BATCHES = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 6)),
    elements=st.sampled_from([0.0, -0.0, 1.0, -2.5, 1e-30]),
)


def score_reference(mean_abs_U: np.ndarray) -> list[float]:
    mean = sum(float(h) for h in mean_abs_U) / len(mean_abs_U)
    return [float(h) / mean if mean > 0 else 0.0 for h in mean_abs_U]


@settings(max_examples=60, deadline=None)
@given(ACTIVATIONS)
def test_score_is_the_formula_for_every_member(mean_abs_SU: np.ndarray) -> None:
    score = dormancy_score(torch.from_numpy(mean_abs_SU)).numpy()
    assert score.shape == mean_abs_SU.shape
    np.testing.assert_allclose(score, [score_reference(row) for row in mean_abs_SU], rtol=1e-12)


@settings(max_examples=60, deadline=None)
@given(ACTIVATIONS, st.sampled_from([0.0, 0.025, 0.1, 0.9]), st.integers(-40, 40), st.randoms())
def test_dormancy_ignores_scale_and_order(mean_abs_SU: np.ndarray, tau: float, power: int, random) -> None:
    h_SU = torch.from_numpy(mean_abs_SU)
    assert torch.equal(dormant_mask(h_SU, tau), dormant_mask(h_SU * 2.0**power, tau))
    order = list(range(h_SU.shape[1]))
    random.shuffle(order)
    # The mean rounds differently in another order, so a score at the threshold itself may fall on either
    # side.
    torch.testing.assert_close(dormancy_score(h_SU[:, order]), dormancy_score(h_SU)[:, order])


@settings(max_examples=60, deadline=None)
@given(ACTIVATIONS, st.sampled_from([0.0, 0.025, 0.5]))
def test_a_stack_is_its_members(mean_abs_SU: np.ndarray, tau: float) -> None:
    h_SU = torch.from_numpy(mean_abs_SU)
    assert torch.equal(dormant_fraction(h_SU, tau), torch.stack([dormant_fraction(h_U, tau) for h_U in h_SU]))
    assert torch.equal(dormant_mask(h_SU, tau), torch.stack([dormant_mask(h_U, tau) for h_U in h_SU]))


@settings(max_examples=60, deadline=None)
@given(ACTIVATIONS, st.floats(0, 2), st.floats(0, 2))
def test_more_units_are_dormant_at_a_higher_threshold(mean_abs_SU: np.ndarray, a: float, b: float) -> None:
    h_SU = torch.from_numpy(mean_abs_SU)
    low, high = sorted((a, b))
    assert (dormant_fraction(h_SU, low) <= dormant_fraction(h_SU, high)).all()
    # The scores average to 1, so the most active unit is at least 1 unless nothing is active.
    assert ((dormant_fraction(h_SU, 0.99) < 1) | (h_SU == 0).all(-1)).all()


def test_threshold_is_inclusive_and_zero_means_silent() -> None:
    h_U = torch.tensor([0.0, 0.5, 1.0, 2.5])  # mean 1: the scores are the values
    assert dormant_mask(h_U, 0.5).tolist() == [True, True, False, False]
    assert dormant_mask(h_U, 0.0).tolist() == [True, False, False, False]
    assert dormant_mask(h_U).tolist() == [True, False, False, False]


def test_a_silent_group_is_wholly_dormant_beside_a_healthy_one() -> None:
    h_SU = torch.stack([torch.zeros(4), torch.ones(4)])
    assert dormancy_score(h_SU).tolist() == [[0.0] * 4, [1.0] * 4]
    assert dormant_fraction(h_SU).tolist() == [1.0, 0.0]


@pytest.mark.parametrize("broken", [float("nan"), float("inf"), -float("inf"), -1.0])
def test_broken_activations_have_no_verdict_and_spare_the_other_members(broken: float) -> None:
    h_SU = torch.tensor([[1.0, broken, 1.0], [0.0, 1.0, 1.0]])
    assert dormancy_score(h_SU)[0].isnan().all()
    assert dormant_fraction(h_SU)[0].isnan()
    assert not dormant_mask(h_SU)[0].any()
    assert torch.equal(dormant_fraction(h_SU)[1], dormant_fraction(h_SU[1]))


@pytest.mark.parametrize("scale", [1e-45, 1e-40, 1e-30, 3e38])
def test_extreme_scales_neither_vanish_nor_overflow(scale: float) -> None:
    assert dormant_fraction(torch.full((7,), scale)) == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_result_type(dtype: torch.dtype) -> None:
    h_U = torch.tensor([0.0, 1.0, 3.0], dtype=dtype)
    expected = torch.float64 if dtype == torch.float64 else torch.float32
    assert dormancy_score(h_U).dtype == dormant_fraction(h_U).dtype == expected
    assert dead_fraction(h_U[None]).dtype == expected
    assert dormant_fraction(h_U).item() == pytest.approx(1 / 3)


def test_half_precision_is_measured_in_single_precision() -> None:
    # 4,096 units of 100: their float16 sum is infinite.
    assert dormancy_score(torch.full((4096,), 100.0, dtype=torch.float16)).unique().tolist() == [1.0]


@settings(max_examples=60, deadline=None)
@given(BATCHES)
def test_dead_is_exactly_zero_on_every_example(act_SNU: np.ndarray) -> None:
    act = torch.from_numpy(act_SNU)
    expected = [[all(row[u] == 0 for row in m) for u in range(act_SNU.shape[2])] for m in act_SNU]
    assert dead_mask(act).tolist() == expected
    np.testing.assert_allclose(dead_fraction(act).numpy(), np.mean(expected, axis=1), rtol=1e-6)
    assert torch.equal(dead_fraction(act), torch.stack([dead_fraction(act_NU) for act_NU in act]))


@settings(max_examples=40, deadline=None)
@given(BATCHES)
def test_dead_units_are_the_dormant_units_at_zero(act_SNU: np.ndarray) -> None:
    act = torch.from_numpy(act_SNU).double()
    assert torch.equal(dead_mask(act), dormant_mask(act.abs().mean(-2), 0.0))


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_broken_batches_have_no_verdict(broken: float) -> None:
    act_SNU = torch.zeros(2, 3, 4)
    act_SNU[0, 1, 2] = broken
    fraction = dead_fraction(act_SNU)
    assert fraction[0].isnan()
    assert fraction[1] == 1
    assert not dead_mask(act_SNU)[0].any()


def test_no_gradient_is_kept() -> None:
    h_U = torch.rand(5, requires_grad=True)
    for value in (dormancy_score(h_U), dormant_fraction(h_U), dead_fraction(h_U[None])):
        assert not value.requires_grad


@pytest.mark.parametrize("tau", [-0.1, float("nan"), float("inf")])
def test_bad_threshold(tau: float) -> None:
    with pytest.raises(ValueError, match="tau must be"):
        dormant_mask(torch.ones(3), tau)
    with pytest.raises(ValueError, match="tau must be"):
        dormant_fraction(torch.ones(3), tau)


@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 3)])
def test_empty_input(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="is empty"):
        dormancy_score(torch.zeros(shape))
    with pytest.raises(ValueError, match="is empty"):
        dormant_fraction(torch.zeros(shape))
    with pytest.raises(ValueError, match="is empty"):
        dead_fraction(torch.zeros(2, *shape))


def test_wrong_input() -> None:
    with pytest.raises(ValueError, match="at least 2 axes"):
        dead_mask(torch.zeros(3))
    with pytest.raises(ValueError, match="at least 1 axes"):
        dormancy_score(torch.tensor(1.0))
    with pytest.raises(ValueError, match="must be a tensor"):
        dormancy_score([1.0, 2.0])
    with pytest.raises(ValueError, match="complex"):
        dormancy_score(torch.zeros(3, dtype=torch.complex64))
