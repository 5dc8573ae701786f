"""Every verb and kind of state on a sharded model: the same weights, moments, copies and measured changes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import sharded_worker
import torch

sys.path.append(str(Path(__file__).parents[1] / "contracts"))
import two_processes


@pytest.mark.slow
def test_every_method_does_the_same_on_a_sharded_model(tmp_path):
    first, second = two_processes.run("sharded_worker", "both", tmp_path)
    alone = sharded_worker.experts(None)
    for mine in (first["experts"], second["experts"]):
        assert mine.keys() == alone.keys()
        for key, value in alone.items():
            assert torch.allclose(mine[key], value, atol=1e-6), key
    for name in sharded_worker.NAMES:
        alone = sharded_worker.result(name, None)
        assert alone["events"] or name == "PullBeforeTheStep"
        for mine in (first[name], second[name]):
            assert mine["tensors"].keys() == alone["tensors"].keys()
            for key, value in alone["tensors"].items():
                difference = (mine["tensors"][key].double() - value.double()).abs().max()
                assert difference < 1e-9, f"{name}: {key} differs by {difference}"
            for event, expected in zip(mine["events"], alone["events"], strict=True):
                # a change in the last digits of a weight can be all that an edit does
                assert event.pop("output_change") == pytest.approx(expected["output_change"], rel=1e-5, abs=1e-9)
                assert event == {key: value for key, value in expected.items() if key != "output_change"}
