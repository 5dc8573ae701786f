"""Streams whose tasks ask for something: masked outputs, new heads, augmentation, validation, other losses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from pliant.bench.streams.base import Task, generator


def shifted(inputs: Tensor, rng: np.random.Generator) -> Tensor:
    return inputs + torch.from_numpy(rng.random(inputs.shape, dtype="float32"))


@dataclass(frozen=True)
class Asking:
    """Small tasks with class labels; options say what they ask for."""

    name: ClassVar[str] = "asking"
    num_inputs: ClassVar[int] = 6
    num_classes: ClassVar[int] = 6
    measures_past: ClassVar[bool] = True

    mask: bool = False
    reset: bool = False
    augment: bool = False
    validate: bool = False
    num_epochs: int = 2

    def task(self, index: int, seed: int) -> Task:
        rng = generator("asking", seed, index)
        inputs = torch.from_numpy(rng.random((20, 6), dtype="float32"))
        first = (index % 3) * 2
        active = (first, first + 1)
        targets = torch.from_numpy(rng.integers(first, first + 2, 20)) if self.mask else torch.arange(20) % 6
        return Task(
            inputs,
            targets,
            self.num_epochs,
            4,
            (seed, index),
            inputs[:6],
            targets[:6],
            active_outputs=active if self.mask else None,
            reset_head=self.reset and index > 0,
            augment=shifted if self.augment else None,
            valid_inputs=inputs[6:12] if self.validate else None,
            valid_targets=targets[6:12] if self.validate else None,
        )


@dataclass(frozen=True)
class Numbers:
    """A linear function of the inputs, to be regressed."""

    name: ClassVar[str] = "numbers"
    num_inputs: ClassVar[int] = 6
    num_classes: ClassVar[int] = 2
    loss: ClassVar[str] = "mse"
    score: ClassVar[str] = "mse"

    def task(self, index: int, seed: int) -> Task:
        rng = generator("numbers", seed, index)
        inputs = torch.from_numpy(rng.standard_normal((20, 6), dtype="float32"))
        weights = torch.from_numpy(rng.standard_normal((6, 2), dtype="float32"))
        return Task(inputs, inputs @ weights, 4, 1, (seed, index), inputs[:5], (inputs @ weights)[:5])


@dataclass(frozen=True)
class Clicks:
    """Yes or no, scored by the area under the curve."""

    name: ClassVar[str] = "clicks"
    num_inputs: ClassVar[int] = 6
    num_classes: ClassVar[int] = 1
    loss: ClassVar[str] = "binary_cross_entropy"
    score: ClassVar[str] = "auc"

    def task(self, index: int, seed: int) -> Task:
        rng = generator("clicks", seed, index)
        inputs = torch.from_numpy(rng.standard_normal((40, 6), dtype="float32"))
        return Task(inputs, (inputs[:, :1] > 0).float(), 5, 4, (seed, index))


@dataclass(frozen=True)
class Pictures:
    """Tiny images with class labels."""

    name: ClassVar[str] = "pictures"
    num_inputs: ClassVar[int] = 3 * 8 * 8
    num_classes: ClassVar[int] = 3
    input_shape: ClassVar[tuple[int, ...]] = (3, 8, 8)

    def task(self, index: int, seed: int) -> Task:
        rng = generator("pictures", seed, index)
        inputs = torch.from_numpy(rng.standard_normal((12, 3, 8, 8), dtype="float32"))
        return Task(inputs, torch.arange(12) % 3, 2, 4, (seed, index))
