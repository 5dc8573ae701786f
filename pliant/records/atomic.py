"""Files that appear whole under their name, or not at all, whenever the process, the disk or the power fails."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path

from pliant.errors import RecordError

__all__ = ["StorageError", "sync_folder", "write_atomically"]


class StorageError(RecordError):
    """Something could not be written: the disk is full, or the folder may not be written to.

    Example:
        >>> import tempfile
        >>> try:
        ...     write_atomically(Path(tempfile.mkdtemp()) / "no" / "such" / "folder.txt", "1 2 3")
        ... except StorageError as error:
        ...     print(isinstance(error, RecordError), "Free space or choose another folder" in str(error))
        True True
    """


def write_atomically(path: Path, content: str | bytes | memoryview) -> None:
    """Write a file beside its place, flush it to the disk, and move it there; what a kill leaves is a hidden file.

    Raises:
        StorageError: It could not be written; what was at ``path`` is still there, and nothing half-written is.

    Example:
        >>> import pathlib, tempfile
        >>> from pliant.records import write_atomically
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "numbers.txt"
        >>> write_atomically(path, "1 2 3")
        >>> path.read_text()
        '1 2 3'
    """
    data = content.encode("utf-8") if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise StorageError(f"{path}: cannot be written ({error}). Free space or choose another folder") from error
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Flush a folder's own entries, so that a rename survives a power failure; a no-op where unsupported.

    Example:
        >>> import pathlib, tempfile
        >>> from pliant.records import sync_folder
        >>> sync_folder(pathlib.Path(tempfile.mkdtemp()))
    """
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some network file systems cannot; the file itself is flushed
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
