"""Forward passes that nobody records."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

__all__ = ["depth", "unrecorded"]

depth = 0
"""Above zero while a forward pass runs that is Pliant's own (an export, too), so that no listener may count it."""


@contextlib.contextmanager
def unrecorded() -> Iterator[None]:
    """No attached intervention or monitor hears the forward passes inside.

    Example:
        >>> from pliant import quiet
        >>> with unrecorded():
        ...     quiet.depth
        1
    """
    global depth
    depth += 1
    try:
        yield
    finally:
        depth -= 1
