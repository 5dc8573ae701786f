"""MNIST from its four original idx files, plain or gzipped, checked before anything is believed.

Source: LeCun, Cortes & Burges, The MNIST database of handwritten digits. The checksums are those of the
*decompressed* files, because the same content is found packed by different gzip programs.
"""

from __future__ import annotations

import functools
import gzip
import os
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pliant.bench.data.files import DataError, MissingData, written_whole
from pliant.bench.data.idx import IdxFile, parse_idx, read_idx

__all__ = ["FILES", "MIRRORS", "DataError", "IdxFile", "download", "load_mnist"]

MIRRORS: tuple[str, ...] = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)
"""Where :func:`download` looks, in this order; each address is followed by ``<file name>.gz``."""


FILES: dict[str, IdxFile] = {
    "train_images": IdxFile(
        "train-images-idx3-ubyte",
        (60000, 28, 28),
        "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    ),
    "train_labels": IdxFile(
        "train-labels-idx1-ubyte",
        (60000,),
        "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    ),
    "test_images": IdxFile(
        "t10k-images-idx3-ubyte",
        (10000, 28, 28),
        "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    ),
    "test_labels": IdxFile(
        "t10k-labels-idx1-ubyte",
        (10000,),
        "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    ),
}


def _where_to_put(folder: Path) -> str:
    names = ", ".join(f"{file.name}.gz" for file in FILES.values())
    return (
        f"put the four original files ({names}; unpacked works too) into {folder} and name it as data_dir; "
        "the digits need no files: pliant run permuted_digits"
    )


def _fetch(url: str, timeout: float = 30.0) -> bytes:
    with urllib.request.urlopen(url, timeout=timeout) as response:
        content: bytes = response.read()
    return content


def download(
    data_dir: str | os.PathLike[str],
    mirrors: Sequence[str] = MIRRORS,
    fetch: Callable[[str], bytes] = _fetch,
) -> None:
    """Download those of the four files that ``data_dir`` lacks, check each, and store it whole or not at all.

    Args:
        data_dir: folder for the files; created when it does not exist.
        mirrors: addresses to try in order; ``<mirror><name>.gz`` must be the packed file.
        fetch: reads one address; raises OSError where it cannot.

    Raises:
        DataError: no mirror delivered a file with the right checksum; names the files and where to put them.
    """
    folder = Path(data_dir)
    for file in FILES.values():
        if read_idx(folder, file) is not None:
            continue
        path = folder / f"{file.name}.gz"
        reasons = []
        for mirror in mirrors:
            url = f"{mirror}{file.name}.gz"
            try:
                packed = fetch(url)
                parse_idx(gzip.decompress(packed), file, Path(url))
            except (OSError, EOFError, zlib.error, urllib.error.URLError, DataError) as error:
                reasons.append(f"{url}: {error}")
                continue
            written_whole(path, lambda file, packed=packed: file.write(packed))  # type: ignore[misc]
            break
        else:
            raise DataError(
                f"MNIST could not be downloaded ({'; '.join(reasons) or 'no mirror given'}); {_where_to_put(folder)}"
            )


@functools.cache
def _load(folder: Path) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    arrays: list[np.ndarray] = []
    for file in FILES.values():
        array = read_idx(folder, file)
        if array is None:
            raise MissingData(f"{folder / file.name}(.gz) not found; {_where_to_put(folder)}")
        arrays.append(array)
    train_images, train_labels, test_images, test_labels = (torch.from_numpy(array.copy()) for array in arrays)
    return (
        train_images.flatten(1).float() / 255,
        train_labels.long(),
        test_images.flatten(1).float() / 255,
        test_labels.long(),
    )


def load_mnist(data_dir: str | os.PathLike[str]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Read MNIST from ``data_dir``; never touches the network (:func:`download` does, when asked).

    Returns:
        ``train_inputs`` float32 ``[60000, 784]`` in [0, 1], ``train_targets`` int64 ``[60000]``, ``test_inputs``
        ``[10000, 784]``, ``test_targets`` ``[10000]``. They are cached and shared: do not write into them.

    Raises:
        DataError: a file is missing, truncated or not the original; names the file and both checksums.
    """
    return _load(Path(data_dir).resolve())
