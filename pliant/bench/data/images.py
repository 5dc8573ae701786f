"""The sets of images that streams are made of, by name: what is known of each without its files, and how it is read."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import final

import numpy as np
import torch
from torch import Tensor

from pliant.bench.data.cifar import CIFAR10, CIFAR100, CifarFiles, read_cifar
from pliant.bench.data.digits import MAX_PIXEL, NUM_DIGITS, load_digits
from pliant.bench.data.fetch import fetch_archive
from pliant.bench.data.files import DataError, MissingData, data_folder
from pliant.bench.data.idx import IdxFile, read_idx
from pliant.bench.data.mnist import FILES as MNIST_FILES
from pliant.bench.data.mnist import download as download_mnist

__all__ = ["EMNIST_FILES", "IMAGES", "SCALINGS", "ImageData", "ImageSet", "load_images", "scaled"]

SCALINGS = ("unit", "half", "channel")
"""How pixels become numbers: 0..1; (x - 0.5) / 0.5, which is -1..1; (x - mean) / std of each channel."""

EMNIST_FILES = {
    "train_images": IdxFile("emnist-balanced-train-images-idx3-ubyte", (112800, 28, 28)),
    "train_labels": IdxFile("emnist-balanced-train-labels-idx1-ubyte", (112800,)),
    "test_images": IdxFile("emnist-balanced-test-images-idx3-ubyte", (18800, 28, 28)),
    "test_labels": IdxFile("emnist-balanced-test-labels-idx1-ubyte", (18800,)),
}
_EMNIST_ARCHIVE = ("https://biometrics.nist.gov/cs_links/EMNIST/gzip.zip", "md5:58c8d27c78d21e728a6bc7b3cc06412e")
_NUM_TEST_DIGITS = 597


@final
@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images as they are stored. Shared between all who ask: do not write into them.

    Attributes:
        train_images: uint8 ``[N, C, H, W]``.
        train_labels: int64 ``[N]``.
        test_images: uint8 ``[M, C, H, W]``.
        test_labels: int64 ``[M]``.
    """

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    _places: dict[tuple[str, int], Tensor] = field(default_factory=dict, init=False, repr=False)

    def of_class(self, label: int) -> Tensor:
        """Return the places of the training images of one class, int64, in the order of the files."""
        return self._of_class("train", self.train_labels, label)

    def test_of_class(self, label: int) -> Tensor:
        """Return the places of test images of one class, int64: as many as the smallest class has.

        Tasks of different classes have tests of one size then, so that seeds can be trained side by side.
        """
        fewest = int(self.test_labels.bincount().min())
        return self._of_class("test", self.test_labels, label)[:fewest]

    def _of_class(self, part: str, labels: Tensor, label: int) -> Tensor:
        if (part, label) not in self._places:
            self._places[part, label] = (labels == label).nonzero().flatten()
        return self._places[part, label]


@final
@dataclass(frozen=True)
class ImageData:
    """What is known of a set of images before it is read.

    Attributes:
        name: by which streams ask for it.
        title: its name on paper.
        shape: of one image, ``(C, H, W)``.
        num_classes: labels are below it.
        num_train: training images in the original files.
        num_test: test images in the original files.
        folder: name of its folder; empty: it comes with the package.
        files: what to put there.
        read: from folder and ``subset`` to the set.
        fetch: downloads what is missing, or None where it cannot.
        largest: value of the brightest pixel.
        mean: of each channel, pixels in 0..1.
        std: of each channel.
    """

    name: str
    title: str
    shape: tuple[int, int, int]
    num_classes: int
    num_train: int
    num_test: int
    folder: str
    files: str
    read: Callable[[Path, int], ImageSet]
    fetch: Callable[[Path, str], None] | None = None
    largest: int = 255
    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.5,)


def _digits(folder: Path, subset: int) -> ImageSet:
    inputs_NF, labels = load_digits()
    images = (inputs_NF * MAX_PIXEL).round().to(torch.uint8).reshape(NUM_DIGITS, 1, 8, 8)
    # The file is ordered by writers, so a split in the middle would have other people in the test part.
    order = torch.from_numpy(np.random.Generator(np.random.PCG64(0)).permutation(NUM_DIGITS).astype(np.int64))
    test, train = order[:_NUM_TEST_DIGITS], order[_NUM_TEST_DIGITS:]
    return ImageSet(images[train], labels[train], images[test], labels[test])


def _of_idx(files: dict[str, IdxFile]) -> Callable[[Path, int], ImageSet]:
    def read(folder: Path, subset: int) -> ImageSet:
        if subset:
            raise DataError(f"{folder}: idx files are read whole; leave out the option subset")
        found = {key: read_idx(folder, file) for key, file in files.items()}
        for key, array in found.items():
            if array is None:
                raise MissingData(f"{folder / files[key].name}(.gz) not found")
        arrays = {key: torch.from_numpy(array.copy()) for key, array in found.items() if array is not None}
        return ImageSet(
            arrays["train_images"].unsqueeze(1),
            arrays["train_labels"].long(),
            arrays["test_images"].unsqueeze(1),
            arrays["test_labels"].long(),
        )

    return read


def _of_cifar(files: CifarFiles) -> Callable[[Path, int], ImageSet]:
    def read(folder: Path, subset: int) -> ImageSet:
        return ImageSet(*(torch.from_numpy(np.ascontiguousarray(a)) for a in read_cifar(folder, files, subset)))

    return read


def _fetch_mnist(folder: Path, remedy: str) -> None:
    download_mnist(folder)


def _fetch_emnist(folder: Path, remedy: str) -> None:
    if all((folder / file.name).is_file() for file in EMNIST_FILES.values()):
        return
    members = {f"gzip/{file.name}.gz": folder / f"{file.name}.gz" for file in EMNIST_FILES.values()}
    fetch_archive(*_EMNIST_ARCHIVE, members, remedy)


def _fetch_cifar(files: CifarFiles, inside: str) -> Callable[[Path, str], None]:
    def fetch(folder: Path, remedy: str) -> None:
        names = (*files.train, files.test)
        fetch_archive(*files.archive, {f"{inside}/{name}": folder / name for name in names}, remedy)

    return fetch


_IDX = "the four idx files, plain or gzipped"
IMAGES: dict[str, ImageData] = {
    data.name: data
    for data in (
        ImageData(
            "digits", "the 8x8 digits", (1, 8, 8), 10, NUM_DIGITS - _NUM_TEST_DIGITS, _NUM_TEST_DIGITS, "", "", _digits,
            largest=MAX_PIXEL,
        ),
        ImageData(
            "mnist", "MNIST", (1, 28, 28), 10, 60000, 10000, "mnist", _IDX, _of_idx(MNIST_FILES), _fetch_mnist,
            mean=(0.1307,), std=(0.3081,),
        ),
        ImageData(
            "emnist", "EMNIST (balanced)", (1, 28, 28), 47, 112800, 18800, "emnist", _IDX, _of_idx(EMNIST_FILES),
            _fetch_emnist,
        ),
        ImageData(
            "cifar10", "CIFAR-10", (3, 32, 32), 10, 50000, 10000, "cifar-10-batches-bin",
            "data_batch_1.bin to data_batch_5.bin and test_batch.bin of the binary version",
            _of_cifar(CIFAR10), _fetch_cifar(CIFAR10, "cifar-10-batches-bin"),
            mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616),
        ),
        ImageData(
            "cifar100", "CIFAR-100", (3, 32, 32), 100, 50000, 10000, "cifar-100-binary",
            "train.bin and test.bin of the binary version",
            _of_cifar(CIFAR100), _fetch_cifar(CIFAR100, "cifar-100-binary"),
            mean=(0.5071, 0.4865, 0.4409), std=(0.2673, 0.2564, 0.2762),
        ),
    )
}  # fmt: skip
"""Sets of images by name."""


@functools.lru_cache(maxsize=4)
def _loaded(name: str, folder: Path, subset: int) -> ImageSet:
    return IMAGES[name].read(folder, subset)


def load_images(name: str, data_dir: str = "", subset: int = 0) -> ImageSet:
    """Read a set of images; never touches the network.

    Args:
        name: one of :data:`IMAGES`.
        data_dir: see :func:`pliant.bench.data.files.data_folder`.
        subset: training images of each class, where the files are known to hold fewer than the original; 0: all.

    Raises:
        DataError: files are missing, truncated, or not what they should be.

    >>> found = load_images("digits")
    >>> found.train_images.shape, found.test_labels.shape
    (torch.Size([1200, 1, 8, 8]), torch.Size([597]))
    """
    data = IMAGES[name]
    return _loaded(name, data_folder(data_dir, data.folder).resolve() if data.folder else Path(), subset)


def scaled(images: Tensor, scaling: str, largest: int, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Return uint8 images as float32 of the same shape.

    Args:
        images: ``[N, C, H, W]``.
        scaling: one of :data:`SCALINGS`.
        largest: value of the brightest pixel.
        mean: of each channel, or of all, for the scaling ``channel``.
        std: likewise.
    """
    values = images.float() / largest
    if scaling == "unit":
        return values
    if scaling == "half":
        return values.sub_(0.5).div_(0.5)
    center, spread = (torch.tensor(numbers).reshape(-1, 1, 1) for numbers in (mean, std))
    return values.sub_(center).div_(spread)
