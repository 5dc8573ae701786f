"""Finding clones that nobody has named, and not finding any where there are none."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from nets import NAMES, doubled, generic, net
from torch import nn

import pliant
from pliant import manifolds
from pliant.errors import IllegalConfiguration
from pliant.units.verify import moved, permute


def shuffled(wide: manifolds.Clone, seed: int) -> tuple[nn.Module, manifolds.Partition]:
    """The same network with its units in another order, and where the clones are then."""
    generator = torch.Generator().manual_seed(seed)
    state = {name: value.detach() for name, value in (*wide.model.named_parameters(), *wide.model.named_buffers())}
    labels = {}
    for group in wide.units:
        order = moved(group.size, generator)
        state = permute(state, group.slices, order)
        old = wide.partition.of(group.name)
        labels[group.name] = [old[unit] for unit in order.tolist()]
    model = copy.deepcopy(wide.model)
    model.load_state_dict(state, strict=False)
    return model, manifolds.partition(
        wide.units, {name: own for name, own in labels.items() if len(set(own)) < len(own)}
    )


@pytest.mark.parametrize("name", NAMES)
def test_planted_clones_in_any_order_are_found_exactly_and_through_noise(name: str):
    model, planted = shuffled(doubled(name), seed=1)
    model.load_state_dict(manifolds.redistributed(model, planted), strict=False)  # unequal weights, equal sums
    for noise in (0.0, 1e-4):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(noise * torch.randn(parameter.shape, dtype=torch.float64))
        found = manifolds.find_partition(model, doubled(name).units, tolerance=0.1)
        assert found.partition.labels == planted.labels
        assert set(found.found) == set(planted.labels)
        assert found.distance is not None
        assert (found.distance.relative <= 1e-14) == (noise == 0)
        assert "near is not trapped" in str(found)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seed", [0, 1])
def test_a_random_network_has_no_clones(name: str, seed: int):
    own = net(name)
    model = own.copy()
    model.load_state_dict(generic(model, seed=10 + seed), strict=False)
    found = manifolds.find_partition(model, own.units)
    assert found.found == ()
    assert found.partition.is_trivial
    assert str(found).startswith("no clones")


def test_the_curve_goes_from_many_blocks_at_no_distance_to_few_at_a_large_one():
    wide = doubled("mlp")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = copy.deepcopy(wide.model)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(1e-3 * torch.randn(parameter.shape, dtype=torch.float64))
    curve = manifolds.find_partition(model, wide.units, levels=(1e-9, 1e-4, 1e-2, 0.03, 0.4, 0.8)).curve
    assert curve[0][1:] == (28, 0.0)
    assert (14, pytest.approx(1.44e-2, rel=0.3)) in [entry[1:] for entry in curve]
    assert all(a[0] < b[0] and a[1] >= b[1] and a[2] <= b[2] for a, b in itertools.pairwise(curve))


def test_a_wide_random_network_is_not_called_cloned():
    # many units and few weights each: chance brings some of them near
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 1)).double()
    units = pliant.find_units(model, torch.randn(4, 2).double())
    found = manifolds.find_partition(model, units, tolerance=0.3)
    assert found.null_cloned_fraction["0"] > 0  # chance does it, and the baseline says so
    for tolerance in (0.01, 0.1):
        assert manifolds.find_partition(model, units, tolerance=tolerance).found == ()


def test_sums_over_wide_layers_are_near_each_other_without_being_equal():
    # deep inside, a coarse partition compares means over 64 units, which differ little between any two units: they are
    # told apart once their neighbours are
    torch.manual_seed(0)
    layers = [nn.Linear(4, 64), nn.ReLU()]
    for _ in range(3):
        layers += [nn.Linear(64, 64, bias=False), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Linear(64, 2)).double()
    units = pliant.find_units(model, torch.randn(3, 4).double())
    assert manifolds.find_partition(model, units, tolerance=0.15, num_shuffles=1).partition.is_trivial


def test_two_dead_units_with_other_weights_are_no_clones_of_the_weights():
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).double()
    with torch.no_grad():
        model[0].bias[:2] = -100.0
    units = pliant.find_units(model, torch.randn(3, 4).double())
    assert manifolds.find_partition(model, units).partition.is_trivial


def test_bad_options_are_refused():
    own = net("mlp")
    with pytest.raises(IllegalConfiguration, match="tolerance=1"):
        manifolds.find_partition(own.model, own.units, tolerance=1.0)
    with pytest.raises(IllegalConfiguration, match="num_shuffles"):
        manifolds.find_partition(own.model, own.units, num_shuffles=0)
