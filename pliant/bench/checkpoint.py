"""Checkpoints at task boundaries: written whole or not at all, read without executing anything."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from pliant import records
from pliant.errors import RecordError

__all__ = [
    "FOLDER",
    "checkpoint_path",
    "experiments_of",
    "find_checkpoints",
    "load_checkpoint",
    "read_checkpoints",
    "remove_checkpoint",
    "save_checkpoint",
    "write_checkpoint",
]

FOLDER = ".checkpoint"
"""Name of the folder inside an experiment's results folder; it exists only while seeds are incomplete."""


def checkpoint_path(folder: Path, seeds: Sequence[int]) -> Path:
    """Where the checkpoint of these seeds lies, in the results folder of their experiment."""
    digest = hashlib.sha256(repr(tuple(seeds)).encode()).hexdigest()[:8]
    return folder / FOLDER / f"seeds-{seeds[0]}-{seeds[-1]}-{digest}.pt"


def save_checkpoint(folder: Path, seeds: Sequence[int], state: dict[str, Any]) -> None:
    """Replace the checkpoint of these seeds by ``state``, atomically.

    Args:
        folder: results folder of the experiment.
        seeds: members of the run.
        state: tensors, numbers, strings, lists and dicts only.

    Raises:
        StorageError: it could not be written; the one before is still there.
    """
    # Into memory first: an error of the disk is then one of the disk, and not one of the format's writer.
    content = io.BytesIO()
    torch.save({**state, "seeds": list(seeds)}, content)
    write_checkpoint(folder, seeds, content.getbuffer())


def write_checkpoint(folder: Path, seeds: Sequence[int], content: bytes | memoryview) -> None:
    """Replace the checkpoint of these seeds by a file's content, atomically.

    Raises:
        StorageError: it could not be written; the one before is still there.
    """
    path = checkpoint_path(folder, seeds)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise records.StorageError(f"{path.parent}: cannot be made ({error}). Free space") from error
    records.write_atomically(path, content)


def _load(path: Path) -> dict[str, Any]:
    try:
        state: dict[str, Any] = torch.load(path, weights_only=True)
        state["seeds"] = [int(seed) for seed in state["seeds"]]
    except (OSError, EOFError, RuntimeError, KeyError, TypeError, ValueError, pickle.UnpicklingError) as error:
        raise RecordError(
            f"{path}: this checkpoint is damaged ({type(error).__name__}: {error}); delete it, and its seeds start "
            "again from their first task"
        ) from error
    return state


def load_checkpoint(folder: Path, seeds: Sequence[int]) -> dict[str, Any] | None:
    """Return the state saved for exactly these seeds, or None.

    Raises:
        RecordError: the file is damaged.
    """
    path = checkpoint_path(folder, seeds)
    return _load(path) if path.is_file() else None


def find_checkpoints(folder: Path) -> list[tuple[int, ...]]:
    """Return the seed sets that have a checkpoint.

    Raises:
        RecordError: a file is damaged.
    """
    return [seeds for seeds, _ in read_checkpoints(folder)]


def read_checkpoints(folder: Path) -> list[tuple[tuple[int, ...], dict[str, Any]]]:
    """Return the seed sets that have a checkpoint, each with its state.

    Raises:
        RecordError: a file is damaged.
    """
    states = [_load(path) for path in sorted((folder / FOLDER).glob("seeds-*.pt"))]
    return [(tuple(state["seeds"]), state) for state in states]


def experiments_of(state: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The configurations of the experiments whose members a state holds, in their order."""
    found = json.loads(state["experiment"])
    several: list[dict[str, Any]] = found.get("experiments", [found])
    return several


def remove_checkpoint(folder: Path, seeds: Sequence[int]) -> None:
    """Delete the checkpoint of these seeds, what a killed writer left of it, and the folder when it is empty."""
    path = checkpoint_path(folder, seeds)
    for leftover in [path, *path.parent.glob(f".{path.name}.*")]:
        leftover.unlink(missing_ok=True)
    if path.parent.is_dir() and not any(path.parent.iterdir()):
        path.parent.rmdir()
