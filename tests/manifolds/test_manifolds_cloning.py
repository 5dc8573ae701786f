"""Wider networks that compute the same, and back: every architecture, both modes, optimizer state included."""

from __future__ import annotations

import copy

import pytest
import torch
import zoo
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import NAMES, Net, doubled, generic, net, outputs
from torch import nn

import pliant
from pliant import manifolds, metrics
from pliant.errors import IllegalConfiguration, NotYetSupported


def differs(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max() / a.abs().max())


def same_function(own: Net, wide: nn.Module) -> bool:
    pairs = zip(outputs(own.model, own.batch), outputs(wide, own.batch), strict=True)
    return all(differs(a, b) <= 1e-12 for a, b in pairs)


@pytest.mark.parametrize("name", NAMES)
def test_a_wider_copy_computes_the_same_and_collapses_to_what_it_was(name: str):
    own, wide = net(name), doubled(name)
    before = copy.deepcopy(own.model.state_dict())
    assert wide.change <= 1e-12
    assert same_function(own, wide.model)
    for group in own.units:
        wanted = 1 if group.site == "head_dims" else 2
        assert wide.units[group.name].size == wanted * group.size, group.name
        assert set(wide.partition.block_sizes(group.name)) == {wanted}
    assert manifolds.certificate(wide.model, wide.partition, "block_constant").holds
    small = manifolds.collapse(wide.model, wide.partition, own.batch)
    assert small.distance.total == 0
    assert small.change <= 1e-12
    for key, value in small.model.state_dict().items():
        assert torch.equal(value, before[key]), key
    for key, value in own.model.state_dict().items():
        assert torch.equal(value, before[key]), f"cloning changed the base's {key}"


@pytest.mark.parametrize("name", ["mlp", "conv_bn_flatten"])
def test_twice_by_two_is_once_by_four(name: str):
    own, wide = net(name), doubled(name)
    twice = manifolds.clone(wide.model, 2, own.batch, units=wide.units).model.state_dict()
    once = manifolds.clone(own.model, 4, own.batch, units=own.units).model.state_dict()
    assert all(torch.equal(twice[key], value) for key, value in once.items())


@settings(max_examples=3, deadline=None, derandomize=True)
@given(st.lists(st.integers(1, 4), min_size=8, max_size=8), st.lists(st.integers(1, 3), min_size=6, max_size=6))
def test_every_unit_may_have_its_own_number_of_copies(first: list[int], second: list[int]):
    own = net("mlp")
    first[0] = 2  # at least one copy
    wide = manifolds.clone(own.model, {"0": first, "2": second}, own.batch, units=own.units)
    assert wide.partition.block_sizes("0") == tuple(first)
    assert same_function(own, wide.model)
    assert manifolds.certificate(wide.model, wide.partition, "block_constant").holds
    small = manifolds.collapse(wide.model, wide.partition, own.batch).model.state_dict()
    assert all(differs(value, small[key]) <= 1e-14 for key, value in own.model.state_dict().items())


def test_a_flattened_channel_takes_all_its_columns_along():
    own = net("conv_bn_flatten")
    wide = manifolds.clone(own.model, {"3": [1, 2, 3, 1]}, own.batch, units=own.units)
    assert wide.model[8].weight.shape == (7, 7 * 4)  # seven channels, four places each
    assert same_function(own, wide.model)
    assert torch.equal(wide.model[8].weight[:, 4:8], wide.model[8].weight[:, 8:12])
    assert not torch.equal(wide.model[8].weight[:, 4], wide.model[8].weight[:, 5])  # places are no clones


def test_copies_get_their_share_of_the_adjoint_and_the_rank_stays():
    own, wide = net("mlp"), doubled("mlp")
    seen = [pliant.observation.observe(m, own.batch, zoo.loss_of, units=u) for m, u in (
        (own.model, own.units), (wide.model, wide.units))]  # fmt: skip
    for name in ("0", "2"):
        base, copies = (s.groups[name] for s in seen)
        owner = torch.tensor(wide.partition.of(name))
        assert differs(base.act_NU[:, owner], copies.act_NU) <= 1e-12
        assert differs(base.grad_NU[:, owner] / 2, copies.grad_NU) <= 1e-12
        ranks = [float(metrics.effective_rank(item.act_NU)) for item in (base, copies)]
        assert ranks[0] == pytest.approx(ranks[1], rel=1e-12)


def test_unequal_shares_keep_the_function_and_lose_the_outgoing_condition():
    own = net("mlp")
    shares = [0.9, 0.1] * 8
    wide = manifolds.clone(own.model, {"0": 2}, own.batch, units=own.units, split={"0": shares})
    assert same_function(own, wide.model)
    assert manifolds.certificate(wide.model, wide.partition, "incoming").holds
    outgoing = manifolds.certificate(wide.model, wide.partition, "outgoing")
    assert {failure.tensor for failure in outgoing.failures} == {"2.weight"}


def test_what_collapsing_costs_shrinks_with_the_distance():
    own, wide = net("mlp"), doubled("mlp")
    noise = {name: torch.randn_like(p) for name, p in wide.model.named_parameters()}
    found = []
    for size in (1e-2, 1e-3, 1e-9):
        model = copy.deepcopy(wide.model)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.add_(size * noise[name])
        small = manifolds.collapse(model, wide.partition, own.batch)
        found.append((small.distance.total, small.change))
    assert found[0][0] / found[1][0] == pytest.approx(10, rel=1e-6)
    assert found[0][1] > 2 * found[1][1] > 0
    assert found[2][1] <= 1e-7


OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.0, momentum=0.9),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.0, amsgrad=True),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.0, momentum=0.5, eps=1e-30),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=0.0),
    "Adamax": lambda p: torch.optim.Adamax(p, lr=0.0, eps=0.0),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_state_of_the_optimizer_is_what_the_wide_network_would_have_gathered(name: str):
    # with a step size of zero nothing moves, so that both networks can gather the same gradients
    own = net("mlp")
    model = own.copy()
    optimizer = OPTIMIZERS[name](model.parameters())
    step(model, optimizer, own.batch)
    wide = manifolds.clone(model, {"0": 3, "2": 2}, own.batch, optimizer=optimizer, units=own.units)
    assert wide.optimizer is not None
    fresh = OPTIMIZERS[name](wide.model.parameters())
    step(wide.model, fresh, own.batch)
    for parameter in wide.model.parameters():
        assert set(fresh.state[parameter]) == set(wide.optimizer.state[parameter])
        for key, value in fresh.state[parameter].items():
            torch.testing.assert_close(wide.optimizer.state[parameter][key], value, rtol=1e-11, atol=1e-300)
    small = manifolds.collapse(wide.model, wide.partition, own.batch, optimizer=wide.optimizer)
    assert small.optimizer is not None
    for mine, parameter in zip(small.model.parameters(), model.parameters(), strict=True):
        for key, value in optimizer.state[parameter].items():
            torch.testing.assert_close(small.optimizer.state[mine][key], value, rtol=1e-11, atol=1e-300)


def step(model: nn.Module, optimizer: torch.optim.Optimizer, batch: torch.Tensor) -> None:
    for _ in range(3):
        optimizer.zero_grad()
        zoo.loss_of(model(batch)).backward()
        optimizer.step()


NORMS = {
    "none": lambda: nn.Identity(),
    "batch without affine": lambda: nn.BatchNorm2d(4, affine=False),
    "layer": lambda: nn.LayerNorm([4, 3, 3]),
    "groups of two": lambda: nn.GroupNorm(2, 4),
    "each by itself": lambda: nn.GroupNorm(4, 4),
    "instance": lambda: nn.InstanceNorm2d(4, affine=True),
}


@pytest.mark.parametrize(
    "name",
    [
        *("layer", "groups of two", "instance"),
        *(pytest.param(name, marks=pytest.mark.wide) for name in ("none", "batch without affine", "each by itself")),
    ],
)
def test_a_convolutional_network_with_any_norm(name: str):
    layers = [nn.Conv2d(2, 4, 3, padding=1), NORMS[name](), nn.Tanh(), nn.Flatten(), nn.Linear(36, 5), nn.Tanh()]
    model = nn.Sequential(*layers, nn.LayerNorm(5, elementwise_affine=False), nn.Linear(5, 2)).double()
    model.load_state_dict(generic(model), strict=False)
    x = torch.randn(3, 2, 3, 3, dtype=torch.float64)
    wide = manifolds.clone(model, 3, x)
    for a, b in zip(outputs(model, x), outputs(wide.model, x), strict=True):
        assert differs(a, b) <= 1e-12


# ---- what cannot be done is refused, with the place
def refused(name: str, factor: object, match: str, error: type[Exception] = IllegalConfiguration, **more: object):
    own = net(name)
    with pytest.raises(error, match=match):
        manifolds.clone(own.model, factor, own.batch, units=own.units, **more)


def test_unequal_numbers_under_a_norm_across_units_are_refused():
    refused("vit", {"patch:residual": [1, 2] * 4}, r"norm 'block\.norm1' .*'patch:residual'.*1, 2")
    refused("conv_groupnorm", {"3": 2}, r"norm '4' .*'3', '3#2'")  # one of the two groups of one norm
    assert manifolds.clone(net("conv_groupnorm").model, {"3": 2, "3#2": 2}, net("conv_groupnorm").batch).change <= 1e-12


def test_wrong_requests_name_the_group():
    refused("mlp", {"nothing": 2}, "no unit group 'nothing'.*: 0, 2")
    refused("mlp", {"0": [1, 2]}, "'0' has 8 units")
    refused("mlp", {"0": 0}, "1 or more")
    refused("mlp", 1.5, "factor=1.5")
    refused("vit", {"block.attn.qkv:head_dims": 2}, "inside heads", NotYetSupported)
    refused("mlp", {"0": 2}, "must add up to one", split={"0": [0.5, 0.6] * 8})
    refused("mlp", {"0": 2}, "8 shares.*16 copies", split={"0": [0.5] * 8})


def test_tied_weights_without_a_norm_are_refused_and_other_groups_still_clone():
    refused("tied_language_model", 2, r"tied weights: 'embed\.weight'", NotYetSupported)
    own = net("tied_language_model")
    assert manifolds.clone(own.model, {"fc1": 3}, own.batch, units=own.units).change <= 1e-12


def test_a_function_that_depends_on_the_number_of_units_is_refused():
    class Mean(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.out = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = self.fc(x).relu()
            return self.out(h) + h.square().sum(-1, keepdim=True)

    with pytest.raises(NotYetSupported, match="computes something else"):
        manifolds.clone(Mean().double(), 2, torch.randn(4, 3).double())


class Fixed(nn.Module):
    """Says in its forward pass how wide it is."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc, self.out, self.n = nn.Linear(3, 2 * width), nn.Linear(2 * width, 2), width

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.fc(x).relu().view(-1, 2, self.n).flatten(1))


def test_a_model_that_fixes_its_width_can_be_filled_by_hand():
    model, x = Fixed(4).double(), torch.randn(5, 3).double()
    with pytest.raises(NotYetSupported, match="into="):
        manifolds.clone(model, {"fc#2": 2}, x)
    wide = manifolds.clone(model, {"fc#2": 2}, x, into=Fixed(8).double())
    assert differs(model(x).detach(), wide.model(x).detach()) <= 1e-12


REFUSED = {
    "weight_standardised": "computes something else",
    "channel_shuffle": "fixes how they are grouped",
    "tied_autoencoder": "tied weights",
    "tied_autoencoder_deep": "tied weights",
    "tied_language_model": "tied weights",
    "hf_mixtral": "Double",
    "recommender_dot": "computes something else",
    "lstm_projected": "does not run",
    "convolutional_lstm": "does not run",
    "tcn_weight_norm": "computes something else",
    "rotary_complex": "does not run",
    "parameter_slices": "does not run",
    "parameter_views": "does not run",
}


@pytest.mark.wide
@pytest.mark.parametrize("name", [name for name in zoo.NAMES if name not in NAMES])
def test_the_whole_zoo_is_cloned_or_refused(name: str):
    own = zoo.ZOO[name]
    model, batch = own.model().double(), zoo.cast(own.batch(), torch.float64)
    if name in REFUSED:
        with pytest.raises(pliant.UnsupportedError, match=REFUSED[name]):
            manifolds.clone(model, 2, batch)
        return
    wide = manifolds.clone(model, 2, batch)
    assert wide.change <= 1e-12
    assert manifolds.certificate(wide.model, wide.partition, "block_constant").holds
