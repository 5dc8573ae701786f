"""Real images for the larger presets, from files that the user has; nothing is downloaded.

| data | files in the folder |
|---|---|
| `cifar10` | `cifar-10-batches-bin/data_batch_1.bin` to `5`, `test_batch.bin` |
| `cifar100` | `cifar-100-binary/train.bin`, `test.bin` |
| `imagenet32` | `imagenet32/0.npy`, `1.npy`, ...: one class each, uint8 `[images, 3, 32, 32]`, the last 50 for tests |
"""

from __future__ import annotations

import functools
import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pliant.bench.data.mnist import DataError

__all__ = ["FOLDER", "Images", "augmented", "load"]

Images = tuple[Tensor, Tensor, Tensor, Tensor]
FOLDER = "PLIANT_DATA"
"""The environment variable that names the folder."""

_PIXELS = 3 * 32 * 32
_TEN = "cifar-10-batches-bin"
_CIFAR = {
    "cifar10": (1, [f"{_TEN}/data_batch_{i}.bin" for i in range(1, 6)], f"{_TEN}/test_batch.bin"),
    "cifar100": (2, ["cifar-100-binary/train.bin"], "cifar-100-binary/test.bin"),
}


def load(data: str, folder: str = "") -> Images:
    """Training images uint8 ``[N, 3, 32, 32]`` and labels int64 ``[N]``, and the same of the test images.

    Args:
        data: ``"cifar10"``, ``"cifar100"`` or ``"imagenet32"``.
        folder: Where the files are; empty: what the environment variable ``PLIANT_DATA`` says.

    Raises:
        DataError: If a file is missing or has another length than such files have.
    """
    place = folder or os.environ.get(FOLDER, "")
    if not place:
        raise DataError(f"{data}: set {FOLDER} to the folder with its files; the preset mini needs none.")
    return _load(data, place)


@functools.lru_cache(maxsize=1)
def _load(data: str, place: str) -> Images:
    folder = Path(place)
    if data == "imagenet32":
        return _arrays(folder / "imagenet32")
    labels, train, test = _CIFAR[data]
    parts = [_binary(folder / name, labels) for name in train]
    return (torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts]), *_binary(folder / test, labels))


def _binary(path: Path, num_labels: int) -> tuple[Tensor, Tensor]:
    """CIFAR's binary layout: label bytes, of which the last is the class, and 3,072 pixels."""
    if not path.exists():
        raise DataError(f"{path} is missing; the preset mini needs no files.")
    raw = np.fromfile(path, dtype=np.uint8)
    if not len(raw) or len(raw) % (num_labels + _PIXELS):
        raise DataError(f"{path} has {len(raw)} bytes, no multiple of {num_labels + _PIXELS}: it is damaged.")
    rows = torch.from_numpy(raw.reshape(-1, num_labels + _PIXELS))
    return rows[:, num_labels:].reshape(-1, 3, 32, 32).clone(), rows[:, num_labels - 1].long()


def _arrays(folder: Path, num_test: int = 50) -> Images:
    paths = sorted(folder.glob("*.npy"), key=lambda path: int(path.stem))
    if not paths:
        raise DataError(f"{folder} has no .npy files; the preset mini needs none.")
    train_x, train_y, test_x, test_y = [], [], [], []
    for path in paths:
        images = torch.from_numpy(np.load(path, allow_pickle=False))
        if images.ndim != 4 or tuple(images.shape[1:]) != (3, 32, 32) or len(images) <= num_test:
            raise DataError(f"{path} has shape {tuple(images.shape)}, not [more than {num_test}, 3, 32, 32].")
        train_x.append(images[:-num_test])
        test_x.append(images[-num_test:])
        train_y.append(torch.full((len(images) - num_test,), int(path.stem)))
        test_y.append(torch.full((num_test,), int(path.stem)))
    return torch.cat(train_x), torch.cat(train_y), torch.cat(test_x), torch.cat(test_y)


def augmented(images: Tensor, draws: np.random.Generator, pad: int = 4) -> Tensor:
    """Each image shifted by up to ``pad`` pixels, with zeros where nothing is, and mirrored half of the time.

    Args:
        images: ``[B, C, H, W]``.
        draws: Decides.
        pad: Largest shift in pixels.
    """
    size, height, width = len(images), images.shape[2], images.shape[3]
    padded = torch.nn.functional.pad(images, [pad] * 4)
    top, left = (torch.from_numpy(draws.integers(0, 2 * pad + 1, size)) for _ in range(2))
    rows = top[:, None] + torch.arange(height)
    columns = left[:, None] + torch.arange(width)
    mirror = torch.from_numpy(draws.integers(0, 2, size).astype(bool))
    columns = torch.where(mirror[:, None], columns.flip(1), columns)
    return padded[torch.arange(size)[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
