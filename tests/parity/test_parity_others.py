"""Replay against a slow reservoir, example by example, in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from parity_tools import OPTIMIZERS
from torch import nn

import pliant
from pliant.interventions import ExperienceReplay
from pliant.write import stream_of
from references.experience_replay import SlowReplay


def network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 13), nn.ReLU(), nn.Linear(13, 3)).double()


def drawer(seed: int):
    """The product's protocol: a stream per seed, and a place in it for each number of examples so far."""
    return lambda seen: np.random.Generator(
        np.random.Philox(key=[stream_of(seed), 0x7265706C6179], counter=[0, 0, 0, seen])
    )


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(("capacity", "ratio"), [(20, 1.0), (5, 2.0), (3, 0.25), (500, 0.5)])
def test_experience_replay_is_the_reservoir_example_by_example(optimizer, capacity, ratio):
    fast, slow = network(), network()
    fast_optimizer, slow_optimizer = (OPTIMIZERS[optimizer](model.parameters()) for model in (fast, slow))
    method = ExperienceReplay(capacity=capacity, ratio=ratio)
    handle = pliant.attach(fast, fast_optimizer, method, example_inputs=torch.randn(2, 6).double(), seed=11)
    reference = SlowReplay(capacity=capacity, ratio=ratio, draws=drawer(11))
    generator = torch.Generator().manual_seed(0)
    for number in range(60):
        size = 8 - number % 3  # the batch size may change
        new = torch.randn(size, 6, generator=generator, dtype=torch.float64), torch.randint(3, (size,))
        batches = handle.batch(new), reference.extend(*new)
        assert all(torch.equal(a, b) for a, b in zip(*batches, strict=True)), f"batch {number}"
        for model, optim, (x, y) in zip((fast, slow), (fast_optimizer, slow_optimizer), batches, strict=True):
            optim.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optim.step()
    assert len(x) > size
    for p, q in zip(fast.parameters(), slow.parameters(), strict=True):
        assert torch.equal(p, q)
    kept = handle.state_dict()["memory"]["0"]["tensors"]["examples"]
    filled = len(reference.memory)
    assert torch.equal(kept["[0]"][:filled], torch.stack([a for a, _ in reference.memory]))
    assert torch.equal(kept["[1]"][:filled], torch.stack([b for _, b in reference.memory]))
