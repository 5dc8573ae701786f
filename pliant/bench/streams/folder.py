"""A stream of your own from a folder: one ``.npz`` file per task, and a page that says what they are."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, final

import numpy as np
import torch
from torch import Tensor

from pliant.bench.data.files import DataError, MissingData, digest, written_whole
from pliant.bench.streams.base import Task, generator, require
from pliant.bench.streams.own import as_task, checked
from pliant.errors import IllegalConfiguration

__all__ = ["FolderStream", "write_folder"]

PAGE = "stream.json"
_FORMAT = 1
_ARRAYS = ("inputs", "targets", "test_inputs", "test_targets", "valid_inputs", "valid_targets")


def write_folder(
    tasks: Iterable[Task | Sequence[Any]],
    folder: str | Path,
    *,
    num_classes: int,
    loss: str = "cross_entropy",
    score: str = "accuracy",
    num_epochs: int = 1,
    batch_size: int = 16,
) -> str:
    """Write tasks into a folder that :class:`FolderStream` reads; one task is held at a time.

    Args:
        tasks: any iterable of tasks, or of tuples ``(inputs, targets)`` or ``(inputs, targets, test_inputs,
            test_targets)`` of tensors or arrays.
        folder: made where it does not exist; must not hold a stream already.
        num_classes: outputs of a model: labels are below it, numbers have so many columns.
        loss: one of :data:`pliant.bench.streams.base.LOSSES`.
        score: the online measure.
        num_epochs: passes over tasks that are given as tuples.
        batch_size: examples per update of tasks that are given as tuples.

    Returns:
        The checksum of the page, for the option ``digest``.

    Raises:
        IllegalConfiguration: no tasks, a task that cannot be trained on, or a folder that is in use.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     made = write_folder(((np.random.rand(8, 3), np.arange(8) % 2) for _ in range(2)), folder, num_classes=2)
    ...     FolderStream(folder, digest=made).task(1, seed=0).inputs.shape
    torch.Size([8, 3])
    """
    root = Path(folder)
    if (root / PAGE).exists():
        raise IllegalConfiguration(f"{root} holds a stream already; name an empty folder")
    entries: list[dict[str, Any]] = []
    shape: tuple[int, ...] = ()
    for index, given in enumerate(tasks):
        task = given if isinstance(given, Task) else as_task(given, num_epochs, batch_size, index)
        checked("FolderStream", task, f"task {index}", loss, num_classes, shape)
        shape = shape or tuple(task.inputs.shape[1:])
        arrays = {name: getattr(task, name).numpy() for name in _ARRAYS if getattr(task, name) is not None}
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)
        content = buffer.getbuffer()
        name = f"task-{index:05d}.npz"
        written_whole(root / name, lambda file, content=content: file.write(content))  # type: ignore[misc]
        entries.append(
            {
                "file": name,
                "sha256": hashlib.sha256(content).hexdigest(),
                "num_epochs": task.num_epochs,
                "batch_size": task.batch_size,
                "active_outputs": task.active_outputs,
                "reset_head": task.reset_head,
                "name": task.name,
            }
        )
    if not entries:
        raise IllegalConfiguration("write_folder: there are no tasks")
    page = {
        "format": _FORMAT,
        "num_classes": num_classes,
        "loss": loss,
        "score": score,
        "input_shape": shape,
        "input_dtype": "float32" if task.inputs.is_floating_point() else "int64",
        "tasks": entries,
    }
    text = json.dumps(page, indent=1).encode()
    written_whole(root / PAGE, lambda file: file.write(text))
    return hashlib.sha256(text).hexdigest()


@lru_cache(maxsize=8)
def _page(folder: Path, wanted: str) -> dict[str, Any]:
    path = folder / PAGE
    if not path.is_file():
        raise MissingData(f"{path}: not found; pliant.bench.streams.folder.write_folder makes such a folder")
    found = digest(path)
    if wanted and found != wanted:
        raise DataError(f"{path}: SHA-256 {found} is not {wanted}, which the option digest asks for")
    try:
        page: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        known = page["format"] == _FORMAT and page["tasks"] and page["input_shape"] and page["num_classes"] >= 1
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: damaged ({error}; SHA-256 {found}); write the folder again") from error
    if not known:
        raise DataError(f"{path}: format {page['format']!r} is not {_FORMAT}, or it says of no task (SHA-256 {found})")
    return page


def _read(path: Path, wanted: str) -> dict[str, Tensor]:
    if not path.is_file():
        raise MissingData(f"{path}: not found")
    content = path.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != wanted:
        raise DataError(f"{path}: {len(content)} bytes with SHA-256 {found}, not {wanted}; write the folder again")
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


_remembered = lru_cache(maxsize=2)(_read)


@final
@dataclass(frozen=True)
class FolderStream:
    """The tasks of a folder that ``write_folder`` has written, in their order or in one of the seed's own.

    All seeds see the same tasks; the order of examples, the initial weights and, if asked for, the order of tasks
    differ.

    Attributes:
        data_dir: the folder. It says which data it is, so it is part of an experiment's identity.
        digest: checksum of its ``stream.json``; with it, an experiment's identity fixes every byte of the data.
        shuffle_tasks: every seed has the tasks in an order of its own.
        num_epochs: passes over every task; 0: what the folder says.
        batch_size: examples per update; 0: what the folder says.

    Source: your data.
    """

    name: ClassVar[str] = "folder"
    title: ClassVar[str] = "A folder of tasks"

    data_dir: str = ""
    digest: str = ""
    shuffle_tasks: bool = False
    num_epochs: int = 0
    batch_size: int = 0

    def __post_init__(self) -> None:
        require(self.num_epochs >= 0, self, "num_epochs must not be negative")
        require(self.batch_size >= 0, self, "batch_size must not be negative")

    @property
    def _about(self) -> dict[str, Any]:
        require(bool(self.data_dir), self, "name the folder with data_dir (--data-dir)")
        return _page(Path(self.data_dir).resolve(), self.digest)

    @property
    def requires_data(self) -> str:
        """Your folder."""
        return "a folder of tasks"

    @property
    def num_inputs(self) -> int:
        """Numbers of an example."""
        return int(np.prod(self._about["input_shape"]))

    @property
    def num_classes(self) -> int:
        """Outputs of a model."""
        return int(self._about["num_classes"])

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one example."""
        return tuple(self._about["input_shape"])

    @property
    def input_dtype(self) -> torch.dtype:
        """float32 or int64."""
        return torch.int64 if self._about["input_dtype"] == "int64" else torch.float32

    @property
    def loss(self) -> str:
        """What is minimised."""
        return str(self._about["loss"])

    @property
    def score(self) -> str:
        """The online measure."""
        return str(self._about["score"])

    @property
    def max_tasks(self) -> int:
        """Tasks in the folder."""
        return len(self._about["tasks"])

    def prepare(self) -> None:
        """Check every file of the folder.

        Raises:
            DataError: a file is missing or damaged; names the checksums.
        """
        for entry in self._about["tasks"]:
            _read(Path(self.data_dir).resolve() / entry["file"], entry["sha256"])

    def task(self, index: int, seed: int) -> Task:
        """Return task ``index``; see :class:`pliant.bench.streams.base.Stream`."""
        about = self._about
        require(0 <= index < self.max_tasks, self, f"there is no task {index} (of {self.max_tasks})")
        place = index
        if self.shuffle_tasks:
            place = int(generator(self.name, seed).permutation(self.max_tasks)[index])
        entry = about["tasks"][place]
        arrays = _remembered(Path(self.data_dir).resolve() / entry["file"], entry["sha256"])
        tensors: dict[str, Any] = {name: tensor.clone() for name, tensor in arrays.items()}
        active = entry["active_outputs"]
        task = Task(
            num_epochs=self.num_epochs or int(entry["num_epochs"]),
            batch_size=self.batch_size or int(entry["batch_size"]),
            order_key=(seed, index),
            active_outputs=None if active is None else tuple(active),
            reset_head=bool(entry["reset_head"]),
            name=str(entry["name"]),
            **tensors,
        )
        return checked(self, task, f"task {place}", self.loss, self.num_classes, self.input_shape)
