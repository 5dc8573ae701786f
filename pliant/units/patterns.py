"""Patterns of names."""

from __future__ import annotations

import fnmatch

__all__ = ["matches"]


def matches(name: str, pattern: str) -> bool:
    """Whether a tensor's name matches a shell-style pattern, or one of several with commas between.

    A pattern that names a module matches everything in it, as it does for unit groups.

    Example:
        >>> [matches("head.0.weight", pattern) for pattern in ("head", "*.weight", "body, head.0", "*.bias")]
        [True, True, True, False]
    """
    if pattern == "*":
        return True
    parts = [part.strip() for part in pattern.split(",")]
    return any(fnmatch.fnmatchcase(name, form) for part in parts for form in (part, f"{part}.*"))
