"""Steps that run inside a captured graph: no hook fires when it is replayed, and handle.step() does the rest.

Capturing needs a GPU; here the forward, the backward and the optimizer run as a capture and a replay run them, that is
with the same operations, while the library is told that a graph is being recorded.
"""

from __future__ import annotations

import contextlib

import pytest
import torch
import zoo
from contract_tools import METHODS, Run

import pliant


@contextlib.contextmanager
def recorded(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("pliant.handle.is_in_graph", lambda accelerated: True)
        patch.setattr("pliant.stats.listener.is_in_graph", lambda accelerated: True)
        yield


def one_step(run, step):
    run.optimizer.zero_grad()
    zoo.loss_of(run.model(run.batch(step))).backward()
    run.optimizer.step()


@pytest.mark.parametrize("method", [METHODS["continual_backprop"], pliant.ReDo(tau=1.0, every=1)], ids=["cbp", "redo"])
def test_a_replayed_step_is_the_eager_step(method, monkeypatch):
    eager, graph = Run("mlp", "adam", method), Run("mlp", "adam", method)
    for step in range(8):
        one_step(eager, step)
        with recorded(monkeypatch):
            one_step(graph, step)
        assert graph.handle.num_steps == step  # the hook did nothing
        graph.handle.step()
    assert list(graph.handle.events) == list(eager.handle.events)
    assert len(eager.handle.events) > 0
    for mine, theirs in zip(graph.model.parameters(), eager.model.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_samples_taken_now_and_then_in_a_graph_are_means_since_the_last():
    method = pliant.ContinualBackprop(0.1, maturity_threshold=1, decay_rate=0.9, sample_every=4)
    run = Run("mlp", "sgd", method)
    with pytest.MonkeyPatch.context() as patch:
        for step in range(8):
            with recorded(patch):
                one_step(run, step)
            run.handle.step(run.optimizer)
    assert all(int(entry["age"].max()) == 8 for entry in run.handle.state_dict()["state"][0].values())


def test_step_is_only_for_captured_optimizers():
    run = Run("mlp", "sgd", METHODS["redo"])
    one_step(run, 0)
    with pytest.raises(pliant.IllegalConfiguration, match="captured CUDA graph"):
        run.handle.step()
    with pytest.raises(pliant.IllegalConfiguration, match="not attached"):
        run.handle.step(torch.optim.SGD(run.model.parameters(), lr=0.1))
