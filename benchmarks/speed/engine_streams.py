"""Streams of the sizes of the published problems, made of nothing but a seed: what ``engine.py`` trains on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from pliant.bench.streams.base import Task, generator

__all__ = ["Bits", "Digits", "Pictures"]


def _pictures(rng: np.random.Generator, count: int, size: int, share: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Ten prototypes with noise: a ``share`` of the pixels is not zero, as in handwritten digits; and their labels."""
    prototypes = rng.random((10, size), dtype=np.float32) * (rng.random((10, size)) < share)
    labels = rng.integers(0, 10, count)
    pixels = prototypes[labels] * rng.random((count, size), dtype=np.float32)
    return torch.from_numpy(pixels.astype(np.float32)), torch.from_numpy(labels)


@dataclass(frozen=True)
class Pictures:
    """784 pixels and ten classes, one pass: the size of online permuted MNIST."""

    name: ClassVar[str] = "pictures"
    num_inputs: ClassVar[int] = 784
    num_classes: ClassVar[int] = 10

    num_examples: int = 1000
    batch_size: int = 1

    def task(self, index: int, seed: int) -> Task:
        """New prototypes for every task."""
        inputs, targets = _pictures(generator("pictures", seed, index), self.num_examples, 784, 0.2)
        return Task(inputs, targets, 1, self.batch_size, (seed, index))


@dataclass(frozen=True)
class Digits:
    """64 pixels and random labels: the size of the random-label digits, 128 examples over and over."""

    name: ClassVar[str] = "digits"
    num_inputs: ClassVar[int] = 64
    num_classes: ClassVar[int] = 10

    num_examples: int = 1000
    batch_size: int = 8

    def task(self, index: int, seed: int) -> Task:
        """As many passes as give the number of examples."""
        rng = generator("digits", seed, index)
        inputs, _ = _pictures(rng, 128, 64, 0.5)
        targets = torch.from_numpy(rng.integers(0, 10, 128))
        return Task(inputs, targets, max(1, self.num_examples // 128), self.batch_size, (seed, index))


@dataclass(frozen=True)
class Bits:
    """Twenty bits and a fixed random network of 100 threshold units: the size of slowly-changing regression."""

    name: ClassVar[str] = "bits"
    num_inputs: ClassVar[int] = 20
    num_classes: ClassVar[int] = 1
    loss: ClassVar[str] = "mse"
    score: ClassVar[str] = "mse"

    num_examples: int = 1000
    batch_size: int = 1

    def task(self, index: int, seed: int) -> Task:
        """Fifteen bits are those of the task, five are drawn for every example."""
        rng = generator("bits", seed, index)
        target = generator("bits_target", seed)
        weights = target.choice([-1.0, 1.0], (21, 100)).astype(np.float32)
        out = target.choice([-1.0, 1.0], 100).astype(np.float32)
        bits = np.empty((self.num_examples, 21), dtype=np.float32)
        bits[:, :15] = rng.integers(0, 2, 15)
        bits[:, 15:20] = rng.integers(0, 2, (self.num_examples, 5))
        bits[:, 20] = 1
        values = ((bits @ weights) > 0).astype(np.float32) @ out / 10
        return Task(
            torch.from_numpy(bits[:, :20].copy()), torch.from_numpy(values)[:, None], 1, self.batch_size, (seed, index)
        )
