"""Downsampled ImageNet in its published batches, npz or pickled, read without running what a pickle could contain.

Source: Chrabaszcz, Loshchilov & Hutter (2017), A downsampled variant of ImageNet as an alternative to the CIFAR
datasets, arXiv:1707.08819. Ten training files ``train_data_batch_1`` to ``_10``, each a dictionary with ``data``
(uint8 ``[n, 3072]``, planes red, green, blue) and ``labels`` (1 to 1000).
"""

from __future__ import annotations

import importlib
import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from pliant.bench.data.files import DataError, digest
from pliant.bench.data.per_class import class_file, write_class

__all__ = ["NUM_CLASSES", "batch_files", "classes_from_batches", "read_batch"]

NUM_CLASSES = 1000
_ARRAYS = {"_reconstruct", "ndarray", "dtype", "scalar", "_frombuffer"}
"""The numpy names that a pickled array is made of."""


class _ArraysOnly(pickle.Unpickler):
    """Knows numpy's arrays and nothing else: no other name of a pickle is ever looked up, so none can be called."""

    def find_class(self, module: str, name: str) -> Any:
        """Return one of the few names that an array needs."""
        if module.split(".")[0] == "numpy" and name in _ARRAYS:
            if module in ("numpy.core.multiarray", "numpy._core.multiarray"):
                module = "numpy._core.multiarray" if int(np.__version__.split(".")[0]) > 1 else "numpy.core.multiarray"
            return getattr(importlib.import_module(module), name)
        if (module, name) == ("_codecs", "encode"):  # how Python 2's byte strings are written in protocol 2
            return lambda text, encoding="latin1": text.encode("latin1")
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is no array")


def batch_files(folder: Path) -> list[Path]:
    """Return the training batches in ``folder``, in order; npz before pickle where there are both."""
    found = []
    for k in range(1, 11):
        for name in (f"train_data_batch_{k}.npz", f"train_data_batch_{k}"):
            if (folder / name).is_file():
                found.append(folder / name)
                break
    return found


def read_batch(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read one batch.

    Returns:
        ``images`` uint8 ``[n, 3, 32, 32]`` and ``labels`` int64 ``[n]`` from 0.

    Raises:
        DataError: damaged, truncated, or holding anything but arrays and lists of numbers; nothing of it was run.
    """
    where = f"{path} ({path.stat().st_size} bytes, SHA-256 {digest(path)})"
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                content: Any = {key: arrays[key] for key in ("data", "labels")}
        else:
            content = _ArraysOnly(io.BytesIO(path.read_bytes()), encoding="latin1").load()
        data = np.asarray(content["data"])
        labels = np.asarray(content["labels"])
    except (
        pickle.UnpicklingError,
        zipfile.BadZipFile,
        OSError,
        EOFError,
        KeyError,
        ValueError,
        TypeError,
        AttributeError,
        IndexError,
    ) as error:
        raise DataError(f"{where}: not a batch of ImageNet-32, or damaged ({error}); get the original file") from error
    if data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != 3072 or labels.shape != (len(data),):
        raise DataError(
            f"{where}: holds {data.dtype} {list(data.shape)} with labels {list(labels.shape)}, not uint8 [n, 3072]"
        )
    if not np.issubdtype(labels.dtype, np.integer) or labels.min() < 1 or labels.max() > NUM_CLASSES:
        raise DataError(f"{where}: its labels are not 1 to {NUM_CLASSES}")
    return data.reshape(-1, 3, 32, 32), labels.astype(np.int64) - 1


def classes_from_batches(folder: Path, num_images: int, num_classes: int = NUM_CLASSES) -> None:
    """Write ``classes/<k>.npy`` beside the batches: the first ``num_images`` of every class, in the order of the files.

    Classes that are there already are left alone; a file appears whole or not at all.

    Args:
        folder: holds the batches.
        num_images: images of each class.
        num_classes: classes 0 to ``num_classes - 1``.

    Raises:
        DataError: a batch is damaged, or all of them together have too few images of a class.
    """
    missing = [label for label in range(num_classes) if not class_file(folder, label).is_file()]
    if not missing:
        return
    found: dict[int, list[np.ndarray]] = {label: [] for label in missing}
    counts = dict.fromkeys(missing, 0)
    paths = batch_files(folder)
    for path in paths:
        images, labels = read_batch(path)
        for label in missing:
            if counts[label] < num_images:
                rows = images[np.flatnonzero(labels == label)[: num_images - counts[label]]]
                found[label].append(rows.copy())
                counts[label] += len(rows)
    short = [label for label in missing if counts[label] < num_images]
    if short:
        raise DataError(
            f"{folder}: class {short[0]} has {counts[short[0]]} images in the {len(paths)} batches that are there; "
            f"{num_images} are needed (all ten batches hold them)"
        )
    for label in missing:
        write_class(folder / "classes", label, np.concatenate(found[label]))
