"""Shared by tests and doctests: one thread, and fixed seeds for what they do not seed themselves.

``PLIANT_TEST_SEED=7`` starts them from another seed, and lets Hypothesis draw new examples. ``make test-seeds`` does so
with doctests and with the tests that draw examples: what either asserts must hold for whoever runs it.
"""

from __future__ import annotations

import os
import random

import numpy as np
import pytest
import torch
from hypothesis import settings

SEED = int(os.environ.get("PLIANT_TEST_SEED", "0"))

torch.set_num_threads(1)  # also for fixtures of modules, which are made before anything below
settings.register_profile("repeatable", derandomize=True)
if "PLIANT_TEST_SEED" not in os.environ:
    settings.load_profile("repeatable")


@pytest.fixture(autouse=True)
def _one_thread_and_seed():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    random.seed(SEED)
    np.random.seed(SEED)
    torch.manual_seed(SEED)
    yield
    torch.set_num_threads(before)
