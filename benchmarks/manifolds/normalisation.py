"""Norm, dropout and noise on four networks that learn five new classes at a time: what falls, and what follows?

    python benchmarks/manifolds/normalisation.py run       # 48 cells, five seeds; it goes on where it stopped
    python benchmarks/manifolds/normalisation.py page      # docs/results/normalisation.md and its figures
    PLIANT_DATA_DIR=FOLDER python benchmarks/manifolds/normalisation.py run --preset cifar100       # real images
    PLIANT_DATA_DIR=FOLDER python benchmarks/manifolds/normalisation.py run --preset published      # published sizes

A factorial: none, BatchNorm or LayerNorm, dropout or none, gradient noise or none, for an MLP, a ConvNet, a ResNet and
a ViT. The head is zeroed before each task, only the logits of the task's classes take part in loss and accuracy, and
the optimizer keeps its state. All cells of a seed see the same tasks and the same batches.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.manifolds import normalisation_page
from benchmarks.manifolds.common import Study, main, rounded, seeded
from benchmarks.manifolds.models import MINI, NETWORKS, NORMS, PUBLISHED, build
from benchmarks.manifolds.streams import ImageClasses, TransformedDigits
from benchmarks.manifolds.symptoms import symptoms
from pliant.manifolds import NoiseBurst
from pliant.units import UnitGraph, find_units

__all__ = ["PRESETS", "STUDY", "Preset", "one"]


@dataclass(frozen=True)
class Preset:
    """All settings.

    Attributes:
        data: ``"digits"``, ``"cifar100"`` or ``"tiny_imagenet"``.
        sizes: Sizes of the networks.
        num_tasks: Tasks of a run.
        num_examples: Training examples of a task, of the digits.
        num_epochs: Passes over a task.
        batch_size: Examples per step.
        lr: Step size of Adam for each network.
        dropout: Its rate, where there is some.
        sigma: Norm of the noise on each gradient over the norm of the gradient, where there is some.
        num_seen: Examples of the task just learnt on which units are looked at.
        every: Tasks from one look to the next; the last is always looked at.
        augment: Whether images are shifted and mirrored.
    """

    data: str = "digits"
    sizes: Mapping[str, Any] = field(default_factory=lambda: dict(MINI))
    num_tasks: int = 20
    num_examples: int = 160
    num_epochs: int = 4
    batch_size: int = 32
    lr: Mapping[str, float] = field(default_factory=lambda: {"mlp": 0.03, "convnet": 0.03, "resnet": 0.03, "vit": 0.02})
    dropout: float = 0.1
    sigma: float = 1.0
    num_seen: int = 160
    every: int = 3
    augment: bool = False

    def stream(self) -> TransformedDigits | ImageClasses:
        """The tasks."""
        if self.data == "digits":
            return TransformedDigits(self.num_examples, 200, self.num_epochs, self.batch_size)
        sizes = {"cifar100": (100, 500, 100, 32), "tiny_imagenet": (200, 500, 50, 64)}[self.data]
        return ImageClasses(self.data, "", *sizes, "half", False, 5, self.num_epochs, self.batch_size, self.augment)


_LR = {"mlp": 1e-3, "convnet": 1e-3, "resnet": 1e-3, "vit": 1e-4}
PRESETS: Mapping[str, Preset] = {
    "mini": Preset(),
    "tiny": Preset(num_tasks=2, num_examples=40, num_epochs=1, every=1, num_seen=40),
    "cifar100": Preset(
        "cifar100", dict(PUBLISHED), 20, 0, 100, 128, _LR, 0.1, 1.0, num_seen=500, every=1, augment=True
    ),
    "published": Preset(
        "tiny_imagenet", dict(PUBLISHED), 40, 0, 500, 128, _LR, 0.1, 1.0, num_seen=500, every=1, augment=True
    ),
}


def cells(preset: Preset) -> list[dict[str, Any]]:
    """The factorial."""
    return [
        {"network": network, "norm": norm, "dropout": dropout, "noise": noise}
        for network in NETWORKS
        for norm in NORMS
        for dropout in (False, True)
        for noise in (False, True)
    ]


_UNITS: dict[tuple[Any, ...], UnitGraph] = {}


def units_of(model: nn.Module, cell: Mapping[str, Any], example: Tensor) -> UnitGraph:
    """The unit graph; networks of one kind, norm and size have the same."""
    key = (cell["network"], cell["norm"], tuple(p.shape for p in model.parameters()))
    if key not in _UNITS:
        _UNITS[key] = find_units(model, example)
    return _UNITS[key]


def one(preset: Preset, cell: Mapping[str, Any], seeds: Sequence[int]) -> Iterator[tuple[int, dict[str, Any]]]:
    """One cell."""
    for seed in seeds:
        yield seed, _one(preset, cell, seed)


def _one(preset: Preset, cell: Mapping[str, Any], seed: int) -> dict[str, Any]:
    stream, network = preset.stream(), str(cell["network"])
    shape = tuple(stream.input_shape)
    seeded("normalisation network", seed)
    dropout = preset.dropout if cell["dropout"] else 0.0
    model = build(network, preset.sizes, shape, stream.num_classes, norm=str(cell["norm"]), dropout=dropout)
    optimizer = torch.optim.Adam(model.parameters(), lr=preset.lr[network])
    noise = NoiseBurst(preset.sigma, sys.maxsize, seed) if cell["noise"] else None
    result: dict[str, list[Any]] = {"online": [], "trained": [], "test": [], "looks": []}
    seeded("normalisation dropout", seed)
    step = 0
    for index in range(preset.num_tasks):
        task = stream.task(index, seed)
        assert task.active_outputs is not None
        outputs = torch.tensor(task.active_outputs)
        x, y = task.inputs, torch.searchsorted(outputs, task.targets)
        with torch.no_grad():
            model.head.weight.zero_()
            model.head.bias.zero_()
        model.train()
        right, seen = torch.zeros(()), 0
        for epoch in range(task.num_epochs):
            for place, rows in enumerate(task.order(epoch).split(task.batch_size)):
                if len(rows) < 2:
                    continue  # batch norm has no variance of one example
                logits = model(task.augmented(x[rows], epoch, place))[:, outputs]
                optimizer.zero_grad(set_to_none=True)
                F.cross_entropy(logits, y[rows]).backward()
                if noise is not None:
                    noise(model, step)
                optimizer.step()
                right += (logits.detach().argmax(1) == y[rows]).sum()
                seen, step = seen + len(rows), step + 1
        assert task.test_inputs is not None
        assert task.test_targets is not None
        result["online"].append(rounded(float(right) / seen))
        result["trained"].append(rounded(accuracy(model, x, y, outputs)))
        tests = torch.searchsorted(outputs, task.test_targets)
        result["test"].append(rounded(accuracy(model, task.test_inputs, tests, outputs)))
        if index % preset.every == preset.every - 1 or index == preset.num_tasks - 1:
            chosen = task.order(task.num_epochs)[: preset.num_seen]
            labels = y[chosen]

            def loss(output: Tensor, outputs: Tensor = outputs, labels: Tensor = labels) -> Tensor:
                return F.cross_entropy(output[:, outputs], labels)

            found = symptoms(model, x[chosen], loss, units_of(model, cell, x[:4]))
            result["looks"].append({"task": index, **found})
    return result


def accuracy(model: nn.Module, x: Tensor, y: Tensor, outputs: Tensor) -> float:
    """Share of right answers among the classes of the task, in evaluation mode, on at most 2,000 examples."""
    training = model.training
    model.eval()
    with torch.no_grad():
        right = model(x[:2000])[:, outputs].argmax(1) == y[:2000]
    model.train(training)
    return float(right.float().mean())


STUDY = Study(
    "normalisation",
    __doc__ or "",
    PRESETS,
    cells,
    lambda cell: str(cell["network"]),
    one,
    normalisation_page.texts,
)

if __name__ == "__main__":
    raise SystemExit(main(STUDY))
