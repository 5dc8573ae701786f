"""Two equal networks, one with the product and one for the reference, and the steps that both take."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

import pliant
from pliant.write import stream_of

sys.path.insert(0, str(Path(__file__).parents[2]))  # for the references

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9),
    "adam": lambda p: torch.optim.Adam(p, lr=3e-3),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1e-3, centered=True, momentum=0.5),
}


class Mlp(nn.Module):
    """Keeps the activations of its hidden layers as it runs, which the references read."""

    def __init__(self) -> None:
        super().__init__()
        self.linears = nn.ModuleList([nn.Linear(6, 13), nn.Linear(13, 10), nn.Linear(10, 3)])
        self.features = [torch.empty(0), torch.empty(0)]
        for place, layer in enumerate(self.linears[1:]):  # older exports refuse a forward that sets attributes
            layer.register_forward_pre_hook(self._keeper(place))

    def _keeper(self, place):
        def keep(module, inputs):
            if not torch.compiler.is_compiling():
                self.features[place] = inputs[0].detach()

        return keep

    def forward(self, x):
        for layer in self.linears[:-1]:
            x = torch.relu(layer(x))
        return self.linears[-1](x)


def drawer(seed: int):
    """The product's protocol for units: one generator per model, float32 draws, scaled to [-bound, bound]."""
    generator = torch.Generator().manual_seed(stream_of(seed))
    return lambda rows, columns, bound: torch.rand(rows, columns, generator=generator) * (2 * bound) - bound


def step(model, optimizer, number: int, *, size: int = 8):
    """One step on a batch of its own for each number; the activations of an :class:`Mlp`."""
    generator = torch.Generator().manual_seed(number)
    x = torch.randn(size, 6, generator=generator, dtype=torch.float64)
    y = torch.randn(size, 3, generator=generator, dtype=torch.float64)
    optimizer.zero_grad()
    (model(x) - y).square().mean().backward()
    optimizer.step()
    return getattr(model, "features", None)


def events(handle):
    """Step, layer and units of each edit of units of an :class:`Mlp`."""
    layers = {"linears.0": 0, "linears.1": 1}
    return [(event.step, layers[event.group], event.units) for event in handle.events if event.group]


def assert_equal(fast, fast_optimizer, slow, slow_optimizer):
    for (name, p), q in zip(fast.named_parameters(), slow.parameters(), strict=True):
        assert torch.allclose(p, q, rtol=1e-10, atol=1e-12), name
    a, b = fast_optimizer.state_dict()["state"], slow_optimizer.state_dict()["state"]
    for index in a:
        for key, value in a[index].items():
            assert torch.allclose(value, b[index][key], rtol=1e-9, atol=1e-12), (index, key)


def network(kind: str = "mlp") -> nn.Module:
    torch.manual_seed(1)
    if kind == "mlp":
        return nn.Sequential(nn.Linear(6, 13), nn.ReLU(), nn.Linear(13, 10), nn.Tanh(), nn.Linear(10, 3)).double()
    return nn.Sequential(
        *(nn.Conv2d(2, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten()),
        *(nn.Linear(36, 5), nn.LayerNorm(5), nn.ReLU(), nn.Linear(5, 3)),
    ).double()


def batch(kind: str, number: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(number)
    shape = (8, 6) if kind == "mlp" else (8, 2, 3, 3)
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    return x, torch.randn(8, 3, generator=generator, dtype=torch.float64)


class Pair:
    """A network with a method attached, and its double."""

    def __init__(self, method: Any, optimizer: str, kind: str = "mlp", **attach: Any) -> None:
        self.kind, self.fast, self.slow = kind, network(kind), network(kind)
        self.fast_optimizer = OPTIMIZERS[optimizer](self.fast.parameters())
        self.slow_optimizer = OPTIMIZERS[optimizer](self.slow.parameters())
        self.rate = self.slow_optimizer.param_groups[0]["lr"]
        units = pliant.find_units(network(kind), batch(kind, 0)[0])
        self.handle = pliant.attach(self.fast, self.fast_optimizer, method, units=units, **attach)

    def step(self, number: int, *, penalty: Any = None, before: Any = None, after: Any = None) -> None:
        """One step of both; the keywords say what the reference does in it."""
        x, y = batch(self.kind, number)
        self.fast_optimizer.zero_grad()
        loss = (self.fast(x) - y).square().mean()
        (loss + self.handle.penalty(loss=loss, reference=batch(self.kind, number + 1000)[0])).backward()
        self.fast_optimizer.step()
        self.slow_optimizer.zero_grad()
        loss = (self.slow(x) - y).square().mean()
        (loss if penalty is None else loss + penalty(loss)).backward()
        if before is not None:
            before()
        self.slow_optimizer.step()
        if after is not None:
            after()

    def check(self, atol: float = 1e-12) -> None:
        for (name, p), q in zip(self.fast.named_parameters(), self.slow.named_parameters(), strict=True):
            assert torch.allclose(p, q[1], rtol=1e-10, atol=atol), name
        a, b = self.fast_optimizer.state_dict()["state"], self.slow_optimizer.state_dict()["state"]
        for index in a:
            for key, value in a[index].items():
                assert torch.allclose(value, b[index][key], rtol=1e-8, atol=atol), (index, key)
