"""What only a GPU can show: no step waits for it, captured graphs, its generators; skipped where there is none.

The same decisions and edits are tested on a CPU in ``test_contracts_accelerator.py``.
"""

from __future__ import annotations

import contextlib
import io
import math

import pytest
import torch
import zoo
from contract_tools import METHODS, Run, assert_same_bits

from pliant.interventions import ContinualBackprop

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@contextlib.contextmanager
def nothing_waits():
    """Every operation that synchronises with the device is an error."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.fixture(autouse=True)
def deterministic():
    torch.backends.cudnn.deterministic, before = True, torch.backends.cudnn.deterministic
    yield
    torch.backends.cudnn.deterministic = before


def train(run, start, stop, batches=None):
    for step in range(start, stop):
        run.optimizer.zero_grad()
        run.model(run.batch(step) if batches is None else batches[step]).square().mean().backward()
        run.optimizer.step()
        if step % 3 == 2:
            run.handle.task_boundary()
    return run


@pytest.mark.parametrize("optimizer", ["sgd_fused", "adam_fused", "adam_foreach"])
@pytest.mark.parametrize("method", METHODS)
def test_no_step_waits_for_the_device(method, optimizer):
    run = Run("conv_bn_flatten", optimizer, METHODS[method], device="cuda")
    batches = [run.batch(step) for step in range(14)]
    train(run, 0, 8, batches)
    torch.cuda.synchronize()
    with nothing_waits():
        train(run, 8, 14, batches)
    assert all(p.isfinite().all() for p in run.model.parameters())
    if method in ("continual_backprop", "redo"):
        assert sum(int(total) for total in run.handle.num_resets.values()) > 0


@pytest.mark.parametrize("method", METHODS)
def test_the_same_seed_gives_the_same_bits_and_resuming_continues_them(method):
    whole = train(Run("conv_bn_flatten", "adam", METHODS[method], device="cuda"), 0, 8)
    again = train(Run("conv_bn_flatten", "adam", METHODS[method], device="cuda"), 0, 8)
    assert_same_bits(whole.bits(), again.bits())
    cut = train(Run("conv_bn_flatten", "adam", METHODS[method], device="cuda"), 0, 4)
    rest = Run("conv_bn_flatten", "adam", METHODS[method], seed=1, handle_seed=8, device="cuda").load(cut.checkpoint())
    assert_same_bits(whole.bits(), train(rest, 4, 8).bits())


def test_a_checkpoint_loads_on_the_host_first():
    """``torch.load(map_location="cpu")``, as people do it: state and generators find their device again."""
    run = train(Run("mlp", "adam", METHODS["continual_backprop"], device="cuda"), 0, 4)
    file = io.BytesIO()
    torch.save(run.handle.state_dict(), file)
    file.seek(0)
    other = Run("mlp", "adam", METHODS["continual_backprop"], device="cuda")
    other.handle.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    a, b = run.handle.state_dict(), other.handle.state_dict()
    assert a["random"].keys() == b["random"].keys() == {"cuda"}
    assert all(torch.equal(x, y) for x, y in zip(a["random"]["cuda"], b["random"]["cuda"], strict=True))
    assert all(value.is_cuda for entries in b["state"][0].values() for value in entries.values())


@pytest.mark.parametrize("optimizer", ["adam", "adam_fused", "sgd_momentum", "sgd_fused"])
@pytest.mark.parametrize("method", ["continual_backprop", "redo", "l2"])
def test_a_skipped_step_changes_nothing(method, optimizer):
    run = Run("mlp", optimizer, METHODS[method], device="cuda")
    scaler = torch.amp.GradScaler("cuda", init_scale=16.0, growth_interval=1000)
    for step in range(9):
        run.optimizer.zero_grad()
        with torch.autocast("cuda", torch.float16):
            loss = zoo.loss_of(run.model(run.batch(step)))
        overflows = step in (2, 5)
        scaler.scale(loss * math.inf if overflows else loss).backward()
        before = run.bits()
        scaler.step(run.optimizer)
        scaler.update()
        if overflows:
            after = run.bits()
            for key in before:
                if key.startswith(("model.", "optimizer.")):
                    assert torch.equal(before[key], after[key]), key
    for entries in (
        entries for per_group in run.handle.state_dict()["state"].values() for entries in per_group.values()
    ):
        assert "age" not in entries or int(entries["age"].max()) <= 7


def test_counters_do_not_saturate_in_bfloat16():
    method = ContinualBackprop(replacement_rate=0.01, maturity_threshold=300, decide_every=1)
    run = Run("mlp", "sgd_fused", method, dtype=torch.bfloat16, device="cuda")
    train(run, 0, 300, [run.batch(step % 3) for step in range(300)])
    for entry in run.handle.state_dict()["state"][0].values():
        assert entry["age"].dtype == torch.int64
        assert int(entry["age"].min()) == 300


@pytest.mark.parametrize("method", ["continual_backprop", "redo"])
def test_a_captured_step_is_the_eager_step(method):
    """Forward, backward and optimizer in one graph; ``handle.step()`` after each replay."""

    def make():
        run = Run("mlp", "sgd_fused", METHODS[method], device="cuda", dtype=torch.float64)
        return run, run.batch(0).clone()

    def step(run, x):
        run.optimizer.zero_grad(set_to_none=False)
        run.model(x).square().mean().backward()
        run.optimizer.step()

    eager, x = make()
    for index in range(12):
        x.copy_(eager.batch(index))
        step(eager, x)

    captured, x = make()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for index in range(3):
            x.copy_(captured.batch(index))
            step(captured, x)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step(captured, x)
    for index in range(3, 12):
        x.copy_(captured.batch(index))
        graph.replay()
        captured.handle.step()
    assert list(eager.handle.events) == list(captured.handle.events)
    assert len(eager.handle.events) > 0
    for a, b in zip(eager.model.parameters(), captured.model.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-9)
