"""All parts together are the whole, and no test is in two."""

from __future__ import annotations

import pytest
from shards import part_of


@pytest.mark.parametrize("num", [1, 3, 7, 40])
def test_the_parts_are_the_whole_once(num):
    parts = [part_of(range(100), f"{k}/{num}") for k in range(1, num + 1)]
    assert sorted(item for part in parts for item in part) == list(range(100))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize("shard", ["0/3", "4/3", "3", "1/0", "a/b", "-1/3", ""])
def test_a_shard_that_is_none_is_refused(shard):
    with pytest.raises(ValueError, match="k/n"):
        part_of(range(3), shard)
