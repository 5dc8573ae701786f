"""Two processes with DistributedDataParallel stay bit-identical, and are one process on the whole batch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).with_name("ddp_worker.py")


@pytest.mark.slow
def test_two_ranks_stay_bit_identical_over_200_steps(tmp_path):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    workers = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(rank), str(tmp_path)], env=environment, stderr=subprocess.PIPE, text=True
        )
        for rank in (0, 1)
    ]
    try:
        errors = [worker.communicate(timeout=240)[1] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    assert [worker.returncode for worker in workers] == [0, 0], "\n".join(errors)
    first, second, alone = (torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("0", "1", "alone"))
    for method in first:
        a, b, c = first[method], second[method], alone[method]
        assert a["events"] == b["events"]
        assert len(a["events"]) > 20
        for key, value in a["model"].items():
            assert torch.equal(value, b["model"][key]), (method, key)
        for key, value in a["state"].items():
            assert torch.equal(value, b["state"][key])
            assert torch.allclose(value.double(), c["state"][key].double(), atol=1e-9), (method, key)
        # averaged statistics: the same resets as one process that sees both halves
        assert a["events"] == c["events"], method
        for key, value in a["model"].items():
            assert torch.allclose(value, c["model"][key], atol=1e-9), (method, key)
    assert first["eval_error"]["events"][0].startswith("the optimizer stepped while the model was in evaluation mode")
