"""On a GPU: the random states of every device stay as they are, and labels out of range are seen before a kernel."""

from __future__ import annotations

import pytest
import torch
from probe_tools import adam, everything, inputs, is_same, network
from torch import nn

from pliant.errors import IllegalConfiguration
from pliant.fresh import fresh_twin
from pliant.probe import RandomLabels, live_twin, probe

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

TASK = RandomLabels(inputs=inputs(), num_classes=4, batch_size=16)


def test_nothing_changes_on_the_device():
    model = network().cuda()
    optimizer = adam(model.parameters())
    before, states = everything(model, optimizer), torch.cuda.get_rng_state_all()
    found = probe(model, TASK, optimizer=optimizer, moments="carried", steps=10, seeds=2)
    assert is_same(everything(model, optimizer), before)
    assert is_same(torch.cuda.get_rng_state_all(), states)
    assert found.progress.num == 2
    assert fresh_twin(model, seed=0)[0].weight.is_cuda


def test_a_label_out_of_range_does_not_reach_a_kernel():
    with pytest.raises(IllegalConfiguration, match="label 7"):
        probe(network().cuda(), (inputs(8), torch.full((8,), 7)), optimizer=adam, steps=3)
    assert float(torch.ones(3, device="cuda").sum()) == 3


def test_the_live_run_is_the_same_to_the_bit():
    def run(watched):
        torch.manual_seed(0)
        model = network().cuda()
        optimizer = adam(model.parameters())
        live = live_twin(model, optimizer, every=10, window=8) if watched else None
        for x, y in TASK.batches(0, 60):
            batch = x.cuda(), y.cuda()
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(batch[0]), batch[1]).backward()
            optimizer.step()
            if live is not None:
                live.step(batch)
        return everything(model, optimizer), torch.cuda.get_rng_state_all()

    assert is_same(run(True), run(False))
