"""Small networks on the digits, and what can go wrong with them in the middle of a run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import pliant
from pliant.bench.data.digits import load_digits
from pliant.monitor import DEFAULT
from pliant.units import UnitGraph

INPUTS, TARGETS = load_digits()


def mlp(act: type[nn.Module] = nn.ReLU, width: int = 32) -> nn.Sequential:
    return nn.Sequential(nn.Linear(64, width), act(), nn.Linear(width, width), act(), nn.Linear(width, 10))


def convnet(act: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    return nn.Sequential(
        *(nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 8, 3, padding=1), act(), nn.MaxPool2d(2)),
        *(nn.Conv2d(8, 16, 3, padding=1), act(), nn.Flatten(), nn.Linear(256, 16), act(), nn.Linear(16, 10)),
    )


NETWORKS: dict[str, Callable[[], nn.Sequential]] = {
    "mlp": mlp,
    "tanh": lambda: mlp(nn.Tanh),
    "convnet": convnet,
    "tanh_convnet": lambda: convnet(nn.Tanh),
}
_UNITS: dict[str, UnitGraph] = {}


def units_of(name: str) -> UnitGraph:
    if name not in _UNITS:
        _UNITS[name] = pliant.find_units(NETWORKS[name](), INPUTS[:4])
    return _UNITS[name]


class Run:
    """A network, its optimizer and a monitor; batches follow from the step."""

    def __init__(
        self, name: str = "mlp", *, seed: int = 0, adam: bool = True, lr: float = 1e-3, **options: Any
    ) -> None:
        torch.manual_seed(seed)
        self.model = NETWORKS[name]()
        kind = torch.optim.Adam if adam else torch.optim.SGD
        self.optimizer = kind(self.model.parameters(), lr=lr)
        self.seed, self.done, self.called = seed, 0, self.model
        self.watch = pliant.monitor(
            self.model,
            self.optimizer,
            options.pop("metrics", DEFAULT),
            units=units_of(name),
            **{"every": 5, "budget": None, "reference": INPUTS[:64], **options},
        )

    def batch(self, step: int, size: int = 64) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(1000 * self.seed + step)
        rows = torch.randint(0, len(INPUTS), (size,), generator=generator)
        return INPUTS[rows], TARGETS[rows]

    def train(self, steps: int) -> Run:
        for _ in range(steps):
            x, y = self.batch(self.done)
            self.optimizer.zero_grad()
            cross_entropy(self.called(x), y).backward()
            self.optimizer.step()
            self.done += 1
        return self


def second_layer(model: nn.Sequential) -> Any:
    """The second layer with units, and how many are a half of them."""
    layer = [module for module in model if isinstance(module, (nn.Linear, nn.Conv2d))][1]
    return layer, layer.weight.shape[0] // 2


@torch.no_grad()
def kill(model: nn.Sequential) -> None:
    layer, half = second_layer(model)
    layer.weight[:half] = 0
    layer.bias[:half] = -1


@torch.no_grad()
def saturate(model: nn.Sequential) -> None:
    layer, half = second_layer(model)
    layer.bias[:half] = 10


@torch.no_grad()
def explode(model: nn.Sequential) -> None:
    layer, _ = second_layer(model)
    layer.weight.mul_(10)


@torch.no_grad()
def clone(model: nn.Sequential) -> None:
    layer, half = second_layer(model)
    one = int(layer.weight.flatten(1).sum(1).argmax())  # which is alive
    layer.weight[:half] = layer.weight[one].clone()
    layer.bias[:half] = layer.bias[one].clone()


@torch.no_grad()
def spoil(model: nn.Sequential) -> None:
    layer, _ = second_layer(model)
    layer.weight[0, 0] = float("nan")


PLANTED: dict[str, tuple[Callable[[nn.Sequential], None], tuple[str, ...]]] = {
    "dead_units": (kill, ("mlp", "convnet")),
    "saturated_units": (saturate, ("tanh", "tanh_convnet")),
    "weight_growth": (explode, ("mlp", "convnet")),
    "cloned_units": (clone, ("mlp", "convnet")),
    "non_finite": (spoil, ("mlp", "convnet")),
}
