"""Weight clipping and noise against slow re-derivations, step by step, in float64."""

from __future__ import annotations

import pytest
import torch
from parity_tools import OPTIMIZERS, Pair

from pliant.interventions import GradientNoise, WeightClipping, WeightNoise
from pliant.write import stream_of
from references import weight_clipping, weight_noise
from references.gradient_noise import SlowGradientNoise


def drawer(seed):
    """The product's protocol: one generator per model, float32 draws."""
    generator = torch.Generator().manual_seed(stream_of(seed))
    return lambda shape: torch.randn(shape, generator=generator)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(("kind", "kappa"), [("mlp", 1.0), ("mlp", 0.7), ("conv", 0.9)])
def test_weight_clipping_is_the_papers(kind, kappa, optimizer):
    pair = Pair(WeightClipping(kappa), optimizer, kind)
    before = [p.detach().clone() for p in pair.slow.parameters()]
    for number in range(6):
        pair.step(number, after=lambda: weight_clipping.clip(pair.slow, kappa))
    pair.check()
    assert any(not torch.equal(p, q) for p, q in zip(before, pair.slow.parameters(), strict=True))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(("relative_to", "decay"), [("tensor", 0.9), ("tensor", 0.0), ("entry", 1.0), ("nothing", 0.5)])
@pytest.mark.parametrize("kind", ["mlp", "conv"])
def test_gradient_noise_is_the_experiments(kind, relative_to, decay, optimizer):
    options = {"noise_scale": 0.1, "decay": decay, "relative_to": relative_to}
    pair = Pair(GradientNoise(**options), optimizer, kind, seed=11)
    reference = SlowGradientNoise(pair.slow, drawer(11), **options)
    for number in range(6):
        pair.step(number, before=reference.before_step)
    pair.check()


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("relative_to", ["step_size", "entry", "nothing"])
def test_weight_noise_is_perturbed_gradient_descent(relative_to, optimizer):
    pair, draw = Pair(WeightNoise(0.1, relative_to), optimizer, seed=11), drawer(11)
    for number in range(6):
        pair.step(number, after=lambda: weight_noise.perturb(pair.slow, draw, pair.rate, 0.1, relative_to))
    pair.check()
