"""Norm, dropout and noise on four networks that learn five new classes at a time: what falls, and what follows?

    python benchmarks/manifolds/normalisation.py run       # 48 cells, five seeds; it goes on where it stopped
    PLIANT_DATA_DIR=FOLDER python benchmarks/manifolds/normalisation.py run --preset images --seeds 0 1 2
    python benchmarks/manifolds/normalisation.py page      # docs/results/normalisation.md and its figures, from both
    PLIANT_DATA_DIR=FOLDER python benchmarks/manifolds/normalisation.py run --preset published --device cuda

Presets: ``mini`` (digits), ``images`` (100 images of each class of CIFAR-100, small networks), ``cifar100`` (all of
them, published networks) and ``published`` (Tiny ImageNet, published networks).

A factorial: none, BatchNorm or LayerNorm, dropout or none, gradient noise or none, for an MLP, a ConvNet, a ResNet and
a ViT. The head is zeroed before each task, only the logits of the task's classes take part in loss and accuracy, and
the optimizer keeps its state. All cells of a seed see the same tasks and the same batches. Each of the last tasks is
also learnt by a fresh network of the same cell, from the same batches: what it has and the aged one lacks is lost.
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
from benchmarks.manifolds.common import Study, drawn, main, rounded, seeded
from benchmarks.manifolds.models import MINI, NETWORKS, NORMS, PUBLISHED, build
from benchmarks.manifolds.streams import ImageClasses, TransformedDigits
from benchmarks.manifolds.symptoms import symptoms
from pliant.bench.streams.base import Task
from pliant.manifolds import NoiseBurst
from pliant.units import UnitGraph, find_units

__all__ = ["IMAGES", "PRESETS", "STUDY", "Learner", "Preset", "one"]


@dataclass(frozen=True)
class Preset:
    """All settings.

    Attributes:
        data: ``"digits"`` or one of ``IMAGES``.
        sizes: Sizes of the networks.
        num_tasks: Tasks of a run.
        num_examples: Training examples of a task, of the digits.
        num_epochs: Passes over a task.
        batch_size: Examples per step.
        lr: Step size of Adam for each network.
        dropout: Its rate, where there is some.
        sigma: Norm of the noise on each gradient over the norm of the gradient, where there is some; 0: no such cells.
        num_seen: Examples of the task just learnt on which units are looked at.
        every: Tasks from one look to the next; the last is always looked at.
        augment: Whether images are shifted and mirrored, and change their colours where that was published.
        num_fresh: Last tasks that fresh networks learn, too.
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
    num_fresh: int = 5

    def stream(self) -> TransformedDigits | ImageClasses:
        """The tasks."""
        if self.data == "digits":
            return TransformedDigits(self.num_examples, 200, self.num_epochs, self.batch_size)
        options = {
            key: value for key, value in IMAGES[self.data].items() if self.augment or key not in ("pad", "jitter")
        }
        return ImageClasses(**options, scaling="channel", num_epochs=self.num_epochs, batch_size=self.batch_size)


IMAGES: Mapping[str, Mapping[str, Any]] = {
    "cifar100": {
        "dataset": "cifar100", "num_all": 100, "num_train": 500, "num_test": 100, "image_size": 32, "pad": 4,
    },
    "cifar100_subset": {
        "dataset": "cifar100", "subset": 100, "num_all": 100, "num_train": 100, "num_test": 50, "image_size": 32,
        "pad": 4,
    },
    "tiny_imagenet": {
        "dataset": "tiny_imagenet", "num_all": 200, "num_train": 500, "num_test": 50, "image_size": 64, "pad": 8,
        "jitter": 0.1,
    },
    "tiny_imagenet32_subset": {
        "dataset": "imagenet32", "num_all": 200, "num_train": 100, "num_test": 50, "image_size": 32, "pad": 4,
        "jitter": 0.1,
    },
}  # fmt: skip
"""Sets of images; the subsets are those with 100 training and 50 test images of each class."""

_LR = {"mlp": 1e-3, "convnet": 1e-3, "resnet": 1e-3, "vit": 1e-4}
PRESETS: Mapping[str, Preset] = {
    "mini": Preset(),
    "tiny": Preset(num_tasks=2, num_examples=40, num_epochs=1, every=1, num_seen=40, num_fresh=1),
    "images": Preset(
        "cifar100_subset",
        {**MINI, "vit": {**MINI["vit"], "patch": 8}},
        num_tasks=12,
        num_examples=0,
        num_epochs=1,
        batch_size=25,
        lr=dict.fromkeys(NETWORKS, 0.01),
        sigma=0.0,
        every=3,
        num_fresh=3,
    ),
    "cifar100": Preset(
        "cifar100", dict(PUBLISHED), 20, 0, 100, 128, _LR, 0.1, 1.0, num_seen=500, every=1, augment=True
    ),
    "published": Preset(
        "tiny_imagenet", dict(PUBLISHED), 40, 0, 500, 128, _LR, 0.1, 1.0, 500, 1, augment=True, num_fresh=10
    ),
}


def cells(preset: Preset) -> list[dict[str, Any]]:
    """The factorial."""
    return [
        {"network": network, "norm": norm, "dropout": dropout, "noise": noise}
        for network in NETWORKS
        for norm in NORMS
        for dropout in (False, True)
        for noise in ((False, True) if preset.sigma else (False,))
    ]


_UNITS: dict[tuple[Any, ...], UnitGraph] = {}


def units_of(model: nn.Module, cell: Mapping[str, Any], example: Tensor) -> UnitGraph:
    """The unit graph; networks of one kind, norm and size have the same."""
    key = (cell["network"], cell["norm"], tuple(p.shape for p in model.parameters()))
    if key not in _UNITS:
        _UNITS[key] = find_units(model, example)
    return _UNITS[key]


class Learner:
    """A network of a cell with its optimizer and its noise, which learns task after task.

    Args:
        preset: All settings.
        cell: Which network, norm, dropout and noise.
        shape: Of an image.
        num_classes: Outputs.
        noise_seed: Of the noise on its gradients.
        device: Where it learns.
    """

    def __init__(
        self,
        preset: Preset,
        cell: Mapping[str, Any],
        shape: Sequence[int],
        num_classes: int,
        noise_seed: int,
        device: torch.device,
    ) -> None:
        network, dropout = str(cell["network"]), preset.dropout if cell["dropout"] else 0.0
        self.model = build(network, preset.sizes, shape, num_classes, norm=str(cell["norm"]), dropout=dropout)
        self.model.to(device)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=preset.lr[network])
        self.noise = NoiseBurst(preset.sigma, sys.maxsize, noise_seed) if cell["noise"] else None
        self.step = 0

    def update(self, x: Tensor, y: Tensor, outputs: Tensor) -> Tensor:
        """One step; returns the logits of the task's classes before it."""
        logits = self.model(x)[:, outputs]
        self.optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(logits, y).backward()
        if self.noise is not None:
            self.noise(self.model, self.step)
        self.optimizer.step()
        self.step += 1
        return logits.detach()

    def learn(self, task: Task, device: torch.device) -> dict[str, float | None]:
        """Learn a task with a head of zeros; accuracy while learning, after it, and on held-out examples."""
        model, outputs = self.model, torch.tensor(task.active_outputs, device=device)
        x, y = task.inputs.to(device), torch.searchsorted(outputs, task.targets.to(device))
        with torch.no_grad():
            model.head.weight.zero_()
            model.head.bias.zero_()
        model.train()
        right, seen = torch.zeros((), device=device), 0
        for epoch in range(task.num_epochs):
            for place, rows in enumerate(task.order(epoch).split(task.batch_size)):
                if len(rows) < 2:
                    continue  # batch norm has no variance of one example
                chosen = rows.to(device)
                logits = self.update(task.augmented(x[chosen], epoch, place), y[chosen], outputs)
                right += (logits.argmax(1) == y[chosen]).sum()
                seen += len(rows)
        assert task.test_inputs is not None
        assert task.test_targets is not None
        tests = torch.searchsorted(outputs, task.test_targets.to(device))
        return {
            "online": rounded(float(right) / seen),
            "trained": rounded(accuracy(model, x, y, outputs)),
            "test": rounded(accuracy(model, task.test_inputs.to(device), tests, outputs)),
        }


def one(
    preset: Preset, cell: Mapping[str, Any], seeds: Sequence[int], device: torch.device
) -> Iterator[tuple[int, dict[str, Any]]]:
    """One cell."""
    for seed in seeds:
        yield seed, _one(preset, cell, seed, device)


def _one(preset: Preset, cell: Mapping[str, Any], seed: int, device: torch.device) -> dict[str, Any]:
    stream = preset.stream()
    shape, num_classes = tuple(stream.input_shape), stream.num_classes
    seeded("normalisation network", seed)
    learner = Learner(preset, cell, shape, num_classes, seed, device)
    scores: dict[str, list[float | None]] = {"online": [], "trained": [], "test": []}
    looks = []
    seeded("normalisation dropout", seed)
    for index in range(preset.num_tasks):
        task = stream.task(index, seed)
        for name, value in learner.learn(task, device).items():
            scores[name].append(value)
        if index % preset.every == preset.every - 1 or index == preset.num_tasks - 1:
            looks.append({"task": index, **seen_on(learner.model, task, cell, preset.num_seen, device)})
    fresh: dict[str, list[float | None]] = {"online": [], "trained": [], "test": []}
    for index in range(preset.num_tasks - preset.num_fresh, preset.num_tasks):
        seeded("normalisation fresh network", seed, index)
        new = Learner(preset, cell, shape, num_classes, drawn("normalisation fresh noise", seed, index), device)
        seeded("normalisation fresh dropout", seed, index)
        for name, value in new.learn(stream.task(index, seed), device).items():
            fresh[name].append(value)
    return {**scores, "fresh": fresh, "looks": looks}


def seen_on(
    model: nn.Module, task: Task, cell: Mapping[str, Any], num_seen: int, device: torch.device
) -> dict[str, float | None]:
    """Symptoms on examples of the task that was just learnt."""
    outputs = torch.tensor(task.active_outputs, device=device)
    chosen = task.order(task.num_epochs)[:num_seen]
    x, labels = task.inputs[chosen].to(device), torch.searchsorted(outputs, task.targets[chosen].to(device))

    def loss(output: Tensor) -> Tensor:
        return F.cross_entropy(output[:, outputs], labels)

    return symptoms(model, x, loss, units_of(model, cell, x[:4]))


def accuracy(model: nn.Module, x: Tensor, y: Tensor, outputs: Tensor) -> float:
    """Share of right answers among the classes of the task, in evaluation mode, on at most 2,000 examples."""
    training = model.training
    model.eval()
    with torch.no_grad():
        right = model(x[:2000])[:, outputs].argmax(1) == y[:2000]
    model.train(training)
    return float(right.float().mean())


def _texts(records: list[dict[str, Any]], preset: Preset) -> dict[Path, str]:
    """The page of the digits has what real images said, too."""
    real = STUDY.records("images").all() if preset == PRESETS["mini"] else []
    return normalisation_page.texts(records, preset, real, PRESETS["images"])


STUDY = Study(
    "normalisation",
    __doc__ or "",
    PRESETS,
    cells,
    lambda cell: str(cell["network"]),
    one,
    _texts,
)

if __name__ == "__main__":
    raise SystemExit(main(STUDY))
