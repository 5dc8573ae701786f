"""Parts of a test run that is too long for one night: the same tests in every process and on every machine."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def part_of(items: Sequence[T], shard: str) -> list[T]:
    """Every n-th item from the k-th on, for ``"k/n"``: neighbours, which cost alike, go into different parts.

    >>> part_of("abcdefg", "2/3")
    ['b', 'e']
    """
    found = re.fullmatch(r"(\d+)/(\d+)", shard)
    if found is None or not 1 <= int(found[1]) <= int(found[2]):
        raise ValueError(f"a shard is k/n with 1 <= k <= n, as 3/40; got {shard!r}")
    return list(items[int(found[1]) - 1 :: int(found[2])])
