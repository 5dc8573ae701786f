"""The idx format of MNIST and EMNIST: a magic number, the sizes, and one unsigned byte per element.

Source: LeCun, Cortes & Burges, The MNIST database of handwritten digits ("the IDX file format").
"""

from __future__ import annotations

import gzip
import hashlib
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import final

import numpy as np

from pliant.bench.data.files import DataError

__all__ = ["IdxFile", "parse_idx", "read_idx"]


@final
@dataclass(frozen=True)
class IdxFile:
    """One file: its name, the shape of its array and the SHA-256 of its decompressed bytes (empty: not known)."""

    name: str
    shape: tuple[int, ...]
    sha256: str = ""

    @property
    def magic(self) -> int:
        """The first four bytes: 0x0000, the type (0x08, unsigned byte), the number of dimensions."""
        return 0x0800 | len(self.shape)

    @property
    def num_bytes(self) -> int:
        """Header (magic and one big-endian uint32 per dimension) plus one byte per element."""
        return 4 + 4 * len(self.shape) + int(np.prod(self.shape))

    def remedy(self, digest: str) -> str:
        """What to do about content with another checksum."""
        wanted = f"expected SHA-256 {self.sha256}, this" if self.sha256 else f"{self.num_bytes} bytes expected; this"
        return f"{wanted} content has {digest}; replace the file by the original one"


def parse_idx(content: bytes, file: IdxFile, path: Path) -> np.ndarray:
    """Decode one idx file, refusing anything but the expected bytes.

    Args:
        content: the decompressed file.
        file: what it should be.
        path: where it came from, for messages.

    Returns:
        uint8 of ``file.shape``.

    Raises:
        DataError: truncated, too long, another magic number, shape or content; names both checksums.
    """
    digest = hashlib.sha256(content).hexdigest()
    remedy = file.remedy(digest)
    header = 4 + 4 * len(file.shape)
    if len(content) < header:
        raise DataError(f"{path}: truncated, {len(content)} of {file.num_bytes} bytes; {remedy}")
    magic, *shape = struct.unpack(f">{1 + len(file.shape)}I", content[:header])
    if magic != file.magic:
        raise DataError(f"{path}: magic number {magic:#010x} is not {file.magic:#010x} of {file.name}; {remedy}")
    if tuple(shape) != file.shape:
        raise DataError(f"{path}: holds an array of shape {tuple(shape)} instead of {file.shape}; {remedy}")
    if len(content) != file.num_bytes:
        state = "truncated" if len(content) < file.num_bytes else "too long"
        raise DataError(f"{path}: {state}, {len(content)} of {file.num_bytes} bytes; {remedy}")
    if file.sha256 and digest != file.sha256:
        raise DataError(f"{path}: right size but wrong content; {remedy}")
    return np.frombuffer(content, dtype=np.uint8, offset=header).reshape(file.shape)


def read_idx(folder: Path, file: IdxFile) -> np.ndarray | None:
    """Return the array of ``file`` from ``folder``, plain or gzipped, or None where neither form of it exists.

    Raises:
        DataError: the file is damaged or not the expected one.
    """
    for path in (folder / file.name, folder / f"{file.name}.gz"):
        if not path.is_file():
            continue
        raw = path.read_bytes()
        if path.suffix == ".gz":
            try:
                raw = gzip.decompress(raw)
            except (OSError, EOFError, zlib.error) as error:
                digest = hashlib.sha256(raw).hexdigest()
                wanted = f"and its content should have {file.sha256}" if file.sha256 else f"of {len(raw)} bytes"
                raise DataError(
                    f"{path}: cannot be decompressed ({error}); the packed file has SHA-256 {digest} {wanted}; "
                    "replace the file by the original one"
                ) from error
        return parse_idx(raw, file, path)
    return None
