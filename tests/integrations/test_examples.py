"""The examples run, from their command line."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

EXAMPLES = Path(__file__).parents[2] / "examples"
pytest.importorskip("gymnasium", reason="the example of an agent needs an environment")


def example(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_ppo_in_one_file_is_protected_and_goes_on_from_its_checkpoint(tmp_path, capsys):
    ppo = example("ppo_continuous")
    ppo.METHODS["continual_backprop"] = [ppo.pliant.ContinualBackprop(0.01, maturity_threshold=5)]
    path = tmp_path / "agent.pt"
    short = ["--rollout", "256", "--epochs", "2", "--batch", "32", "--width", "16", "--checkpoint", str(path)]
    assert len(ppo.main([*short, "--steps", "256"])) == 1
    first = torch.load(path, weights_only=True)
    assert first["pliant"]["schedules"][0]["step"] == 16
    assert sum(int(count.sum()) for count in first["pliant"]["num_resets"].values()) > 0
    assert len(ppo.main([*short, "--steps", "512"])) == 1, "the first rollout is not done again"
    second = torch.load(path, weights_only=True)
    assert second["done"] == 512
    assert second["pliant"]["schedules"][0]["step"] == 32
    assert "units reset" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="for continuous ones"):
        ppo.main(["--env", "CartPole-v1"])


@pytest.mark.parametrize("method", ["none", "continual_backprop_l2", "redo", "l2_init"])
def test_every_method_of_the_example_can_be_chosen(method):
    ppo = example("ppo_continuous")
    ppo.main(["--rollout", "32", "--epochs", "1", "--batch", "16", "--width", "8", "--steps", "32", "--method", method])
