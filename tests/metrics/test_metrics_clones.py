"""Cloned units against loops and a graph search, and the published count of duplicates with its traps."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch.nn import functional as F

from pliant import devices
from pliant.metrics import clone_labels, cloned_fraction, cloned_mask, num_distinct_units
from pliant.metrics.clones import _components

ACTIVATIONS = hnp.arrays(
    np.float64,
    st.tuples(st.integers(1, 2), st.integers(3, 6), st.integers(1, 7)),
    elements=st.sampled_from([0.0, 1.0, 2.0, -1.0, 3.5]),
)


def similarity_loop(a_N: np.ndarray, b_N: np.ndarray, centred: bool) -> float | None:
    if centred:
        a_N, b_N = a_N - a_N.mean(), b_N - b_N.mean()
    size = math.sqrt(sum(a * a for a in a_N)) * math.sqrt(sum(b * b for b in b_N))
    if (centred and (np.ptp(a_N) < 1e-9 or np.ptp(b_N) < 1e-9)) or size == 0:
        return None
    return sum(a * b for a, b in zip(a_N, b_N, strict=True)) / size


def near_loop(act_NU: np.ndarray, similarity: float, sign: str, centred: bool) -> list[list[bool]]:
    width = act_NU.shape[1]
    near = [[i == j for j in range(width)] for i in range(width)]
    for i in range(width):
        for j in range(width):
            value = similarity_loop(act_NU[:, i], act_NU[:, j], centred)
            if i != j and value is not None:
                near[i][j] = (abs(value) if sign == "any" else value) > similarity
    return near


def labels_loop(near: list[list[bool]]) -> list[int]:
    """The lowest unit that a walk over copies reaches."""
    labels = []
    for start in range(len(near)):
        reached, todo = {start}, [start]
        while todo:
            here = todo.pop()
            fresh = [other for other, is_near in enumerate(near[here]) if is_near and other not in reached]
            reached.update(fresh)
            todo += fresh
        labels.append(min(reached))
    return labels


@settings(max_examples=60, deadline=None)
@given(ACTIVATIONS, st.sampled_from([0.0, 0.513, 0.95]), st.sampled_from(["any", "same"]), st.booleans())
def test_everything_is_the_definition(act_SNU: np.ndarray, similarity: float, sign: str, centred: bool) -> None:
    act = torch.from_numpy(act_SNU)
    options = {"similarity": similarity, "sign": sign, "centred": centred}
    for member, act_NU in enumerate(act_SNU):
        near = near_loop(act_NU, similarity + 1e-12, sign, centred)
        labels = labels_loop(near)
        varies = [(np.ptp(column) if centred else np.abs(column).max()) > 0 for column in act_NU.T]
        assert clone_labels(act, **options)[member].tolist() == labels
        copied = [sum(row) > 1 for row in near]
        assert cloned_mask(act, **options)[member].tolist() == copied
        assert copied == [labels.count(label) > 1 for label in labels]
        later = [any(row[unit + 1 :]) for unit, row in enumerate(near)]
        for count, expected in (("all", copied), ("spare", later)):
            value = cloned_fraction(act, **options, count=count)[member].item()
            assert value == pytest.approx(np.mean(expected)) if any(varies) else math.isnan(value)
        distinct = len({label for label, moves in zip(labels, varies, strict=True) if moves})
        assert num_distinct_units(act, **options)[member] == distinct


@pytest.mark.parametrize("copies", [2, 4])
def test_planted_copies(copies: int) -> None:
    act_NU = torch.randn(200, 6, generator=torch.Generator().manual_seed(copies))
    order = torch.randperm(6 * copies, generator=torch.Generator().manual_seed(0))
    # Copies up to sign, scale and offset, in any order.
    factors = torch.tensor([1.0, -3.0, 0.25, 7.0])[:copies].repeat_interleave(6)
    planted_NU = (act_NU.repeat(1, copies) * factors + factors)[:, order]
    assert num_distinct_units(planted_NU) == 6
    assert cloned_fraction(planted_NU) == 1
    assert cloned_fraction(planted_NU, count="spare").item() == pytest.approx((copies - 1) / copies)
    expected = [min(torch.nonzero(order % 6 == unit % 6)).item() for unit in order]
    assert clone_labels(planted_NU).tolist() == expected
    assert cloned_fraction(act_NU) == 0


def joudaki(act_NU: torch.Tensor, threshold: float = 0.95) -> float:
    """Their count: a unit for which some later one has a cosine above the threshold."""
    unit_UN = F.normalize(act_NU.t(), dim=1)
    return float(((unit_UN @ unit_UN.t()) > threshold).triu(1).any(1).float().mean())


def test_the_published_count_and_its_traps() -> None:
    compatible = {"sign": "same", "centred": False, "count": "spare"}
    act_NU = torch.randn(500, 16, generator=torch.Generator().manual_seed(0)).relu()
    for given_NU, expected in (
        (act_NU.repeat(1, 2), 0.5),
        (act_NU.repeat(1, 4), 0.75),
        (act_NU + 5, 15 / 16),  # an offset that all share fools the cosine ...
        (torch.cat([act_NU, torch.zeros(500, 4)], dim=1), 0.0),
        (torch.cat([act_NU, -act_NU], dim=1), 0.0),
    ):
        assert joudaki(given_NU) == pytest.approx(expected)
        assert cloned_fraction(given_NU, **compatible).item() == pytest.approx(expected)
    assert cloned_fraction(act_NU + 5) == 0  # ... and not the correlation
    assert cloned_fraction(torch.cat([act_NU, -act_NU], dim=1)) == 1


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 90), st.integers(0, 10_000), st.sampled_from(["path", "random"]))
def test_clusters_close_on_any_graph(width: int, seed: int, kind: str) -> None:
    """Long chains in any order, with and without looking at the values in between."""
    generator = torch.Generator().manual_seed(seed)
    if kind == "path":
        order = torch.randperm(width, generator=generator)
        near = torch.eye(width, dtype=torch.bool)
        near[order[:-1], order[1:]] = near[order[1:], order[:-1]] = True
        expected = [0] * width
    else:
        near = torch.rand(width, width, generator=generator) < 1.2 / width
        near = near | near.T | torch.eye(width, dtype=torch.bool)
        expected = labels_loop(near.tolist())
    assert _components(near).tolist() == expected
    try:
        devices._as_accelerator = True
        assert _components(near).tolist() == expected
    finally:
        devices._as_accelerator = False


def test_nothing_to_compare_is_no_verdict() -> None:
    dead_NU = torch.full((20, 5), 0.1)  # whose mean over 20 samples is not 0.1 in float32
    for dtype in (torch.float16, torch.float32, torch.float64):
        assert cloned_fraction(dead_NU.to(dtype)).isnan()
        assert num_distinct_units(dead_NU.to(dtype)) == 0
        assert not cloned_mask(dead_NU.to(dtype)).any()
        assert clone_labels(dead_NU.to(dtype)).tolist() == [0, 1, 2, 3, 4]
    for num_samples in (1, 2):
        with pytest.raises(ValueError, match="measure on more"):
            cloned_fraction(torch.randn(num_samples, 5))


def test_wrong_arguments() -> None:
    act_NU = torch.randn(5, 3)
    for options in ({"similarity": 1.0}, {"similarity": float("nan")}, {"sign": "both"}, {"count": "pairs"}):
        with pytest.raises(ValueError, match=f"{next(iter(options))} must be"):
            cloned_fraction(act_NU, **options)
