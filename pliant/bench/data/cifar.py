"""CIFAR-10 and CIFAR-100 in their binary layout: labels and 3,072 pixel bytes per image, no pickle.

Source: Krizhevsky (2009), Learning multiple layers of features from tiny images. CIFAR-10: one label byte;
CIFAR-100: a coarse and a fine label byte; then the red, green and blue planes of 32 x 32 bytes, row by row.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import final

import numpy as np

from pliant.bench.data.files import DataError, MissingData, digest

__all__ = ["CIFAR10", "CIFAR100", "CifarFiles", "read_cifar"]

_PIXELS = 3 * 32 * 32


@final
@dataclass(frozen=True)
class CifarFiles:
    """The files of one set.

    Attributes:
        name: for messages.
        train: file names of the training part.
        test: file name of the test part.
        label_bytes: bytes before the pixels; the last of them is the label.
        num_classes: labels are below it.
        per_class: images of each class in the original training and test part.
        archive: address and checksum of the original archive.
    """

    name: str
    train: tuple[str, ...]
    test: str
    label_bytes: int
    num_classes: int
    per_class: tuple[int, int]
    archive: tuple[str, str]

    @property
    def row_bytes(self) -> int:
        """Bytes per image."""
        return self.label_bytes + _PIXELS


CIFAR10 = CifarFiles(
    "CIFAR-10",
    tuple(f"data_batch_{k}.bin" for k in range(1, 6)),
    "test_batch.bin",
    1,
    10,
    (5000, 1000),
    ("https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz", "md5:c32a1d4ab5d03f1284b67883e8d87530"),
)
CIFAR100 = CifarFiles(
    "CIFAR-100",
    ("train.bin",),
    "test.bin",
    2,
    100,
    (500, 100),
    ("https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz", "md5:03b5dce01913d631647c71ecec9e9cb8"),
)


def _rows(path: Path, files: CifarFiles) -> np.ndarray:
    size = path.stat().st_size
    if size == 0 or size % files.row_bytes:
        whole = size // files.row_bytes
        raise DataError(
            f"{path}: truncated or damaged, {size} bytes are {whole} images of {files.row_bytes} bytes and "
            f"{size - whole * files.row_bytes} bytes more (SHA-256 {digest(path)}); unpack the original archive again"
        )
    rows = np.fromfile(path, dtype=np.uint8).reshape(-1, files.row_bytes)
    largest = int(rows[:, files.label_bytes - 1].max())
    if largest >= files.num_classes:
        raise DataError(
            f"{path}: label {largest} is none of the {files.num_classes} of {files.name}, so this is another file or "
            f"damaged (SHA-256 {digest(path)}); unpack the original archive again"
        )
    return rows


def _check_counts(paths: list[Path], labels: np.ndarray, files: CifarFiles, wanted: int, part: str) -> None:
    counts = np.bincount(labels, minlength=files.num_classes)
    if (counts == wanted).all():
        return
    sizes = ", ".join(f"{path.name} {path.stat().st_size} bytes" for path in paths)
    found = str(counts.min()) if counts.min() == counts.max() else f"{counts.min()} to {counts.max()}"
    hint = "" if counts.min() != counts.max() else f"; if this subset is meant, say so with the option subset={found}"
    raise DataError(
        f"{paths[0].parent}: the {part} part has {found} images of each class instead of {wanted} ({sizes}; "
        f"{files.num_classes * wanted * files.row_bytes} bytes expected): truncated, or not the original{hint}"
    )


def read_cifar(
    folder: Path, files: CifarFiles, subset: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Read one of the two sets.

    Args:
        folder: holds the ``.bin`` files.
        files: :data:`CIFAR10` or :data:`CIFAR100`.
        subset: training images of each class, where the files are known to hold fewer than the original; 0: all.

    Returns:
        Training images uint8 ``[N, 3, 32, 32]`` in the order of the files, their labels int64 ``[N]``, and the same
        of the test part.

    Raises:
        DataError: a file is missing, truncated, or has another number of images than it should; names the sizes.
    """
    found = []
    for part, names in enumerate((files.train, (files.test,))):
        paths = [folder / name for name in names if (folder / name).is_file()]
        if len(paths) < len(names) and not (subset and paths):
            missing = ", ".join(name for name in names if not (folder / name).is_file())
            raise MissingData(f"{folder}: {files.name} lacks {missing}")
        rows = np.concatenate([_rows(path, files) for path in paths])
        labels = rows[:, files.label_bytes - 1].astype(np.int64)
        if not subset:
            _check_counts(paths, labels, files, files.per_class[part], "test" if part else "training")
        elif not part:
            _check_counts(paths, labels, files, subset, "training")
        found += [rows[:, files.label_bytes :].reshape(-1, 3, 32, 32), labels]
    return found[0], found[1], found[2], found[3]
