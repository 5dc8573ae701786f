"""Digits with random labels: every task is a fresh memorisation problem of the same difficulty."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np
import torch

from pliant.bench.data.digits import NUM_DIGITS, load_digits
from pliant.bench.streams.base import Task, generator, require, tensor_bytes

__all__ = ["RandomLabelDigits"]


@final
@dataclass(frozen=True)
class RandomLabelDigits:
    """Each task draws some of the handwritten digits and gives them random labels, which the network learns by heart.

    All tasks are drawn alike, so a network that keeps its plasticity does equally well on each: any decline is
    the learner's. There is nothing to generalise to, hence no test set.

    Attributes:
        num_examples: digits per task, drawn without replacement.
        num_epochs: passes over a task.
        batch_size: examples per update.

    Source: the random-label MNIST problem of Lyle et al. (2023), arXiv:2303.01486, and Kumar et al. (2023),
        arXiv:2308.11958, at a size that a laptop finishes in minutes. Deviation: new examples for every task,
        and the digits are the 8x8 ones.

    >>> stream = RandomLabelDigits(num_examples=32)
    >>> bool((stream.task(3, seed=0).targets == stream.task(3, seed=0).targets).all())
    True
    """

    name: ClassVar[str] = "random_label_digits"
    num_inputs: ClassVar[int] = 64
    num_classes: ClassVar[int] = 10

    num_examples: int = 128
    num_epochs: int = 40
    batch_size: int = 16

    def __post_init__(self) -> None:
        require(1 <= self.num_examples <= NUM_DIGITS, self, f"num_examples must be in 1..{NUM_DIGITS}")
        require(self.num_epochs >= 1, self, "num_epochs must be at least 1")
        require(self.batch_size >= 1, self, "batch_size must be at least 1")

    @property
    def task_bytes(self) -> int:
        """Memory of a task."""
        return tensor_bytes(self.num_examples, (self.num_inputs,))

    def task(self, index: int, seed: int) -> Task:
        """Return task ``index``; see :class:`Stream`."""
        require(index >= 0, self, f"there is no task {index}")
        rng = generator(self.name, seed, index)
        inputs_NF, _ = load_digits()
        chosen = torch.from_numpy(rng.permutation(NUM_DIGITS)[: self.num_examples].astype(np.int64))
        targets = torch.from_numpy(rng.integers(0, self.num_classes, self.num_examples, dtype=np.int64))
        return Task(inputs_NF[chosen], targets, self.num_epochs, self.batch_size, (seed, index))
