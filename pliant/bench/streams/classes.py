"""What streams of many classes share: a file for each class, read when its turn comes, or one of the smaller sets."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from pliant.bench.data.files import MissingData, data_folder
from pliant.bench.data.imagenet32 import batch_files, classes_from_batches
from pliant.bench.data.images import IMAGES, SCALINGS, ImageData, load_images, scaled
from pliant.bench.data.per_class import class_file, read_class
from pliant.bench.streams.base import Task, require
from pliant.bench.streams.images import where_to_put

__all__ = ["CLASS_FILES", "ClassStream"]

CLASS_FILES: dict[str, tuple[str, str, tuple[float, ...], tuple[float, ...]]] = {
    "imagenet32": ("ImageNet 32x32", "imagenet32", (0.4810, 0.4574, 0.4078), (0.2604, 0.2532, 0.2682)),
    "tiny_imagenet": ("Tiny ImageNet", "tiny-imagenet", (0.4802, 0.4481, 0.3975), (0.2770, 0.2691, 0.2821)),
}
"""Sets with one file per class: title, folder, mean and deviation of each channel."""


@dataclass(frozen=True)
class ClassStream(ABC):
    """A stream over a set with many classes; its options come before those of the stream itself.

    Attributes:
        dataset: ``imagenet32`` or ``tiny_imagenet`` (a file ``<class number>.npy`` for each class, images ``[n, 3, H,
            W]``, uint8, or floats that are scaled already; for ImageNet also its published batches), or one of the sets
            of :class:`pliant.bench.streams.images.ImageStream`.
        data_dir: folder with the files; see :func:`pliant.bench.data.files.data_folder`. It changes no result.
        subset: training images of each class, where CIFAR's files hold fewer than the original; 0: the original files.
            Sets with a file for each class say with ``num_train`` and ``num_test`` what is in them.
        num_all: classes that there are, 0 to ``num_all - 1``.
        num_train: training images of each class, the first of its file.
        num_test: test images of each class, the last of its file.
        image_size: height and width.
        scaling: ``unit`` (0..1), ``half`` ((x - 0.5) / 0.5) or ``channel`` (mean and deviation of each channel).
        flat: inputs are vectors, for networks of linear layers; otherwise ``[C, H, W]``.
    """

    name: ClassVar[str]
    not_identity: ClassVar[frozenset[str]] = frozenset({"data_dir"})

    dataset: str = "digits"
    data_dir: str = ""
    subset: int = 0
    num_all: int = 10
    num_train: int = 100
    num_test: int = 40
    image_size: int = 8
    scaling: str = "half"
    flat: bool = False

    def __post_init__(self) -> None:
        valid = (*CLASS_FILES, *IMAGES)
        require(self.dataset in valid, self, f"dataset {self.dataset!r} is none of {', '.join(valid)}")
        require(self.scaling in SCALINGS, self, f"scaling {self.scaling!r} is none of {', '.join(SCALINGS)}")
        require(self.subset >= 0, self, "subset must not be negative")
        whole = self.dataset not in IMAGES or IMAGES[self.dataset].shape[1] != 32
        require(not (self.subset and whole), self, f"{self.dataset} is read whole: leave out subset")
        for option in ("num_all", "num_train", "num_test", "image_size"):
            require(getattr(self, option) >= 1, self, f"{option} must be at least 1")
        if self.dataset in IMAGES:
            data = IMAGES[self.dataset]
            require(self.image_size == data.shape[1], self, f"image_size of {self.dataset} is {data.shape[1]}")
            require(self.num_all <= data.num_classes, self, f"num_all of {self.dataset} is at most {data.num_classes}")

    @property
    def _about(self) -> ImageData | None:
        return IMAGES.get(self.dataset)

    @property
    def _shape(self) -> tuple[int, int, int]:
        channels = self._about.shape[0] if self._about is not None else 3
        return (channels, self.image_size, self.image_size)

    @property
    @abstractmethod
    def num_classes(self) -> int:
        """Outputs of a model."""

    @property
    def num_inputs(self) -> int:
        """Numbers of an image."""
        return math.prod(self._shape)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one example."""
        return (self.num_inputs,) if self.flat else self._shape

    @property
    def requires_data(self) -> str | None:
        """The set of images, where it is read from files."""
        if self._about is None:
            return CLASS_FILES[self.dataset][0]
        return self._about.title if self._about.folder else None

    @property
    def folder(self) -> Path:
        """Where the files are, or should be."""
        about = self._about
        return data_folder(self.data_dir, CLASS_FILES[self.dataset][1] if about is None else about.folder)

    def prepare(self) -> None:
        """Make sure that every class has its file; ImageNet's batches are turned into such files once.

        Raises:
            DataError: files are missing or damaged; says what to put where, and what needs no files.
        """
        if self._about is None:
            if batch_files(self.folder):
                classes_from_batches(self.folder, self.num_train + self.num_test, self.num_all)
            missing = [label for label in range(self.num_all) if not class_file(self.folder, label).is_file()]
            if missing:
                more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
                raise MissingData(f"{class_file(self.folder, missing[0])}{more} not found; {self._remedy()}")
        elif self._about.folder and self._about.fetch is not None and not self.subset:
            self._about.fetch(self.folder, self._remedy())
        self.of_class(0)

    def _remedy(self) -> str:
        files = "<class number>.npy for each class"
        if self.dataset == "imagenet32":
            files += " or the batches train_data_batch_1 to train_data_batch_10"
        if self._about is not None:
            files = self._about.files
        return where_to_put(self, f"{files} ({self.requires_data})", self.folder)

    def of_class(self, label: int) -> tuple[Tensor, Tensor]:
        """Return training and test images of one class as a network's inputs, float32 ``[n, *input_shape]``.

        Raises:
            DataError: its file is missing or damaged, or has too few images.
        """
        data = self._about
        try:
            if data is None:
                numbers = (255, *CLASS_FILES[self.dataset][2:])
                sizes = (self.num_train, self.num_test, self.image_size)
                train, test = read_class(self.folder.resolve(), label, *sizes)
            else:
                numbers = (data.largest, data.mean, data.std)
                found = load_images(self.dataset, self.data_dir, self.subset)
                train = found.train_images[found.of_class(label)[: self.num_train]]
                test = found.test_images[(found.test_labels == label).nonzero().flatten()[: self.num_test]]
        except MissingData as error:
            raise MissingData(f"{error}; {self._remedy()}") from error
        wanted = (self.num_train, self.num_test)
        require(
            (len(train), len(test)) == wanted,
            self,
            f"class {label} of {self.dataset} has {len(train)} training and {len(test)} test images, not {wanted}",
        )
        both = [x if x.is_floating_point() else scaled(x, self.scaling, *numbers) for x in (train, test)]
        train, test = (x.flatten(1) if self.flat else x for x in both)
        return train, test

    def of_classes(self, classes: tuple[int, ...], labels: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return training inputs and targets, test inputs and targets of some classes, which are called ``labels``."""
        parts = [self.of_class(label) for label in classes]
        sets = []
        for which in (0, 1):
            sets.append(torch.cat([part[which] for part in parts]))
            sets.append(torch.cat([torch.full((len(p[which]),), k) for p, k in zip(parts, labels, strict=True)]))
        return sets[0], sets[1], sets[2], sets[3]

    @abstractmethod
    def task(self, index: int, seed: int) -> Task:
        """Return task ``index``; see :class:`Stream`."""
