"""Clones up to sign and up to scale: found where the model allows it, and only the former are held."""

from __future__ import annotations

import copy
from functools import cache

import pytest
import torch
import zoo
from nets import Net, generic, net, tanh_net
from torch import nn

import pliant
from pliant import manifolds
from pliant.errors import IllegalConfiguration
from pliant.manifolds import Clone
from pliant.manifolds.symmetry import turned
from pliant.units import UnitGroup


@cache
def relu_net() -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 4), nn.LeakyReLU(), nn.Linear(4, 2)).double()
        batch = torch.randn(32, 5).double()
    return Net(model, batch, pliant.find_units(model, batch))


def changed(own: Net, draw, scale: float = 0.3) -> tuple[Clone, nn.Module]:
    """Redistributed clones, each unit multiplied by a factor that is undone behind it."""
    wide = manifolds.clone(own.model, 2, own.batch, units=own.units)
    state = manifolds.redistributed(wide.model, wide.partition, scale=scale)
    generator = torch.Generator().manual_seed(0)
    for group in wide.units:
        moved = turned(state, group, draw(group, generator), "incoming")
        assert moved is not None
        state = moved
    model = copy.deepcopy(wide.model)
    model.load_state_dict(state, strict=False)
    torch.testing.assert_close(model(own.batch), wide.model(own.batch), rtol=0, atol=1e-12)
    return wide, model


def signs(group: UnitGroup, generator: torch.Generator) -> torch.Tensor:
    drawn = torch.randint(0, 2, (group.size,), generator=generator).double() * 2 - 1
    return drawn if bool((drawn < 0).any()) else -drawn


def sizes(group: UnitGroup, generator: torch.Generator) -> torch.Tensor:
    return (torch.rand(group.size, generator=generator, dtype=torch.float64) * 2).exp2()


CASES = [("sign", tanh_net, signs), ("scale", relu_net, sizes)]


@pytest.mark.parametrize(("kind", "make", "draw"), CASES)
def test_planted_ones_are_found_exactly_and_through_noise_and_not_without_being_asked_for(kind, make, draw):
    own = make()
    wide, model = changed(own, draw)
    assert manifolds.find_partition(model, wide.units, num_shuffles=1).partition != wide.partition
    for noise in (0.0, 1e-4):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(noise * torch.randn(parameter.shape, dtype=torch.float64))
        found = manifolds.find_partition(model, wide.units, up_to={kind}, example_inputs=own.batch, num_shuffles=2)
        assert found.partition == wide.partition
        assert set(found.found) == {"0", "2"}
        assert found.distance is not None
        assert (found.distance.relative <= 1e-14) == (noise == 0)
        assert f"up to {kind}" in str(found)
        assert all(found.is_rescaled(name) == (kind == "scale") for name in found.found)
        unified = copy.deepcopy(model)
        unified.load_state_dict(dict(found.unified), strict=False)  # the same function, in one form
        torch.testing.assert_close(unified(own.batch), model(own.batch), rtol=0, atol=1e-12)
        assert manifolds.certificate(unified, found.partition).holds == (noise == 0)


@pytest.mark.parametrize(("kind", "make", "draw"), CASES)
def test_those_of_another_sign_are_held_and_those_of_another_size_are_turned_apart(kind, make, draw):
    own = make()
    wide, model = changed(own, draw)
    found = manifolds.find_partition(model, wide.units, up_to={kind}, example_inputs=own.batch, num_shuffles=1)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(30):
        optimizer.zero_grad()
        zoo.loss_of(model(own.batch)).backward()
        optimizer.step()
    state = {name: value.detach() for name, value in model.named_parameters()}
    for name, factors in found.factors.items():  # the very changes that made them plain clones
        state = turned(state, wide.units[name], 1 / torch.tensor(factors, dtype=torch.float64), "incoming")
    off = manifolds.distance(model, wide.partition, state=state).relative
    assert off <= 1e-13 if kind == "sign" else off > 1e-3


def test_what_units_may_be_changed_by_is_found_by_running():
    kinds = {name: manifolds.unit_symmetries(net(name).model, net(name).units, net(name).batch) for name in (
        "mlp", "conv_bn_flatten", "vit", "resnet_basic")}  # fmt: skip
    assert {name: item.kinds for name, item in kinds["mlp"].items()} == {"0": ("scale",), "2": ("sign",)}
    assert {name: item.through for name, item in kinds["conv_bn_flatten"].items()} == {
        **dict.fromkeys(("0", "3"), "norm"),
        "8": "incoming",
    }
    assert kinds["resnet_basic"]["layer1.conv1"].through == "norm"
    assert "block.fc1" not in kinds["vit"]  # GELU
    assert "patch:residual" not in kinds["vit"]  # layer norms take all dimensions together


@pytest.mark.parametrize("up_to", [{"scale"}, {"sign", "scale"}])
def test_a_random_network_has_none(up_to):
    for own in (net("mlp"), net("conv_bn_flatten"), tanh_net()):
        model = own.copy()
        model.load_state_dict(generic(model, seed=11), strict=False)
        found = manifolds.find_partition(model, own.units, up_to=up_to, example_inputs=own.batch)
        assert found.found == ()


def test_dead_units_stay_as_they_are():
    own = relu_net()
    model = own.copy()
    with torch.no_grad():
        model[0].bias[:2] = -1e3
    found = manifolds.find_partition(model, own.units, up_to={"scale"}, example_inputs=own.batch)
    assert found.partition.is_trivial
    assert all(torch.equal(found.unified[name], value) for name, value in model.named_parameters())


def test_the_search_may_be_told_where_to_begin_and_what_to_ask_for():
    own = net("mlp")
    shares = [0.8, 0.2] * 8
    wide = manifolds.clone(own.model, {"0": 2}, own.batch, units=own.units, split={"0": shares})
    assert manifolds.find_partition(wide.model, wide.units).partition.is_trivial  # they are read differently
    equal = manifolds.find_partition(wide.model, wide.units, kind="incoming")
    assert equal.partition == wide.partition
    assert equal.distance is not None
    assert equal.distance.kind == "incoming"
    assert equal.distance.relative <= 1e-14
    some = manifolds.partition(wide.units, {"0": [0, 0, *range(2, 16)]})
    found = manifolds.find_partition(wide.model, wide.units, kind="incoming", candidates=some)
    assert found.partition == some


def test_wrong_requests_are_refused():
    own = net("mlp")
    with pytest.raises(IllegalConfiguration, match="give example_inputs="):
        manifolds.find_partition(own.model, own.units, up_to={"sign"})
    with pytest.raises(IllegalConfiguration, match="'sign' and 'scale'"):
        manifolds.find_partition(own.model, own.units, up_to={"shift"}, example_inputs=own.batch)
    with pytest.raises(IllegalConfiguration, match="kind='outgoing'"):
        manifolds.find_partition(own.model, own.units, kind="outgoing")
    with pytest.raises(IllegalConfiguration, match="does not fit this model"):
        manifolds.find_partition(own.model, net("vit").units)
