"""Online permuted MNIST: one pass over each task, one example at a time."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, final

import numpy as np
import torch

from pliant.bench.data.files import data_folder
from pliant.bench.data.mnist import FILES, download, load_mnist
from pliant.bench.streams.base import Task, generator, require, tensor_bytes

__all__ = ["PermutedMNIST"]


@final
@dataclass(frozen=True)
class PermutedMNIST:
    """Each task permutes the 784 pixels in its own way and shows its examples exactly once, one per update.

    Accuracy is online: each example is predicted before the network learns from it.

    Attributes:
        data_dir: folder with the four original idx files (plain or gzipped), see
            :func:`pliant.bench.data.files.data_folder`. Where the files lie changes no result, so it is not part of an
            experiment's identity.
        num_examples: images per task, drawn without replacement; 60,000 is every image.
        num_epochs: passes over a task; 1 is the published problem.
        batch_size: examples per update; 1 is the published problem.

    Source: Dohare et al. (2024), Loss of plasticity in deep continual learning, Nature 632, 768-774: 800 tasks of
        60,000 examples, one pass, batch 1, pixels in [0, 1]. Deviations: seeds are fixed (the released code fixes
        none), and each permutation is drawn afresh where the released code permutes the permuted pixels again;
        both give uniformly random permutations. With fewer than 60,000 examples each task draws its own images;
        the released code cycles through one shuffle, the paper draws with replacement.
    """

    name: ClassVar[str] = "permuted_mnist"
    num_inputs: ClassVar[int] = 784
    num_classes: ClassVar[int] = 10
    requires_data: ClassVar[str] = "MNIST"
    not_identity: ClassVar[frozenset[str]] = frozenset({"data_dir"})

    data_dir: str = ""
    num_examples: int = 60000
    num_epochs: int = 1
    batch_size: int = 1

    def __post_init__(self) -> None:
        largest = FILES["train_labels"].shape[0]
        require(1 <= self.num_examples <= largest, self, f"num_examples must be in 1..{largest}")
        require(self.num_epochs >= 1, self, "num_epochs must be at least 1")
        require(self.batch_size >= 1, self, "batch_size must be at least 1")

    @property
    def folder(self) -> Path:
        """Where the files are, or will be."""
        return data_folder(self.data_dir, "mnist")

    def prepare(self) -> None:
        """Download the files that are missing; called once before a run.

        Raises:
            DataError: a file is damaged, or missing and not to be had; says which files to put where.
        """
        download(self.folder)

    @property
    def task_bytes(self) -> int:
        """Memory of a task."""
        return tensor_bytes(self.num_examples, (self.num_inputs,))

    def task(self, index: int, seed: int) -> Task:
        """Return task ``index``; see :class:`Stream`."""
        require(index >= 0, self, f"there is no task {index}")
        rng = generator(self.name, seed, index)
        inputs_NF, targets, _, _ = load_mnist(self.folder)
        pixels = torch.from_numpy(rng.permutation(self.num_inputs).astype(np.int64))
        chosen = torch.from_numpy(rng.permutation(len(targets))[: self.num_examples].astype(np.int64))
        return Task(
            inputs=inputs_NF[chosen][:, pixels],
            targets=targets[chosen],
            num_epochs=self.num_epochs,
            batch_size=self.batch_size,
            order_key=(seed, index),
        )
