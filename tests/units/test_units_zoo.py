"""Every architecture of the zoo: the expected groups are found, each is a symmetry, no member can be left out."""

from __future__ import annotations

import copy
from functools import cache

import pytest
import torch
from checks import change, derangement, generic_copy, outputs, permute_
from zoo import NAMES, ZOO, cast

import pliant
from pliant.units import UnitGraph
from pliant.units.group import UnitGroup

A_THIRD = [name if i % 3 == 0 else pytest.param(name, marks=pytest.mark.wide) for i, name in enumerate(NAMES)]


@cache
def units_of(name: str) -> UnitGraph:
    return pliant.find_units(ZOO[name].model(), ZOO[name].batch())


def members(group: UnitGroup) -> set[str]:
    return {piece.label for piece in group.slices}


@pytest.mark.parametrize("name", NAMES)
def test_the_expected_groups_are_found_and_no_others(name):
    units, expected = units_of(name), ZOO[name].groups
    assert {group.name: group.size for group in units} == {key: want.size for key, want in expected.items()}
    for group in units:
        want = expected[group.name]
        assert members(group) == set(want.members.split()), group.name
        assert group.site == want.site, group.name
        assert group.reset_preserves_function == want.preserves, group.name
        if want.tap != "any":
            assert {None: "none", True: "replay", False: "hook"}[group.tap and group.tap.replay] == want.tap, group.name
    for key, word in ZOO[name].excluded.items():
        tensor, dim = key.rstrip("]").split("[")
        assert word in units.excluded[tensor, int(dim)]


@pytest.mark.parametrize("name", NAMES)
def test_every_dimension_is_in_a_group_or_excluded_with_a_reason(name):
    model, units = ZOO[name].model(), units_of(name)
    tensors = dict(model.named_parameters())  # tied tensors once, under their first name
    tensors |= {key: buffer for key, buffer in model.named_buffers() if buffer.is_floating_point()}
    covered: dict[tuple[str, int], set[int]] = {}
    for group in units:
        for piece in group.slices:
            positions = [p for row in piece.table for p in row]
            assert len(set(positions)) == len(positions) == group.size * piece.width
            covered.setdefault((piece.name, piece.dim), set()).update(positions)
    for key, tensor in tensors.items():
        for dim in range(-tensor.ndim, 0):
            complete = covered.get((key, dim)) == set(range(tensor.shape[dim]))
            reason = units.excluded.get((key, dim))
            assert complete or reason, f"{key}[{dim}] is unaccounted for"
            assert reason is None or len(reason) > 10
    assert {key for key, _ in covered} | {key for key, _ in units.excluded} == set(tensors)
    assert units.unknown_ops == {}


@pytest.mark.parametrize("name", NAMES)
def test_each_group_is_a_symmetry_and_each_member_is_needed(name):
    """The independent check: plain PyTorch on a copy with random parameters, both modes."""
    case, units = ZOO[name], units_of(name)
    model = generic_copy(case.model())
    x = cast(case.batch(seed=5), torch.float64)
    reference = outputs(model, x)
    for group in units:
        order = derangement(group.size)

        def after(pieces, order=order):
            other = copy.deepcopy(model)
            permute_(other, pieces, order)
            return change(reference, outputs(other, x))

        assert after(group.slices) < 1e-12, group.name
        for index, piece in enumerate(group.slices):
            rest = (*group.slices[:index], *group.slices[index + 1 :])
            label = piece.label
            assert after(rest) > 1e-5 or label in case.inert.split(), f"{group.name} without {label}"


@pytest.mark.parametrize("name", A_THIRD)
def test_verify_passes_and_touches_nothing(name):
    case, units = ZOO[name], units_of(name)
    model = case.model()
    list(model.modules())[-1].eval()  # a mode that is not the same everywhere
    next(model.parameters()).requires_grad_(False)
    before = snapshot(model)
    x = case.batch()
    found = pliant.find_units(model, x)
    result = units.verify(model, x)
    pliant.stats.capture(model, units, x)
    assert same_snapshot(before, snapshot(model))
    assert [group.name for group in found] == [group.name for group in units]
    assert result.ok, str(result)
    assert result.precision == "float64"
    assert all(check.change < 1e-12 and check.smallest_omission > 1e-5 for check in result.groups), str(result)
    assert {label for check in result.groups for label in check.inert} == set(case.inert.split())


def snapshot(model):
    return {
        "state": {key: value.clone() for key, value in model.state_dict().items()},
        "identity": [id(p) for p in model.parameters()],
        "versions": [p._version for p in model.parameters()] + [b._version for b in model.buffers()],
        "grad": [(p.requires_grad, p.grad) for p in model.parameters()],
        "mode": [module.training for module in model.modules()],
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()],
        "attributes": [sorted(vars(m)) for m in model.modules()],
        "rng": torch.get_rng_state(),
        "fastpath": torch.backends.mha.get_fastpath_enabled(),
        "validate": torch.distributions.Distribution._validate_args,
        "grad_mode": torch.is_grad_enabled(),
    }


def same_snapshot(a, b):
    for key in a:
        if key == "state":
            assert a[key].keys() == b[key].keys()
            assert all(torch.equal(a[key][k], b[key][k]) for k in a[key])
        elif key == "rng":
            assert torch.equal(a[key], b[key])
        else:
            assert a[key] == b[key], key
    return True


@pytest.mark.parametrize("name", ["mlp", "conv_bn_flatten", "resnet_basic", "vit", "swiglu", "conv_depthwise"])
def test_verify_names_the_group_that_lacks_a_member(name):
    case, units = ZOO[name], units_of(name)
    model, x = case.model(), case.batch()
    for group in units:
        for index, piece in enumerate(group.slices):
            if len(group.slices) == 1:
                continue
            rest = (*group.slices[:index], *group.slices[index + 1 :])
            broken = UnitGroup(group.name, group.size, rest, group.site, None, True)
            result = UnitGraph((broken,)).verify(model, x)
            assert not result.ok, f"{group.name} without {piece.label}"
            assert repr(group.name) in result.failures[0]
            with pytest.raises(pliant.IllegalConfiguration, match="permuting the units"):
                result.raise_if_failed()


def test_a_fresh_network_is_blind_and_verify_is_not():
    """The reason for the jitter: a forgotten bias permutes for free while all biases are equal."""
    case = ZOO["conv_bn_flatten"]
    model, x = case.model().double(), case.batch().double()
    group = units_of("conv_bn_flatten")["0"]
    rest = tuple(piece for piece in group.slices if piece.name != "1.bias")
    reference = outputs(model, x)
    blind = copy.deepcopy(model)
    permute_(blind, rest, derangement(group.size))
    assert change(reference, outputs(blind, x)) < 1e-12
    broken = UnitGraph((UnitGroup("0", group.size, rest, "hidden", None, True),))
    assert not broken.verify(case.model(), case.batch()).ok


def test_a_wrong_extra_member_is_noticed():
    case, units = ZOO["mlp"], units_of("mlp")
    first = units["0"]
    extra = pliant.units.TensorSlice("2.weight", -2, "incoming", tuple((u,) for u in range(6)))
    wrong = UnitGroup(
        "2",
        6,
        (
            *units["2"].slices[1:],
            extra,
            first.slices[0].__class__("4.bias", -1, "incoming", tuple((u % 3,) for u in range(6))),
        ),
        "hidden",
        None,
        True,
    )
    assert not UnitGraph((wrong,)).verify(case.model(), case.batch()).ok


def test_verify_refuses_a_graph_of_another_model():
    with pytest.raises(pliant.IllegalConfiguration, match="does not have"):
        units_of("mlp_functional").verify(ZOO["mlp"].model(), ZOO["mlp"].batch())


def test_groups_survive_json():
    for group in units_of("resnet_basic"):
        assert UnitGroup.from_dict(group.to_dict()) == group


def test_selection():
    units = units_of("transformer_norm_first")
    hidden = {group.name for group in units.select("*")}
    assert "encoder.layers.0.linear1" in hidden
    assert "encoder.layers.0.self_attn:heads" in hidden
    assert not any(":residual" in name or ":head_dims" in name for name in hidden)
    assert [g.name for g in units.select("*:residual")] == ["embed:residual"]
    assert [g.name for g in units.select("encoder.layers.1")] == [
        g.name for g in units if g.name.startswith("encoder.layers.1") and g.site in ("hidden", "heads")
    ]
    with pytest.raises(pliant.NoEffect, match=r"encoder\.layers\.0\.linear1"):
        units.require("nothing*")
    with pytest.raises(KeyError, match="linear1"):
        units["nothing"]
    table = str(units)
    assert all(group.name in table for group in units)
    assert "not units:" in table
