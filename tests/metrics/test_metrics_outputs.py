"""Outputs, features and what is not finite, against loops."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pliant.metrics import active_fraction, churn, entropy, feature_norm, non_finite_fraction, output_diversity

OUTPUTS = hnp.arrays(
    np.float64,
    st.tuples(st.integers(1, 2), st.integers(2, 5), st.integers(2, 4)),
    elements=st.sampled_from([0.0, 1.0, -2.0, 0.5, 30.0]),
)


def entropy_loop(logits_NC: np.ndarray) -> float:
    total = 0.0
    for row in logits_NC:
        weights = [math.exp(value - max(row)) for value in row]
        total -= sum(w / sum(weights) * math.log(w / sum(weights)) for w in weights if w > 0)
    return total / len(logits_NC)


def cosine_loop(a_C: np.ndarray, b_C: np.ndarray) -> float:
    return sum(a * b for a, b in zip(a_C, b_C, strict=True)) / math.sqrt(sum(a_C**2) * sum(b_C**2))


@settings(max_examples=60, deadline=None)
@given(OUTPUTS, st.floats(-1, 1))
def test_everything_is_the_definition(outputs_SNC: np.ndarray, shift: float) -> None:
    outputs = torch.from_numpy(outputs_SNC)
    after_SNC = np.flip(outputs_SNC, 1) + shift
    for member, (before_NC, after_NC) in enumerate(zip(outputs_SNC, after_SNC, strict=True)):
        change = after_NC - before_NC
        expected = {
            "distance": np.mean([math.sqrt(sum(row**2)) for row in change]),
            "squared": np.mean([x * x for row in change for x in row]),
            "argmax": np.mean([a.argmax() != b.argmax() for a, b in zip(before_NC, after_NC, strict=True)]),
        }
        for kind, value in expected.items():
            found = churn(outputs, torch.from_numpy(after_SNC.copy()), kind=kind)[member].item()
            assert found == pytest.approx(value, rel=1e-9, abs=1e-12), kind
        assert entropy(outputs)[member].item() == pytest.approx(entropy_loop(before_NC), rel=1e-9, abs=1e-12)
        mean_C = [sum(column) / len(before_NC) for column in before_NC.T]
        energy = sum(x * x for row in before_NC for x in row)
        varying = sum((x - m) ** 2 for row in before_NC for x, m in zip(row, mean_C, strict=True))
        share = varying / energy if energy > 0 else 0.0
        assert output_diversity(outputs)[member].item() == pytest.approx(share, abs=1e-12)
        assert feature_norm(outputs)[member].item() == pytest.approx(
            np.mean([math.sqrt(sum(row**2)) for row in before_NC]), rel=1e-9
        )
        assert active_fraction(outputs)[member].item() == pytest.approx(np.mean([x > 0 for x in before_NC.ravel()]))


def test_diversity_is_one_minus_the_mean_cosine_of_outputs_of_one_length() -> None:
    outputs_NC = torch.randn(7, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    outputs_NC = 4 * outputs_NC / outputs_NC.norm(dim=1, keepdim=True)
    cosines = [cosine_loop(a, b) for a in outputs_NC.numpy() for b in outputs_NC.numpy()]
    assert output_diversity(outputs_NC).item() == pytest.approx(1 - np.mean(cosines))


@pytest.mark.parametrize("value", [0.0, 0.1, 1e30, 1e-30])
def test_constant_outputs_have_no_diversity(value: float) -> None:
    assert output_diversity(torch.full((9, 3), value)) == 0


def test_entropy_from_certain_to_even() -> None:
    assert entropy(torch.tensor([[1e4, 0.0, -1e4]])) == 0
    assert entropy(torch.full((2, 8), 3.0)).item() == pytest.approx(math.log(8))
    # A class that is masked out, and a sample without any class.
    assert entropy(torch.tensor([[0.0, 0.0, -math.inf]])).item() == pytest.approx(math.log(2))
    assert entropy(torch.full((2, 3), -math.inf)).isnan()
    assert entropy(torch.tensor([[math.inf, 0.0]])).isnan()


def test_what_one_sample_or_one_output_cannot_say() -> None:
    with pytest.raises(ValueError, match="two outputs or more"):
        entropy(torch.randn(4, 1))
    with pytest.raises(ValueError, match="two samples or more"):
        output_diversity(torch.randn(1, 4))
    with pytest.raises(ValueError, match="no argmax"):
        churn(torch.randn(4, 1), torch.randn(4, 1), kind="argmax")
    with pytest.raises(ValueError, match="kind must be"):
        churn(torch.randn(4, 2), torch.randn(4, 2), kind="absolute")
    with pytest.raises(ValueError, match="must have one shape"):
        churn(torch.randn(4, 2), torch.randn(3, 2))
    # One sample is enough for what is a mean over samples.
    assert churn(torch.zeros(1, 2), torch.ones(1, 2)).item() == pytest.approx(math.sqrt(2))


def test_non_finite_counts_what_is_broken() -> None:
    tensors = [torch.tensor([[1.0, math.nan], [math.inf, 0.0]]), torch.zeros(2, 3), torch.ones(2, 1, dtype=torch.long)]
    assert non_finite_fraction(tensors).item() == pytest.approx(2 / 12)
    assert non_finite_fraction(tensors, members=True).tolist() == pytest.approx([1 / 6, 1 / 6])
    # Overflow of half precision is what it is there for.
    assert non_finite_fraction([torch.full((4,), 60_000.0, dtype=torch.float16) * 2]) == 1
    with pytest.raises(ValueError, match="holds no tensors"):
        non_finite_fraction([])
