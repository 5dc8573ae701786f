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


@cache
def stationary() -> tuple[Clone, Tensor, Tensor]:
    """A clone at a stationary point: the residuals of the fit are normal to every gradient by construction."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        base = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 1)).double()
        with torch.no_grad():
            for parameter in base.parameters():
                parameter.mul_(1.5)
        x = torch.randn(40, 2).double()
    rows = [torch.autograd.grad(base(x[i : i + 1]).sum(), list(base.parameters())) for i in range(40)]
    jacobian = torch.stack([torch.cat([g.flatten() for g in row]) for row in rows])
    wanted = 20 * (x[:, :1] * x[:, 1:] + x[:, :1].square())
    left = wanted - jacobian @ torch.linalg.lstsq(jacobian, wanted).solution
    return manifolds.clone(base, 3, x), x, (base(x) - left).detach()
