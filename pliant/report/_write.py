"""Files that are there whole or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path

from pliant.errors import RecordError


def write_text(path: str | os.PathLike[str], text: str) -> Path:
    """Write a text file in one move, so that an old report survives a failed new one.

    Raises:
        RecordError: If the file cannot be written; nothing has changed then.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, encoding="utf-8", errors="replace", newline="\n")
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise RecordError(f"{path}: cannot be written ({error}). Choose another path, or free some space") from error
    return path
