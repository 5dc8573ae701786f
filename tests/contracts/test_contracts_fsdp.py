"""FSDP2 over two processes is one process on the whole batch: weights, moments, buffers, statistics and events."""

from __future__ import annotations

import fsdp_worker
import pytest
import torch
import two_processes


@pytest.mark.slow
def test_sharded_training_equals_one_process(tmp_path):
    """Row and column edits of sharded tensors, uneven and empty parts, whole-tensor methods, hybrid sharding."""
    first, second = two_processes.run("fsdp_worker", "equality", tmp_path)
    refusals = first.pop("refusals")
    assert second.pop("refusals") == refusals
    skipped, other = first.pop("overflow"), second.pop("overflow")
    for name, result in skipped.items():
        assert result["num_steps"] == other[name]["num_steps"] == 7
        assert result["events"] == other[name]["events"] != []
        assert all(torch.equal(value, other[name]["tensors"][key]) for key, value in result["tensors"].items())
    measured, alone = (first.pop("measured"), second.pop("measured")), fsdp_worker.measured(None)
    assert str(measured[0]) == str(measured[1]), "NaN included"
    assert measured[0].keys() == alone.keys()
    assert measured[0]["gradient_norm"]["model"] == pytest.approx(alone["gradient_norm"]["model"], rel=1e-5)
    assert measured[0]["weight_magnitude"]["model"] == pytest.approx(alone["weight_magnitude"]["model"], abs=1e-12)
    assert measured[0]["dormant_fraction"].keys() == alone["dormant_fraction"].keys()
    mixed, other = first.pop("mixed_precision"), second.pop("mixed_precision")
    assert mixed["events"] == other["events"]
    assert any("heads" in event[1] for event in mixed["events"])
    for key, value in mixed["tensors"].items():  # computed in bfloat16, but kept, averaged and reset in float32
        assert torch.equal(value, other["tensors"][key]), key
        assert value.dtype == (torch.int64 if key.endswith(("age", "since")) else torch.float32), key
    assert first.keys() == {*fsdp_worker.RUNS, "hybrid"}
    for run, a in first.items():
        b = second[run]
        alone = fsdp_worker.Run(*fsdp_worker.RUNS["several" if run == "hybrid" else run], None).train().result()
        assert a["events"] == b["events"] == alone["events"], run
        methods = fsdp_worker.RUNS["several" if run == "hybrid" else run][1]
        edits_units = any(one.unit_pattern() for one in (methods if isinstance(methods, list) else [methods]))
        assert a["events"] or not edits_units, run
        for device, states in alone["random"].items():
            for state, mine in zip(states, a["random"][device], strict=True):
                assert torch.equal(state, mine), f"{run}: the generators are elsewhere"
        assert a["tensors"].keys() == alone["tensors"].keys()
        for key, value in alone["tensors"].items():
            assert torch.equal(a["tensors"][key], b["tensors"][key]), f"{run}: {key} differs between the processes"
            difference = (a["tensors"][key].double() - value.double()).abs().max()
            assert difference < 1e-9, f"{run}: {key} differs from one process by {difference}"

    assert refusals["tensor_parallel"].startswith("NotYetSupported: '0.weight' (shape (4, 6), placements S")
    assert "tensor parallelism is not supported" in refusals["tensor_parallel"]
    assert refusals["both"].startswith("NotYetSupported: '0.weight'")
    assert "split in a way that fully_shard alone does not" in refusals["both"]
    assert "is sharded by fully_shard: find the units of the plain model before sharding it" in refusals["no_units"]
    assert "a stack of members cannot be spread over processes" in refusals["members"]
