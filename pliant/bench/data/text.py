"""Plain text as character ids: one fixed alphabet for every text, so that models of different texts are alike."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np

from pliant.bench.data.files import DataError, MissingData, digest

__all__ = ["ALPHABET", "NUM_SYMBOLS", "SHAKESPEARE", "encode", "read_texts"]

ALPHABET = "\n" + "".join(map(chr, range(32, 127)))
"""Newline and the printable characters of ASCII; the id of a character is its place, all others share the last id."""

NUM_SYMBOLS = len(ALPHABET) + 1
"""Ids that :func:`encode` uses."""

SHAKESPEARE = (
    "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
    "sha256:86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
)
"""Address and checksum of the text known as tiny Shakespeare, 1,115,394 characters."""


def encode(text: str) -> np.ndarray:
    r"""Return the ids of the characters, int64 ``[len(text)]``.

    >>> encode("\n a~\u00e9").tolist()
    [0, 1, 66, 95, 96]
    """
    codes = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32).astype(np.int64)
    ids = np.where((codes >= 32) & (codes < 127), codes - 31, NUM_SYMBOLS - 1)
    return np.where(codes == 10, 0, ids)


@functools.lru_cache(maxsize=4)
def read_texts(folder: Path) -> tuple[str, ...]:
    """Read every ``.txt`` file of ``folder``, in the order of their names; a single file may be named itself.

    Raises:
        DataError: there is none, or one is empty or not UTF-8; names its size and checksum.
    """
    paths = [folder] if folder.is_file() else sorted(folder.glob("*.txt")) if folder.is_dir() else []
    if not paths:
        raise MissingData(f"{folder}: no .txt file found")
    texts = []
    for path in paths:
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise DataError(
                f"{path}: not UTF-8 text ({error.reason} at byte {error.start} of {path.stat().st_size}; SHA-256 "
                f"{digest(path)})"
            ) from error
        if not text.strip():
            raise DataError(f"{path}: holds no text ({path.stat().st_size} bytes)")
        texts.append(text)
    return tuple(texts)
