"""Two processes with DistributedDataParallel stay bit-identical, and are one process on the whole batch."""

from __future__ import annotations

import ddp_worker
import pytest
import torch
import two_processes


def same(a, b, *, to_the_bit):
    assert a["events"] == b["events"]
    for part in ("model", "state"):
        assert a[part].keys() == b[part].keys()
        for key, value in a[part].items():
            if to_the_bit:
                assert torch.equal(value, b[part][key]), key
            else:
                assert torch.allclose(value.double(), b[part][key].double(), atol=1e-9), key


@pytest.mark.slow
def test_two_processes_are_one(tmp_path):
    """Over 200 steps with resets, and with no_sync, static graphs, bucket views, unused parameters, uneven batches."""
    first, second = two_processes.run("ddp_worker", "everything", tmp_path)
    errors = first.pop("errors")
    assert second.pop("errors") == errors
    for name, result in first.items():
        same(result, second[name], to_the_bit=True)
    for name, run in ddp_worker.SAME.items():
        alone = run(None).result()
        if name == "uneven":  # with unequal halves the averaged gradients are others, and so would the moments be
            assert any(value.any() for value in alone["state"].values())
        same(first[name], alone, to_the_bit=False)
        assert len(alone["events"]) > 4 or name in ("shrink_and_perturb", "uneven"), name

    # a group that only one process has seen: the mean over its samples, and resets in both
    groups = {event[1] for event in first["one_expert_each"]["events"]}
    assert {"experts.0.0", "experts.1.0"} <= groups
    for rank in (0, 1):
        alone = ddp_worker.Run(ddp_worker.QUICK, None, model=ddp_worker.two_experts(), used=(rank,), lr=0.0)
        for step in range(3):
            x, y = ddp_worker.halves(*ddp_worker.batch(step), rank)
            alone.optimizer.zero_grad()
            torch.nn.functional.cross_entropy(alone.model(x), y).backward()
            alone.optimizer.step()
        key = f"0.experts.{rank}.0.activation"
        assert torch.allclose(first["one_expert_each_at_rest"]["state"][key], alone.result()["state"][key], atol=1e-12)

    assert errors["eval"].startswith("the optimizer stepped while the model was in evaluation mode")
    assert "join" in errors["join"]
    assert "the same number of batches" in errors["join"]
