"""Digits with permuted pixels and true labels: shows learning and generalisation side by side."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np
import torch
from torch import Tensor

from pliant.bench.data.digits import NUM_DIGITS, load_digits
from pliant.bench.streams.base import Task, generator, require, tensor_bytes

__all__ = ["PermutedDigits", "split_digits"]


def split_digits(seed: int, num_test: int) -> tuple[Tensor, Tensor]:
    """Return two disjoint index sets, training and test, that together are all digits; one split per seed."""
    permutation = torch.from_numpy(generator("digits_split", seed).permutation(NUM_DIGITS).astype(np.int64))
    return permutation[num_test:], permutation[:num_test]


@final
@dataclass(frozen=True)
class PermutedDigits:
    """Each task permutes the 64 pixels of all images in its own way; labels are the true ones.

    Training and test digits are disjoint and the same for all tasks of a seed, so test accuracy after each task
    measures generalisation.

    Attributes:
        num_examples: training digits used per task, drawn anew from the training part.
        num_test: held-out digits.
        num_epochs: passes over a task.
        batch_size: examples per update.

    Source: permuted MNIST (Goodfellow et al. 2013, arXiv:1312.6211; online variant in Dohare et al. 2024), with
        the 8x8 digits.
    """

    name: ClassVar[str] = "permuted_digits"
    num_inputs: ClassVar[int] = 64
    num_classes: ClassVar[int] = 10

    num_examples: int = 512
    num_test: int = 597
    num_epochs: int = 5
    batch_size: int = 16

    def __post_init__(self) -> None:
        require(1 <= self.num_test < NUM_DIGITS, self, f"num_test must be in 1..{NUM_DIGITS - 1}")
        num_train = NUM_DIGITS - self.num_test
        require(1 <= self.num_examples <= num_train, self, f"num_examples must be in 1..{num_train} (1797 - num_test)")
        require(self.num_epochs >= 1, self, "num_epochs must be at least 1")
        require(self.batch_size >= 1, self, "batch_size must be at least 1")

    @property
    def task_bytes(self) -> int:
        """Memory of a task."""
        return tensor_bytes(self.num_examples + self.num_test, (self.num_inputs,))

    def task(self, index: int, seed: int) -> Task:
        """Return task ``index``; see :class:`Stream`."""
        require(index >= 0, self, f"there is no task {index}")
        rng = generator(self.name, seed, index)
        inputs_NF, targets = load_digits()
        train, test = split_digits(seed, self.num_test)
        pixels = torch.from_numpy(rng.permutation(self.num_inputs).astype(np.int64))
        chosen = train[torch.from_numpy(rng.permutation(len(train))[: self.num_examples].astype(np.int64))]
        return Task(
            inputs=inputs_NF[chosen][:, pixels],
            targets=targets[chosen],
            num_epochs=self.num_epochs,
            batch_size=self.batch_size,
            order_key=(seed, index),
            test_inputs=inputs_NF[test][:, pixels],
            test_targets=targets[test],
        )
