"""Measure what bounds and rounding do to clones, and write both tables in docs/manifolds.md.

python benchmarks/manifolds_checks.py --seeds 5     # some minutes on one core
"""

from __future__ import annotations

import argparse
import copy
import re
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from pliant import manifolds  # noqa: E402

PAGE = ROOT / "docs" / "manifolds.md"
NOISES = (1e-4, 1e-2)


class Residual(nn.Module):
    """Two convolutions with batch norm, round which the input goes."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.one, self.norm1 = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)
        self.two, self.norm2 = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        """One block."""
        return F.relu(x + self.norm2(self.two(F.relu(self.norm1(self.one(x))))))


class Block(nn.Module):
    """Attention and a perceptron, each behind a layer norm."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """One block."""
        h = self.norm1(x)
        q, k, v = (
            layer(h).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Tokens(nn.Module):
    """A small vision transformer without patches: tokens in, a class out."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.embed, self.norm, self.head = nn.Linear(6, 12), nn.LayerNorm(12), nn.Linear(12, 3)
        self.blocks = nn.ModuleList(Block(12, 2) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(1))


def perceptron(depth: int, activation: Callable[[], nn.Module], width: int = 16) -> nn.Module:
    layers: list[nn.Module] = [nn.Linear(8, width), activation()]
    for _ in range(depth - 1):
        layers += [nn.Linear(width, width), activation()]
    return nn.Sequential(*layers, nn.Linear(width, 3))


def convolutional() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(6, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(72, 3)),
    )


def residual() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), Residual(6), Residual(6)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3)),
    )


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "ReLU perceptron, 1 hidden layer": (lambda: perceptron(1, nn.ReLU), (8,)),
    "ReLU perceptron, 3 hidden layers": (lambda: perceptron(3, nn.ReLU), (8,)),
    "ReLU perceptron, 5 hidden layers": (lambda: perceptron(5, nn.ReLU), (8,)),
    "tanh perceptron, 3 hidden layers": (lambda: perceptron(3, nn.Tanh), (8,)),
    "ConvNet, 2 layers, batch norm": (convolutional, (3, 6, 6)),
    "ResNet, 2 blocks, batch norm": (residual, (3, 6, 6)),
    "transformer, 1 block, layer norm": (lambda: Tokens(1), (5, 6)),
    "transformer, 2 blocks, layer norm": (lambda: Tokens(2), (5, 6)),
}


def bounds(seeds: int) -> str:
    rows = [
        "| network, every unit twice | noise, relative | change, measured | bound | bound / change |",
        "|:--|--:|:--|:--|:--|",
    ]
    for name, (make, shape) in NETWORKS.items():
        for noise in NOISES:
            changes, limits = [], []
            for seed in range(seeds):
                torch.manual_seed(seed)
                model, x = make().double(), torch.randn(8, *shape, dtype=torch.float64)
                wide = manifolds.clone(model, 2, x)
                near = copy.deepcopy(wide.model)
                with torch.no_grad():
                    for parameter in near.parameters():
                        step = torch.randn_like(parameter)
                        parameter.add_(step * noise * parameter.norm() / step.norm())
                small = manifolds.collapse(near, wide.partition, x)
                assert small.bound is not None, small.unbounded
                assert small.bound >= small.change
                changes.append(small.change)
                limits.append(small.bound)
            ratios = [b / c for b, c in zip(limits, changes, strict=True)]
            rows.append(
                f"| {name} | {noise:g} | {between(changes)} | {between(limits)} "
                f"| {statistics.median(ratios):.0f} ({min(ratios):.0f} to {max(ratios):.0f}) |"
            )
            print(rows[-1], flush=True)
    note = (
        f"Smallest to largest over {seeds} seeds (network, batch of 8, noise), of the ratio the median and the range; "
        "initial weights in float64, noise on every parameter of the given norm relative to it, evaluation mode, "
        "change and bound relative to the largest output."
    )
    return "\n".join([*rows, "", f"{note} {source(seeds)}"])


def between(values: list[float]) -> str:
    low, high = format(min(values), ".0e"), format(max(values), ".0e")
    return low if low == high else f"{low} to {high}"


ROUNDED = {
    "tanh 5-12-12-2, blocks of 3": (4, 3, 5_000),
    "tanh 5-192-192-2, blocks of 3": (64, 3, 1_000),
}
OPTIMIZERS = {
    "SGD": lambda m: torch.optim.SGD(m.parameters(), lr=0.05),
    "SGD, momentum 0.9": lambda m: torch.optim.SGD(m.parameters(), lr=0.05, momentum=0.9),
    "Adam": lambda m: torch.optim.Adam(m.parameters(), lr=1e-3),
}


def rounding(seeds: int) -> str:
    rows = ["| network | type | optimizer | steps | largest relative distance |", "|:--|:--|:--|--:|:--|"]
    for name, (width, copies, steps) in ROUNDED.items():
        for dtype in (torch.float64, torch.float32, torch.bfloat16):
            for optimizer, make in OPTIMIZERS.items():
                found = [drift(width, copies, steps, dtype, make, seed) for seed in range(seeds)]
                rows.append(f"| {name} | {str(dtype)[6:]} | {optimizer} | {steps} | {between(found)} |")
                print(rows[-1], flush=True)
    note = (
        f"No kick: plain copies, minibatches of 16 of 64 samples, random targets; smallest to largest over {seeds} "
        "seeds of the largest distance to the cloning manifold in twenty looks, relative to the norm of the weights, "
        "one CPU thread."
    )
    return "\n".join([*rows, "", f"{note} {source(seeds)}"])


def drift(
    width: int,
    copies: int,
    steps: int,
    dtype: torch.dtype,
    make: Callable[[nn.Module], torch.optim.Optimizer],
    seed: int,
) -> float:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(5, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 2))
    x, y = torch.randn(64, 5), torch.randn(64, 2)
    wide = manifolds.clone(model, copies, x)
    wide.model.to(dtype)
    x, y = x.to(dtype), y.to(dtype)
    optimizer, generator, largest = make(wide.model), torch.Generator().manual_seed(seed), 0.0
    for step in range(1, steps + 1):
        at = torch.randint(0, 64, (16,), generator=generator)
        optimizer.zero_grad()
        (wide.model(x[at]) - y[at]).square().mean().backward()
        optimizer.step()
        if step % (steps // 20) == 0:
            largest = max(largest, manifolds.distance(wide.model, wide.partition).relative)
    return largest


def source(seeds: int) -> str:
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout.strip()
    command = f"python benchmarks/manifolds_checks.py --seeds {seeds}"
    return f"`{command}` at commit {commit}, PyTorch {torch.__version__.partition('+')[0]}."


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", choices=("bounds", "rounding"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for name, table in (("bounds", bounds), ("rounding", rounding)):
        if arguments.only in (None, name):
            made = f"<!-- {name} -->\n{table(arguments.seeds)}\n<!-- /{name} -->"
            text = PAGE.read_text(encoding="utf-8")
            new = re.sub(f"<!-- {name} -->.*?<!-- /{name} -->", lambda _, made=made: made, text, flags=re.DOTALL)
            PAGE.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
