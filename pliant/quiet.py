"""Forward passes that nobody records."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

__all__ = ["is_unrecorded", "unrecorded"]

_depth = 0


def is_unrecorded() -> bool:
    """Whether the forward pass that is running belongs to Pliant itself (an export, too): no listener may count it."""
    return _depth > 0


@contextlib.contextmanager
def unrecorded() -> Iterator[None]:
    """No attached intervention or monitor hears the forward passes inside.

    Example:
        >>> with unrecorded():
        ...     is_unrecorded()
        True
    """
    global _depth
    _depth += 1
    try:
        yield
    finally:
        _depth -= 1
