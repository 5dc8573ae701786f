"""Weight magnitude against numpy over all entries."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pliant.metrics import weight_magnitude

TENSORS = st.lists(
    hnp.arrays(np.float64, hnp.array_shapes(max_dims=3, max_side=4), elements=st.floats(-10, 10, width=16)),
    min_size=1,
    max_size=4,
)


@settings(max_examples=60, deadline=None)
@given(TENSORS, st.floats(0.1, 10))
def test_mean_over_all_entries(arrays: list[np.ndarray], scale: float) -> None:
    tensors = [torch.from_numpy(a) for a in arrays]
    expected = np.abs(np.concatenate([a.ravel() for a in arrays])).mean()
    assert weight_magnitude(tensors).shape == ()
    assert weight_magnitude(tensors).item() == pytest.approx(expected, rel=1e-12)
    assert weight_magnitude([-scale * t for t in tensors]).item() == pytest.approx(scale * expected, rel=1e-9)
    assert weight_magnitude(reversed(tensors)).item() == pytest.approx(expected, rel=1e-12)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 4), st.integers(0, 1000))
def test_a_stack_is_its_members(num_members: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(num_members, 5, 3), (num_members,), (num_members, 2)]
    tensors = [torch.randn(shape, generator=generator) for shape in shapes]
    each = torch.stack([weight_magnitude([t[s] for t in tensors]) for s in range(num_members)])
    assert weight_magnitude(tensors, members=True).shape == (num_members,)
    torch.testing.assert_close(weight_magnitude(tensors, members=True), each)


@pytest.mark.parametrize("broken", [float("nan"), float("inf"), -float("inf")])
def test_broken_weights_have_no_verdict_and_spare_the_other_members(broken: float) -> None:
    weight_SOI = torch.ones(2, 3, 3)
    weight_SOI[0, 1, 1] = broken
    values = weight_magnitude([torch.ones(2, 4), weight_SOI], members=True)
    assert values[0].isnan()
    assert values[1] == 1
    assert weight_magnitude([weight_SOI]).isnan()


def test_types() -> None:
    half, single, double = (torch.ones(3, dtype=d) for d in (torch.float16, torch.float32, torch.float64))
    assert weight_magnitude([half]).dtype == torch.float32
    assert weight_magnitude([half, single, double]).dtype == torch.float64
    # 100,000 ones: their float16 sum is infinite.
    assert weight_magnitude([torch.ones(100_000, dtype=torch.float16)]) == 1
    assert not weight_magnitude([torch.nn.Parameter(single)]).requires_grad


def test_wrong_input() -> None:
    with pytest.raises(ValueError, match="no tensors"):
        weight_magnitude([])
    with pytest.raises(ValueError, match="wrap a single one"):
        weight_magnitude(torch.ones(3))
    with pytest.raises(ValueError, match=r"tensors\[1\] is empty"):
        weight_magnitude([torch.ones(3), torch.ones(0)])
    with pytest.raises(ValueError, match="disagree on the number of members"):
        weight_magnitude([torch.ones(3, 2), torch.ones(2, 2)], members=True)
    with pytest.raises(ValueError, match="at least 1 axes"):
        weight_magnitude([torch.tensor(1.0)], members=True)
