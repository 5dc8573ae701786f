"""A method that the package has never heard of: nothing has to be registered for it, on the command line either."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import third_party
import torch
from contract_tools import METHODS, Run
from third_party import OveractiveDecay
from torch import nn

import pliant
from pliant import IllegalConfiguration

METHOD = "my_methods.decay:OveractiveDecay"


@pytest.fixture
def elsewhere(tmp_path):
    """A folder outside the repository, with the method in a module of a package of its own."""
    package = tmp_path / "my_methods"
    package.mkdir()
    (package / "__init__.py").write_text("")
    shutil.copy(third_party.__file__, package / "decay.py")
    return tmp_path


def pliant_in(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(Path(pliant.__file__).parents[1]), "COLUMNS": "80"}
    return subprocess.run(
        [sys.executable, "-m", "pliant.cli", *arguments], cwd=folder, env=environment, capture_output=True, text=True
    )


def test_it_is_among_the_methods_of_the_contracts():
    assert isinstance(METHODS["third_party"], OveractiveDecay)


def test_it_decays_exactly_what_is_over_active():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    with torch.no_grad():
        model[0].weight.zero_()
        model[0].bias.copy_(torch.tensor([9.0, 1.0, 1.0, 0.0]))  # mean 2.75: only the first is beyond twice that
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    before = model[2].weight.detach().clone()
    method = OveractiveDecay(limit=2.0, decay=0.5, every=2)
    handle = pliant.attach(model, optimizer, method, example_inputs=torch.randn(2, 3))
    for _ in range(5):
        model(torch.randn(8, 3)).sum().backward()
        optimizer.step()
    assert torch.equal(model[2].weight, before * torch.tensor([0.25, 1.0, 1.0, 1.0]))
    assert [(event.step, event.action, event.units) for event in handle.events] == [
        (2, "scale", (0,)),
        (4, "scale", (0,)),
    ]
    assert handle.record()["OveractiveDecay.decayed"] == 2.0


def test_its_mistakes_are_refused_by_name():
    with pytest.raises(IllegalConfiguration, match=r"OveractiveDecay: decay=1\.5 .* must be in \[0, 1\]"):
        Run("mlp", "sgd", OveractiveDecay(decay=1.5))


def test_the_command_line_shows_it(elsewhere):
    done = pliant_in(elsewhere, "show", METHOD)
    assert done.returncode == 0, done.stderr
    assert "overactive_decay  (OveractiveDecay)" in done.stdout
    assert "w^out_ki ← γ w^out_ki" in done.stdout
    assert "every 100 steps" in done.stdout
    assert "default: a guess" in done.stdout
    wrong = pliant_in(elsewhere, "show", "my_methods.decay:OveractiveDelay")
    assert wrong.returncode == 2
    assert "nearest: OveractiveDecay" in wrong.stderr


def test_the_command_line_runs_it(elsewhere):
    done = pliant_in(
        elsewhere,
        *("run", "random_label_digits", "--method", METHOD, "--tasks", "2", "--seeds", "2", "--workers", "0"),
        *("--set", "limit=1.1", "every=5", "stream.num_examples=32", "stream.num_epochs=5"),
    )
    assert done.returncode == 0, done.stderr
    (folder,) = (elsewhere / "results").iterdir()
    config = json.loads((folder / "experiment.json").read_text())["experiment"]
    assert config["methods"] == [{"name": METHOD, "limit": 1.1, "decay": 0.9, "every": 5, "where": "*"}]
    assert len(list(folder.glob("seed-*.json"))) == 2
    assert "overactive_decay" in folder.name
    plain = pliant_in(
        elsewhere,
        *("run", "random_label_digits", "--tasks", "2", "--seeds", "2", "--workers", "0"),
        *("--set", "stream.num_examples=32", "stream.num_epochs=5"),
    )
    assert plain.returncode == 0, plain.stderr
    series = []
    for path in sorted((elsewhere / "results").glob("*/seed-0000.json")):
        series.append(json.loads(path.read_text())["series"]["weight_magnitude"])
    assert len(series) == 2
    assert series[0] != series[1]  # it did something


def test_a_wrong_option_is_one_line(elsewhere):
    done = pliant_in(elsewhere, "run", "random_label_digits", "--method", METHOD, "--set", "limt=2")
    assert done.returncode == 2
    assert "there is no option of method overactive_decay 'limt'; nearest: limit" in done.stderr
    assert done.stderr.count("\n") == 1
