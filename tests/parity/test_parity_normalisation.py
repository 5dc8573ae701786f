"""Methods that normalise, against slow re-derivations, step by step, in float64."""

from __future__ import annotations

import pytest
import torch
from parity_tools import OPTIMIZERS, step
from torch import nn

import pliant
from pliant.interventions import AdaptiveNormalization, NormalizeAndProject
from references.adaptive_normalization import GatedNetwork, SlowAdaptiveNormalization
from references.normalize_and_project import SlowNormalizeAndProject


def network() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(
        *(nn.Linear(6, 13), nn.LayerNorm(13), nn.ReLU()),
        *(nn.Linear(13, 10), nn.LayerNorm(10), nn.ReLU()),
        nn.Linear(10, 3),
    ).double()


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(("every", "affine", "decay"), [(1, "project", 0.0), (1, "decay", 0.05), (3, "keep", 0.0)])
def test_normalize_and_project_is_the_papers_algorithm(optimizer, every, affine, decay):
    fast, slow = network(), network()
    fast_optimizer, slow_optimizer = OPTIMIZERS[optimizer](fast.parameters()), OPTIMIZERS[optimizer](slow.parameters())
    method = NormalizeAndProject(every=every, affine=affine, decay=decay)
    pliant.attach(fast, fast_optimizer, method, example_inputs=torch.ones(2, 6).double())
    layers = [module for module in slow if isinstance(module, nn.Linear)]
    norms = [module for module in slow if isinstance(module, nn.LayerNorm)]
    reference = SlowNormalizeAndProject(layers, norms, every=every, affine=affine, decay=decay)
    for number in range(60):
        step(fast, fast_optimizer, number)
        step(slow, slow_optimizer, number)
        reference.after_step()
    for (name, p), q in zip(fast.named_parameters(), slow.parameters(), strict=True):
        assert torch.allclose(p, q, rtol=1e-10, atol=1e-12), name
    plain = network()
    plain_optimizer = OPTIMIZERS[optimizer](plain.parameters())
    for number in range(60):
        step(plain, plain_optimizer, number)
    assert not torch.allclose(plain[0].weight, fast[0].weight, rtol=1e-3)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(("dormant", "growth"), [((0.25, 0.35), (9.0, 9.0)), ((0.9, 0.9), (0.95, 0.98))])
def test_adaptive_normalization_is_its_slow_form(optimizer, dormant, growth):
    def linears():
        torch.manual_seed(1)
        return [nn.Linear(6, 13).double(), nn.Linear(13, 10).double(), nn.Linear(10, 3).double()]

    first, second, third = linears()
    fast = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), third)
    slow = GatedNetwork(linears())
    fast_optimizer, slow_optimizer = OPTIMIZERS[optimizer](fast.parameters()), OPTIMIZERS[optimizer](slow.parameters())
    thresholds = {"dormant_below": dormant[0], "dormant_above": dormant[1]}
    thresholds |= {"growth_below": growth[0], "growth_above": growth[1]}
    method = AdaptiveNormalization(rate=0.2, every=3, tau=0.6, **thresholds)
    handle = pliant.attach(fast, fast_optimizer, method, example_inputs=torch.ones(2, 6).double())
    reference = SlowAdaptiveNormalization(slow, rate=0.2, every=3, dormant=dormant, growth=growth, tau=0.6)
    for number in range(60):
        step(fast, fast_optimizer, number)
        step(slow, slow_optimizer, number)
        reference.after_step()
        assert [float(fast[at].gate) for at in (0, 2)] == pytest.approx(slow.gates, abs=1e-12), number
    assert max(slow.gates) > 0.1
    for mine, theirs in zip((fast[0].layer, fast[2].layer, fast[4]), slow.linears, strict=True):
        assert torch.allclose(mine.weight, theirs.weight, rtol=1e-9, atol=1e-11)
    assert handle.record()["AdaptiveNormalization.in_trouble"] == sum(reference.in_trouble) / 2
