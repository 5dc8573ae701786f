"""One ``.npy`` file per class, as Continual ImageNet is published: ``<class number>.npy``, images ``[n, 3, H, W]``.

The first images of a file are for training, the last for testing.
"""

from __future__ import annotations

import functools
import io
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pliant.bench.data.files import DataError, MissingData, digest, written_whole

__all__ = ["class_file", "read_class", "write_class"]


def class_file(folder: Path, label: int) -> Path:
    """Return where the images of class ``label`` are: in ``folder`` or, as the authors pack them, in ``classes``."""
    inside = folder / "classes" / f"{label}.npy"
    return inside if inside.is_file() else folder / f"{label}.npy"


@functools.lru_cache(maxsize=64)
def read_class(folder: Path, label: int, num_train: int, num_test: int, image_size: int) -> tuple[Tensor, Tensor]:
    """Read the images of one class.

    Args:
        folder: holds the files, or a folder ``classes`` with them.
        label: number of the class, the file's name.
        num_train: images from the beginning of the file.
        num_test: images from its end; together they must be all.
        image_size: height and width.

    Returns:
        ``train [num_train, 3, H, W]`` and ``test [num_test, 3, H, W]``, uint8, or float32 where the file has floats.
        They are cached and shared: do not write into them.

    Raises:
        DataError: the file is missing, truncated, holds Python objects, or another number or size of images.
    """
    path = class_file(folder, label)
    wanted = (num_train + num_test, 3, image_size, image_size)
    if not path.is_file():
        raise MissingData(f"{path}: not found")
    try:
        images = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(
            f"{path}: damaged or truncated, {path.stat().st_size} bytes with SHA-256 {digest(path)} ({error}); "
            "replace it by the original file"
        ) from error
    if images.shape != wanted:
        raise DataError(
            f"{path}: holds images {list(images.shape)} instead of {list(wanted)} ({path.stat().st_size} bytes); "
            "num_train and num_test (and image_size) say what the files hold"
        )
    if images.dtype != np.uint8 and not np.issubdtype(images.dtype, np.floating):
        raise DataError(f"{path}: holds {images.dtype} values; expected uint8, or floats that are scaled already")
    if images.dtype != np.uint8:
        images = images.astype(np.float32, copy=False)
        if not np.isfinite(images).all():
            raise DataError(f"{path}: holds values that are not finite (SHA-256 {digest(path)})")
    both = torch.from_numpy(images)
    return both[:num_train], both[num_train:]


def write_class(folder: Path, label: int, images: np.ndarray) -> None:
    """Write the images of one class, whole or not at all.

    Args:
        folder: where the file goes; made where it does not exist.
        label: number of the class.
        images: ``[n, 3, H, W]``, uint8 or float, those for training first.
    """
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(images), allow_pickle=False)
    written_whole(folder / f"{label}.npy", lambda file: file.write(buffer.getbuffer()))
