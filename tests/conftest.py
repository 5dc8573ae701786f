"""Shared by all tests; what doctests share with them is in the folder above."""

from __future__ import annotations

import os
import signal

import pytest
import torch
from shards import part_of

# Started in the background, a suite inherits that Ctrl-C is ignored, and so would the programs that tests interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(config, items):
    """With ``PLIANT_SHARD=3/40``, only the third of forty parts of what was collected."""
    if "PLIANT_SHARD" in os.environ:
        chosen = part_of(items, os.environ["PLIANT_SHARD"])
        kept = set(map(id, chosen))
        config.hook.pytest_deselected(items=[item for item in items if id(item) not in kept])
        items[:] = chosen


@pytest.fixture(scope="module")
def single_process_group(tmp_path_factory):
    path = tmp_path_factory.mktemp("group") / "store"
    torch.distributed.init_process_group("gloo", init_method=f"file://{path}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()
