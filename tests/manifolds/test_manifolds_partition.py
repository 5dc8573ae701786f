"""Partitions: what is tied has one profile, and what does not fit is refused with its place."""

from __future__ import annotations

import pytest
import torch
from nets import doubled, net

from pliant import manifolds
from pliant.errors import IllegalConfiguration
from pliant.manifolds.structure import block_structure


def refused(name: str, blocks: dict[str, list[int]], match: str) -> None:
    with pytest.raises(IllegalConfiguration, match=match):
        manifolds.partition(net(name).units, blocks)


def test_the_two_branches_of_a_residual_sum_have_one_profile():
    units = net("resnet_basic").units
    one = manifolds.partition(units, {"layer1.conv2.weight[-4]": [0, 0, 1, 1], "stem.weight[-4]": [3, 3, 7, 7]})
    assert one.of("stem:residual") == (0, 0, 1, 1)
    refused(
        "resnet_basic",
        {"layer1.conv2.weight[-4]": [0, 0, 1, 1], "stem.weight[-4]": [0, 1, 1, 0]},
        r"'stem\.weight\[-4\]' and 'layer1\.conv2\.weight\[-4\]'.*'stem:residual'.*Profiles must match",
    )


@pytest.mark.parametrize("labels", [[0, 0, 1, 2], [0, 1, 0, 1], [0, 0, 0, 0]])
def test_a_block_of_flattened_channels_holds_one_class_for_each_place(labels: list[int]):
    own = net("conv_bn_flatten")
    blocks = block_structure(own.model, manifolds.partition(own.units, {"3": labels}))
    classes = blocks["8.weight"].classes("sending")[-1].view(4, 4)  # channels x places
    for channel, label in enumerate(labels):
        assert torch.equal(classes[channel], 4 * labels.index(label) + torch.arange(4))


def test_tied_weights_have_one_partition_and_each_entry_both_makes_and_reads():
    own = net("tied_language_model")
    blocks = block_structure(own.model, manifolds.partition(own.units, {"embed:residual": [0, 0, 1, 1, 2, 3]}))
    assert blocks["embed.weight"].has("shared")
    assert not any(name.startswith("head.") for name in blocks)


def test_the_groups_of_a_grouped_convolution_read_and_make():
    own = net("conv_grouped")
    blocks = block_structure(own.model, manifolds.partition(own.units, {"0": [0, 0], "2": [0, 0, 1, 2]}))
    sides = {side for side, dim in blocks["2.weight"].pieces if dim == -4}
    assert sides == {"shared", "receiving"}


def test_what_does_not_fit_is_refused_by_name():
    refused("mlp", {"0": [0, 1]}, "'0' has 8 units, and the partition gives 2")
    refused("mlp", {"nowhere": [0, 1]}, "'nowhere' is neither a unit group nor a place")
    refused("mlp", {"0.weight[-1]": [0] * 5}, r"'0\.weight\[-1\]'.*input")
    refused("vit", {"block.attn.qkv.weight[-2]": [0] * 24}, "nested groups")
    refused("conv_bn_flatten", {"8.weight[-1]": [0, *range(1, 15), 0]}, "ties single positions")
    with pytest.raises(IllegalConfiguration, match=r"does not fit this model: Sequential has no tensor 'stem\.weight'"):
        manifolds.certificate(
            net("mlp").model, manifolds.partition(net("resnet_basic").units, {"stem:residual": [0, 0, 1, 1]})
        )
    with pytest.raises(IllegalConfiguration, match=r"'0\.weight'.*a tensor of shape \(8, 5\) does not have"):
        manifolds.certificate(net("mlp").model, doubled("mlp").partition)


def test_trivial_partitions_certify_nothing():
    own = net("mlp")
    alone = manifolds.partition(own.units, {"0": list(range(8))})
    assert alone.is_trivial
    assert str(alone) == "every unit is a block of its own"
    with pytest.raises(IllegalConfiguration, match="nothing to certify"):
        manifolds.certificate(own.model, alone)
    with pytest.raises(IllegalConfiguration, match="reference="):
        manifolds.certificate(doubled("mlp").model, doubled("mlp").partition, "leaf")
    with pytest.raises(IllegalConfiguration, match="kind='rows'"):
        manifolds.certificate(own.model, alone, "rows")
