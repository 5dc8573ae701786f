"""How far layers are from the outputs: by hand for architectures whose order of registration says something else."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from zoo import ZOO

import pliant
from pliant.units.depth import module_of
from pliant.units.rename import as_named_in

LAST = {
    "mlp": [{"4"}, {"2"}, {"0"}],
    "resnet_bottleneck": [{"6"}, {"3.conv3", "3.bn3"}],
    "tied_language_model": [{"embed"}, {"fc2"}],
    "dueling_dqn": [{"advantage.2", "value.2"}, {"advantage.0", "value.0"}],
    "hf_llama": [{"lm_head"}, {"model.layers.0.mlp.down_proj", "model.norm"}],
    "cell_loop": [{"head"}, {"upper"}],
    "tcn_weight_norm": [{"7"}, {"5"}],
    "recommender_concat": [{"out", "wide"}, {"deep"}],
}


@pytest.mark.parametrize("name", LAST)
def test_the_last_layers(name):
    depths = pliant.find_units(ZOO[name].model(), ZOO[name].batch()).depths
    assert set(dict(ZOO[name].model().named_parameters())) <= set(depths)
    found = [{module_of(key) for key, depth in depths.items() if depth == level} for level in range(len(LAST[name]))]
    assert found == LAST[name]


def test_depths_follow_the_names():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    units = pliant.find_units(model, torch.randn(3, 4))
    assert dict(units.depths) == {"0.weight": 1, "0.bias": 1, "2.weight": 0, "2.bias": 0}
    assert dict(units.prefixed("net").depths)["net.2.bias"] == 0
    assert dict(units.renamed({"2.bias": "b"}).depths)["b"] == 0
    assert dict((units | units.prefixed("other")).depths)["other.0.weight"] == 1
    wrapped = nn.Sequential(model[0], model[1], nn.Sequential())
    wrapped[2]._checkpoint_wrapped_module = model[2]
    assert dict(as_named_in(units, wrapped).depths)["2._checkpoint_wrapped_module.weight"] == 0


def test_what_no_output_depends_on_has_no_depth():
    class Spare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.unused, self.head = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 2)

        def forward(self, x):
            return self.head(torch.relu(self.body(x)))

    assert set(pliant.find_units(Spare(), torch.randn(3, 4)).depths) == {
        "body.weight", "body.bias", "head.weight", "head.bias",
    }  # fmt: skip
