"""What streams of images share: which images, where their files are, and how pixels become numbers."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from pliant.bench.data.files import ENVIRONMENT, MissingData, data_folder
from pliant.bench.data.images import IMAGES, SCALINGS, ImageData, ImageSet, load_images, scaled
from pliant.bench.presets import PRESETS
from pliant.bench.streams.base import Stream, Task, require, traits

__all__ = ["ImageStream", "indices", "where_to_put"]


def where_to_put(stream: Stream, files: str, folder: Path) -> str:
    """Return what to do about absent files: where they go, how to name the place, and what works without any."""
    own = [
        f"pliant run {stream.name} --preset {preset}"
        for preset, settings in PRESETS.get(stream.name, {}).items()
        if traits(type(stream)(**settings["stream"])).requires_data is None
    ]
    without = f"; without any files: {own[0]}" if own else ""
    return f"put {files} into {folder}, or name their folder with --data-dir or {ENVIRONMENT}{without}"


def indices(numbers: np.ndarray) -> Tensor:
    """Return integers of numpy as an int64 tensor."""
    return torch.from_numpy(numbers.astype(np.int64, copy=False))


@dataclass(frozen=True)
class ImageStream(ABC):
    """A stream over one of the sets of images; its options come before those of the stream itself.

    Attributes:
        dataset: ``digits`` (comes with the package), ``mnist``, ``emnist``, ``cifar10`` or ``cifar100``.
        data_dir: folder with its files; see :func:`pliant.bench.data.files.data_folder`. It changes no result.
        subset: training images of each class, where the files hold fewer than the original; 0: the original files.
        scaling: ``unit`` (0..1), ``half`` ((x - 0.5) / 0.5) or ``channel`` (mean and deviation of each channel).
        flat: inputs are vectors, for networks of linear layers; otherwise ``[C, H, W]``.
    """

    name: ClassVar[str]
    not_identity: ClassVar[frozenset[str]] = frozenset({"data_dir"})

    dataset: str = "digits"
    data_dir: str = ""
    subset: int = 0
    scaling: str = "unit"
    flat: bool = True

    def __post_init__(self) -> None:
        require(self.dataset in IMAGES, self, f"dataset {self.dataset!r} is none of {', '.join(IMAGES)}")
        require(self.scaling in SCALINGS, self, f"scaling {self.scaling!r} is none of {', '.join(SCALINGS)}")
        require(self.subset >= 0, self, "subset must not be negative")
        require(not self.subset or self._about.shape[1] == 32, self, f"{self.dataset} is read whole: leave out subset")

    @property
    def _about(self) -> ImageData:
        return IMAGES[self.dataset]

    @property
    def num_classes(self) -> int:
        """Outputs of a model."""
        return self._about.num_classes

    @property
    def num_inputs(self) -> int:
        """Pixels of an image."""
        return math.prod(self._about.shape)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one example."""
        return (self.num_inputs,) if self.flat else self._about.shape

    @property
    def requires_data(self) -> str | None:
        """The set of images, where it is read from files."""
        return self._about.title if self._about.folder else None

    @property
    def num_train(self) -> int:
        """Training images that there are."""
        return self.subset * self.num_classes if self.subset else self._about.num_train

    @property
    def folder(self) -> Path:
        """Where the files are, or will be."""
        return data_folder(self.data_dir, self._about.folder)

    def prepare(self) -> None:
        """Make sure of the files: download what is missing, where it can be, and read and check all of them.

        Raises:
            DataError: a file is damaged, or missing and not to be had; says what to put where, and what needs no files.
        """
        if self._about.folder and self._about.fetch is not None and not self.subset:
            self._about.fetch(self.folder, self._remedy())
        self.images()

    def _remedy(self) -> str:
        return where_to_put(self, f"{self._about.files} ({self._about.title})", self.folder)

    def images(self) -> ImageSet:
        """Return all images, as they are stored.

        Raises:
            DataError: files are missing or damaged.
        """
        try:
            return load_images(self.dataset, self.data_dir, self.subset)
        except MissingData as error:
            raise MissingData(f"{error}; {self._remedy()}") from error

    def inputs(self, images: Tensor) -> Tensor:
        """Return stored images as a network's inputs, float32 ``[N, *input_shape]``."""
        data = self._about
        values = scaled(images, self.scaling, data.largest, data.mean, data.std)
        return values.flatten(1) if self.flat else values

    def test_images(self, num_test: int) -> tuple[Tensor, Tensor] | tuple[None, None]:
        """Return the first ``num_test`` test images as they are stored, and their labels; nothing for 0."""
        if not num_test:
            return None, None
        found = self.images()
        return found.test_images[:num_test].clone(), found.test_labels[:num_test].clone()

    def check_counts(self, num_examples: int, num_epochs: int, batch_size: int, num_test: int = 0) -> None:
        """Refuse numbers that cannot be."""
        require(1 <= num_examples <= self.num_train, self, f"num_examples must be in 1..{self.num_train}")
        require(num_epochs >= 1, self, "num_epochs must be at least 1")
        require(batch_size >= 1, self, "batch_size must be at least 1")
        largest = self._about.num_test
        require(0 <= num_test <= largest, self, f"num_test must be in 0..{largest} (0: no test)")

    @abstractmethod
    def task(self, index: int, seed: int) -> Task:
        """Return task ``index``; see :class:`Stream`."""
