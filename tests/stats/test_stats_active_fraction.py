"""The fraction of the samples in which a unit is positive."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import pliant
from pliant.bench.ensemble import stack
from pliant.stats import STATISTICS, Collector
from pliant.stats.capture import named_tensors


def collector(model, units, **more):
    wanted = {group.name: frozenset({"active_fraction"}) for group in units}
    return Collector(model, units, wanted, named_tensors(model), **more)


def close(found, units) -> None:
    active = found.of(list(units))
    found.finish(1, active)
    found.look(active)


def mlp(activation: type[nn.Module] = nn.ReLU) -> nn.Module:
    return nn.Sequential(nn.Linear(3, 7), activation(), nn.Linear(7, 2))


def test_it_is_a_statistic_and_must_be_asked_for():
    assert "active_fraction" in STATISTICS
    model = mlp()
    units = pliant.find_units(model, torch.randn(2, 3))
    found = Collector(model, units, {"0": frozenset({"mean_activation"})}, named_tensors(model))
    model(torch.randn(4, 3)).sum().backward()
    close(found, units)
    with pytest.raises(pliant.NoEffect, match="active_fraction"):
        found.stats(units["0"]).active_fraction  # noqa: B018


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh, nn.LeakyReLU])
def test_it_counts_positive_samples(dtype, activation):
    model = mlp(activation)
    units = pliant.find_units(model, torch.randn(2, 3))
    model = model.to(dtype)
    found = collector(model, units)
    x = torch.randn(64, 3).to(dtype)
    model(x).float().square().mean().backward()
    close(found, units)
    want = (model[0](x) > 0).to(torch.float64).mean(0)
    assert torch.allclose(found.stats(units["0"]).active_fraction.double(), want, rtol=0, atol=1e-6)
    assert 0 < want.min() < want.max()


@pytest.mark.parametrize("value", [1e-30, 1.0, 1e30])
def test_how_large_a_positive_activation_is_does_not_matter(value):
    model = mlp()
    units = pliant.find_units(model, torch.randn(2, 3))
    with torch.no_grad():
        model[0].weight.zero_()
        model[0].bias.copy_(torch.tensor([value, -value, 0, value, 0, -value, value]))
    found = collector(model, units)
    model(torch.randn(5, 3)).sum().backward()
    close(found, units)
    assert found.stats(units["0"]).active_fraction.tolist() == [1, 0, 0, 1, 0, 0, 1]


def test_positions_and_microbatches_are_samples():
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 4, 5))
    units = pliant.find_units(model, torch.randn(2, 2, 4, 4))
    found = collector(model, units)
    batches = [torch.randn(6, 2, 4, 4), torch.randn(2, 2, 4, 4)]
    for x in batches:
        model(x).square().mean().backward()
    close(found, units)
    want = (model[0](torch.cat(batches)) > 0).float().mean((0, 2, 3))
    assert torch.allclose(found.stats(units["0"]).active_fraction, want, atol=1e-6)


def test_one_firing_among_very_many_is_not_lost():
    """What matters to some methods is whether it is above zero at all."""
    model = mlp()
    units = pliant.find_units(model, torch.randn(2, 3))
    with torch.no_grad():
        model[0].weight.fill_(1.0)
        model[0].bias.fill_(-1.0)
    found = collector(model, units)
    x = torch.zeros(100_000, 3)
    x[77] = 1.0
    for batch in x.split(50_000):
        model(batch).square().mean().backward()
    close(found, units)
    assert torch.allclose(found.stats(units["0"]).active_fraction, torch.full((7,), 1e-5), rtol=1e-3, atol=0)


def test_broken_activations_are_not_silent_ones():
    model = mlp()
    units = pliant.find_units(model, torch.randn(2, 3))
    with torch.no_grad():
        model[0].bias[2] = math.nan
        model[0].bias[4] = math.inf
    found = collector(model, units)
    model(torch.randn(8, 3)).sum().backward()
    close(found, units)
    fraction = found.stats(units["0"]).active_fraction
    assert fraction.isnan().tolist() == [unit == 2 for unit in range(7)]
    assert fraction[4] == 1


def test_members_are_counted_by_themselves():
    torch.manual_seed(0)
    models = [mlp(), mlp()]
    units = pliant.find_units(models[0], torch.randn(2, 3))
    stacked = stack(models)
    found = collector(stacked, units, num_members=2)
    x = torch.randn(2, 16, 3)
    stacked(x).square().mean().backward()
    close(found, units)
    want = torch.stack([(model[0](part) > 0).float().mean(0) for model, part in zip(models, x, strict=True)])
    assert torch.allclose(found.stats(units["0"]).active_fraction, want, atol=1e-6)


def test_a_compiled_forward_counts_too():
    model = mlp()
    units = pliant.find_units(model, torch.randn(2, 3))
    found = collector(model, units)
    x = torch.randn(32, 3)
    torch.compile(model, backend="aot_eager")(x).square().mean().backward()
    close(found, units)
    assert torch.allclose(found.stats(units["0"]).active_fraction, (model[0](x) > 0).float().mean(0), atol=1e-6)


def test_processes_are_averaged(single_process_group):
    model = mlp()
    units = pliant.find_units(model, torch.randn(2, 3))
    found = collector(model, units, process_group=torch.distributed.group.WORLD)
    x = torch.randn(32, 3)
    model(x).square().mean().backward()
    close(found, units)
    assert torch.allclose(found.stats(units["0"]).active_fraction, (model[0](x) > 0).float().mean(0), atol=1e-6)
