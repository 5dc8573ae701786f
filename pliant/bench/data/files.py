"""Where data files are looked for, and what is said when they are absent or not what they should be."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO

from pliant.errors import PliantError

__all__ = ["ENVIRONMENT", "DataError", "MissingData", "data_folder", "digest", "written_whole"]

ENVIRONMENT = "PLIANT_DATA_DIR"
"""The environment variable that names the folder with all data sets."""


class DataError(PliantError):
    """A data file is missing, damaged, or not the one that was expected."""


class MissingData(DataError):
    """A data file is not there."""


def data_folder(data_dir: str | os.PathLike[str], name: str) -> Path:
    """Return the folder of the data set ``name``.

    ``data_dir`` may be the folder of the data set itself or one that has it as a sub-folder. Without it, the folder is
    looked for in what :data:`ENVIRONMENT` names, else in ``pliant`` in the user's cache.

    Args:
        data_dir: what the user said; empty: nothing.
        name: the data set's own folder, such as ``cifar-100-binary``.
    """
    if data_dir:
        inside = Path(data_dir) / name
        return inside if inside.is_dir() else Path(data_dir)
    named = os.environ.get(ENVIRONMENT)
    if named:
        return data_folder(named, name)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pliant" / name


def digest(path: Path, algorithm: str = "sha256") -> str:
    """Return the checksum of a file, in hex; it is read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def written_whole(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Create ``path`` with what ``write`` puts into a file: whole or not at all, also when the power fails.

    Args:
        path: the file; its folder is made.
        write: is given the open file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
