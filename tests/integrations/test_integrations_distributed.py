"""Two processes through the adapters: DistributedDataParallel and FSDP2 in both frameworks."""

from __future__ import annotations

import sys
from pathlib import Path

import frameworks
import pytest
import torch

sys.path.append(str(Path(__file__).parents[1] / "contracts"))
import two_processes

transformers = pytest.importorskip("transformers")
pytest.importorskip("lightning")
pytestmark = [pytest.mark.filterwarnings(rule) for rule in frameworks.IGNORED]


@pytest.mark.wide
@pytest.mark.slow
def test_two_processes_stay_identical(tmp_path):
    first, second = two_processes.run("frameworks_worker", "everything", tmp_path, timeout=500)
    for job, one in first.items():
        other = second[job]
        assert one["events"] == other["events"], job
        assert len(one["events"]) > 3, job
        assert all(torch.equal(value, other["tensors"][name]) for name, value in one["tensors"].items()), job
    of_trainer = first["huggingface"]
    assert of_trainer["wrapped"] == "DistributedDataParallel"
    for name, value in (of_trainer["resumed"] or {}).items():
        assert torch.equal(value, of_trainer["tensors"][name]), name
    resumes = tuple(map(int, transformers.__version__.split(".")[:2])) >= (5, 20)  # 5.0 not, with Pliant or without
    assert not resumes or of_trainer["resumed"] is not None
    assert of_trainer["readings"] == second["huggingface"]["readings"]
    assert of_trainer["readings"]["pliant/num_resets"] > 0
    of_sharded = first["huggingface_sharded"]
    assert of_sharded["kinds"] == ["DTensor"]
    assert of_sharded["events"] == of_trainer["events"]
    for name, value in of_sharded["tensors"].items():
        torch.testing.assert_close(value, of_trainer["tensors"][name], atol=1e-5, rtol=1e-4)
        assert not resumes or torch.equal(value, of_sharded["resumed"][name]), name
    assert "found before" in of_sharded["late"]
    assert "state for every weight" in of_sharded["per_weight"]
    copied, sharded = first["lightning"], first["lightning_sharded"]
    assert copied["strategy"] == "DDPStrategy"
    assert copied["events"] == sharded["events"]
    for name, value in sharded["tensors"].items():
        torch.testing.assert_close(value, copied["tensors"][name], atol=1e-5, rtol=1e-4)
