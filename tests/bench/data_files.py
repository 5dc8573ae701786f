"""Small files in the formats of the original data sets, and the real ones where somebody has put them."""

from __future__ import annotations

import gzip
import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
CIFAR_PER_CLASS = {"cifar10": (12, 6), "cifar100": (8, 3)}
NUM_FILES = 12
"""Classes with a file of their own."""
PER_FILE = (5, 3)


def write_cifar(folder: Path, name: str, per_class: tuple[int, int] | None = None) -> Path:
    """A subset in the binary layout: the pixels say which image it is."""
    per_class = per_class or CIFAR_PER_CLASS[name]
    num_classes, label_bytes, train, test = (
        (10, 1, "data_batch_1.bin", "test_batch.bin") if name == "cifar10" else (100, 2, "train.bin", "test.bin")
    )
    root = folder / ("cifar-10-batches-bin" if name == "cifar10" else "cifar-100-binary")
    root.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for file, each in ((train, per_class[0]), (test, per_class[1])):
        labels = rng.permutation(np.repeat(np.arange(num_classes), each))
        rows = rng.integers(0, 256, (len(labels), label_bytes + 3072), dtype=np.uint8)
        rows[:, :label_bytes] = 0
        rows[:, label_bytes - 1] = labels
        rows.tofile(root / file)
    return root


def write_classes(folder: Path, inside: str = "", dtype: type = np.uint8, size: int = 32) -> Path:
    """One file for each class."""
    root = folder / inside if inside else folder
    root.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(1)
    for label in range(NUM_FILES):
        images = rng.integers(0, 256, (sum(PER_FILE), 3, size, size))
        np.save(root / f"{label}.npy", images.astype(dtype) if dtype is np.uint8 else (images / 255).astype(dtype))
    return folder


def idx_content(array: np.ndarray) -> bytes:
    """An idx file of unsigned bytes."""
    return struct.pack(f">{1 + array.ndim}I", 0x0800 | array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def write_idx(path: Path, array: np.ndarray, packed: bool = False) -> None:
    """Plain or gzipped."""
    content = idx_content(array)
    path.parent.mkdir(parents=True, exist_ok=True)
    if packed:
        path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(content))
    else:
        path.write_bytes(content)


def shared_data() -> Path:
    """The folder ``shared/data`` beside the repository (or the folder of its worktrees); skips where there is none."""
    for parent in ROOT.parents[:2]:
        if (parent / "shared" / "data" / "prepare.py").is_file():
            return parent / "shared" / "data"
    pytest.skip("there is no ../shared with real data files")


def prepared_data(target: Path) -> Path:
    """Real files in the layouts that the loaders read: a folder that is named, or unpacked from ``shared``."""
    named = os.environ.get("PLIANT_REAL_DATA")
    if named:
        return Path(named)
    script = shared_data() / "prepare.py"
    done = subprocess.run([sys.executable, str(script), str(target)], capture_output=True, text=True, check=False)
    if "No module named 'PIL'" in done.stderr:
        pytest.skip("unpacking ../shared needs pillow; PLIANT_REAL_DATA may name a folder that is unpacked already")
    assert done.returncode == 0, done.stderr
    return target
