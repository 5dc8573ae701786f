"""Networks of the zoo in float64 with their units and their clones, made once for all tests of manifolds."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import zoo
from torch import Tensor, nn

import pliant
from pliant import manifolds
from pliant.manifolds import Clone
from pliant.units import UnitGraph
from pliant.units.jitter import jittered

# multi-layer perceptron; batch norm and flatten; norms over units; residual sums; attention heads
NAMES = ("mlp", "conv_bn_flatten", "conv_groupnorm", "resnet_basic", "vit")


@dataclass(frozen=True)
class Net:
    model: nn.Module
    batch: Any
    units: UnitGraph

    def copy(self) -> nn.Module:
        return copy.deepcopy(self.model)


@cache
def net(name: str) -> Net:
    """Generic parameters and buffers: a fresh network hides biases, gains and running statistics."""
    case = zoo.ZOO[name]
    model, batch = case.model().double(), zoo.cast(case.batch(), torch.float64)
    model.load_state_dict(generic(model), strict=False)
    return Net(model, batch, pliant.find_units(model, batch))


def generic(model: nn.Module, seed: int = 0) -> dict[str, Tensor]:
    state = jittered(model, seed=seed, dtype=torch.float64)
    return {name: value for name, value in state.items() if value.is_floating_point()}


@cache
def doubled(name: str) -> Clone:
    own = net(name)
    return manifolds.clone(own.model, 2, own.batch, units=own.units)


def outputs(model: nn.Module, batch: Any) -> list[Tensor]:
    """In evaluation and in training mode."""
    found = []
    for mode in (False, True):
        ran = copy.deepcopy(model).train(mode)
        with torch.no_grad():
            found.append(zoo.call(ran, batch))
    return found


@cache
def tanh_net() -> Net:
    """The network of the measured table: units in every layer, and every tensor between two groups is a matrix."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2)).double()
        batch = torch.randn(64, 5).double()
    return Net(model, batch, pliant.find_units(model, batch))
