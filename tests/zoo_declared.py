"""Models whose forward pass branches on the data, and right declarations of their units."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import pliant


class EarlyExit(nn.Module):
    """Confident examples leave after the first stage."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.norm, self.act, self.drop = nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5)
        self.exit, self.fc2, self.out = nn.Linear(8, 3), nn.Linear(8, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.drop(self.act(self.norm(self.fc1(x))))
        early = self.exit(h)
        if early.softmax(-1).amax(-1).mean() > 0.7:
            return early
        return early + self.out(torch.relu(self.fc2(h)))


class Loop(nn.Module):
    """Refines its state until it stops moving."""

    def __init__(self) -> None:
        super().__init__()
        self.read, self.step, self.write = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 2)
        with torch.no_grad():
            self.step.weight.mul_(0.5)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.read(x))
        change = torch.ones(())
        while change > 1e-2:
            new = torch.tanh(h + self.step(h)) * 0.5
            change, h = (new - h).abs().max(), new
        return self.write(h)


class Router(nn.Module):
    """One of two experts, by the sign of the data."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Linear(4, 8), nn.GELU())
        self.left = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2))
        self.right = nn.Sequential(nn.Linear(8, 5), nn.LayerNorm(5), nn.ReLU(), nn.Linear(5, 2))

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        return self.left(h) if x.mean() > 0 else self.right(h)


class TwoTowers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a1, self.a2, self.b1, self.b2 = nn.Linear(4, 6), nn.Linear(6, 2), nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        if x.isnan().any():
            raise ValueError
        return self.a2(torch.relu(self.a1(x))) + self.b2(torch.tanh(self.b1(x)))


class EncoderAndRouter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 4), nn.Tanh())
        self.router = Router()

    def forward(self, x: Tensor) -> Tensor:
        return self.router(self.encoder(x))


class Layouts(nn.Module):
    """A flattened convolution, fused heads and hand-written gates; a branch keeps export away."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(1, 4, 3), nn.Linear(4 * 4, 6)
        self.qkv, self.proj = nn.Linear(6, 3 * 8), nn.Linear(8, 6)
        self.gates, self.out = nn.Parameter(torch.randn(6, 10)), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.fc(torch.relu(self.conv(x)).flatten(1)))
        q, k, v = (part.unflatten(-1, (2, 4)).transpose(0, 1) for part in self.qkv(h).chunk(3, -1))
        mixed = (torch.softmax(q @ k.mT / 2, -1) @ v).transpose(0, 1).flatten(1)
        h = h + self.proj(mixed)
        if h.isnan().any():
            raise ValueError
        gate, value = (h @ self.gates).chunk(2, -1)
        return self.out(torch.sigmoid(gate) * value)


LAYOUTS = {
    "conv": {"outgoing": "fc", "tap": "output of conv"},
    "qkv:heads": {
        "size": 2,
        "site": "heads",
        "incoming": [
            {"tensor": "qkv.weight", "dim": 0, "blocks": 3},
            {"tensor": "qkv.bias", "blocks": 3},
        ],
        "outgoing": "proj",
    },
    "gates": {"size": 5, "incoming": {"tensor": "gates", "dim": 1, "blocks": 2}, "outgoing": "out"},
}


ROUTER = {
    "stem.0": ["left.0", "right.0"],
    "left.0": "left.2",
    "right.0": {"carried": "right.1", "outgoing": "right.3"},
}
EXIT = {"fc1": {"carried": "norm", "outgoing": ["exit", "fc2"], "tap": "output of act"}, "fc2": "out"}


def made(cls: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return cls()


def members(units: pliant.UnitGraph) -> dict[str, str]:
    return {group.name: " ".join(piece.label for piece in group.slices) for group in units}


def batch(size: int = 5) -> Tensor:
    return torch.randn(6, size, generator=torch.Generator().manual_seed(2))
