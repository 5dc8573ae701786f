"""Growth, distance and the size of a step, against loops over all entries."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pliant.metrics import distance_from_initialisation, update_to_weight_ratio, weight_growth

SHAPES = st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=3), min_size=1, max_size=3)


@settings(max_examples=50, deadline=None)
@given(SHAPES, st.integers(0, 1000), st.floats(0, 4))
def test_everything_is_the_definition(shapes: list[list[int]], seed: int, moved: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    then = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    now = [w + moved * torch.randn(w.shape, generator=generator, dtype=torch.float64) for w in then]
    start, end = ([float(x) for w in side for x in w.flatten()] for side in (then, now))
    size = math.sqrt(sum(x * x for x in start))
    distance = math.sqrt(sum((b - a) ** 2 for a, b in zip(start, end, strict=True)))
    growth = sum(map(abs, end)) / sum(map(abs, start))
    assert weight_growth(now, then).item() == pytest.approx(growth)
    assert distance_from_initialisation(now, then).item() == pytest.approx(distance, abs=1e-12)
    assert distance_from_initialisation(now, then, relative=True).item() == pytest.approx(distance / size, abs=1e-12)
    assert update_to_weight_ratio(then, now).item() == pytest.approx(distance / size, abs=1e-12)


@pytest.mark.parametrize("metric", [weight_growth, distance_from_initialisation, update_to_weight_ratio])
def test_members_and_broken_ones(metric) -> None:
    generator = torch.Generator().manual_seed(0)
    then = [torch.randn(3, 4, 2, generator=generator), torch.randn(3, 5, generator=generator)]
    now = [w + torch.randn(w.shape, generator=generator) for w in then]
    each = torch.stack([metric([w[s] for w in now], [w[s] for w in then]) for s in range(3)])
    torch.testing.assert_close(metric(now, then, members=True), each)
    now[1][1, 2] = float("inf")
    values = metric(now, then, members=True)
    assert values.isnan().tolist() == [False, True, False]
    assert metric(now, then).isnan()


def test_the_distance_is_the_published_one() -> None:
    """The root mean square difference is the distance over the root of the number of entries."""
    then, now = torch.zeros(3, 4), torch.full((3, 4), 0.5)
    root_mean_square = float(np.sqrt(((now - then).numpy() ** 2).mean()))
    assert distance_from_initialisation([now], [then]).item() / math.sqrt(12) == pytest.approx(root_mean_square)


def test_no_number_from_nothing() -> None:
    zeros, ones = [torch.zeros(3)], [torch.ones(3)]
    assert weight_growth(ones, zeros).isnan()
    assert update_to_weight_ratio(zeros, ones).isnan()
    assert distance_from_initialisation(ones, zeros, relative=True).isnan()
    assert distance_from_initialisation(ones, zeros).item() == pytest.approx(3**0.5)


def test_scale_and_precision() -> None:
    big = [torch.full((4,), 1e30)]
    assert distance_from_initialisation(big, [torch.zeros(4)]).item() == pytest.approx(2e30)
    half = [torch.full((4,), 30_000.0, dtype=torch.float16)]
    assert update_to_weight_ratio(half, [0 * half[0]]) == 1
    assert update_to_weight_ratio(half, [0 * half[0]]).dtype == torch.float32
    assert weight_growth([torch.ones(3).double()], [torch.ones(3)]).dtype == torch.float64


def test_pairs_must_match() -> None:
    for metric, name in (
        (weight_growth, "initial"),
        (distance_from_initialisation, "initial"),
        (update_to_weight_ratio, "after"),
    ):
        with pytest.raises(ValueError, match=f"and {name} must hold the same tensors"):
            metric([torch.ones(3)], [torch.ones(3), torch.ones(2)])
        with pytest.raises(ValueError, match=f"and {name} must hold the same tensors"):
            metric([torch.ones(2, 3)], [torch.ones(3, 2)])
        with pytest.raises(ValueError, match="wrap a single one"):
            metric(torch.ones(3), [torch.ones(3)])
        with pytest.raises(ValueError, match="holds no tensors"):
            metric([], [])
