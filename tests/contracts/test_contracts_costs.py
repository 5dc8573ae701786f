"""The measurement of what methods cost works, and what it writes is what is shown. No test looks at a time."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from contract_tools import METHODS, SEEDLESS

from benchmarks import methods_table
from benchmarks.speed import methods
from benchmarks.speed.minimal.base import Minimal
from pliant.bench import catalogue
from pliant.bench.catalogue import about
from pliant.bench.experiment import method_table

ROOT = methods.ROOT
NAMES = methods.names()
ANOTHER_START = {"c_chain"}
"""By hand it acts from the first step on; what a step costs is the same."""
DETERMINISTIC = {type(METHODS[name]) for name in SEEDLESS if not isinstance(METHODS[name], list)}

COMPARED = [n for n in NAMES if n not in ANOTHER_START and type(methods.minimal(n).METHOD) in DETERMINISTIC]


@pytest.mark.parametrize("name", NAMES)
def test_each_file_by_hand_belongs_to_one_method(name):
    module = methods.minimal(name)
    assert type(module.METHOD) is method_table()[name]
    assert issubclass(module.ByHand, Minimal)
    assert module.METHOD.null() != module.METHOD, "it has to do something"


@pytest.mark.parametrize("name", COMPARED)
def test_by_hand_is_the_same_mathematics(name):
    """Of the methods that draw nothing: the same weights after a few steps."""
    arms = {kind: methods.Arm(kind, name) for kind in ("plain", "method", "by_hand")}
    for arm in arms.values():
        arm.run(4)
    weights = {kind: list(arm.model.parameters()) for kind, arm in arms.items()}
    for ours, by_hand in zip(weights["method"], weights["by_hand"], strict=True):
        assert torch.allclose(ours, by_hand, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", methods.parts())
def test_layers_and_optimizers_by_hand_are_the_same_mathematics(name, monkeypatch):
    module = sys.modules[type(methods.parts()[name]).__module__]
    monkeypatch.setattr(module, "SIGMA", 0.0)  # the noise of UPGD comes from another generator
    arms = {kind: methods.Arm(kind, name) for kind in ("plain", "method", "by_hand")}
    first = [parameter.detach().clone() for parameter in arms["method"].model.parameters()]
    for arm in arms.values():
        arm.run(4)
    weights = {kind: list(arm.model.parameters()) for kind, arm in arms.items()}
    for ours, by_hand, before in zip(weights["method"], weights["by_hand"], first, strict=True):
        assert torch.allclose(ours, by_hand, rtol=1e-4, atol=1e-6)
        assert not torch.equal(ours, before)
    same_shape = [a.shape == b.shape for a, b in zip(weights["method"], weights["plain"], strict=True)]
    assert not all(same_shape) or any(
        not torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in zip(weights["method"], weights["plain"], strict=True)
    )


def test_a_quick_measurement_of_an_optimizer(capsys, tmp_path):
    out = tmp_path / "methods.json"
    methods.main(["--quick", "--only", "upgd", "--out", str(out)])
    found = json.loads(out.read_text())["methods"]["upgd"]
    assert found["against"] == "torch's SGD"
    assert found["memory"] == pytest.approx(1.0, abs=1e-3)  # one utility for each weight
    assert (found["acting"], found["boundary"]) == (0.0, 0.0)
    text = catalogue.Cost.of(found).sentence()
    assert "times a step with torch's SGD" in text
    assert "larger by 1 times the parameters' size" in text
    assert "smaller by 0.5 times" in catalogue.Cost.of({**found, "memory": -0.5}).sentence()


def test_a_quick_measurement_of_one_method(capsys, tmp_path):
    out = tmp_path / "methods.json"
    methods.main(["--quick", "--only", "l2", "--out", str(out)])
    assert "l2: " in capsys.readouterr().out
    found = json.loads(out.read_text())["methods"]["l2"]
    assert found["method"] == repr(methods.minimal("l2").METHOD)
    assert found["memory"] == 0.0
    assert found["step"] > 0.5
    assert found["by_hand"] > 0.5
    assert 0 < found["acting"] < 1
    assert found["boundary"] == 0.0
    assert set(found["ratios"]["wall"]) == set(methods.ARMS[1:])
    assert {"git_commit", "torch", "processor", "started"} <= set(found["meta"])
    stamp = out.stat().st_mtime_ns
    methods.main(["--quick", "--only", "l2", "--out", str(out)])  # it has been measured
    assert out.stat().st_mtime_ns == stamp
    assert list(methods.chosen(options(only=["l2"], again=True), {"l2": found})) == ["l2"]
    assert list(methods.chosen(options(only=["l2"], rounds=7), {"l2": found})) == ["l2"]
    with pytest.raises(SystemExit, match=r"no such method: l3; there are .*l2"):
        list(methods.chosen(options(only=["l3"]), {}))


def options(**given):
    return argparse.Namespace(**{"only": [], "again": False, "rounds": 2, **given})


def entry(**given):
    meta = {"processor": "a processor", "torch": "2.13.0", "git_commit": "0123456789abcdef"}
    item = {"method": "L2(0.1)", "step": 1.034567, "by_hand": 1.01, "memory": 0.5, "acting": 0.02, "boundary": 0.0}
    return {**item, "clock": "wall", "meta": meta, **given}


def test_what_counts_reaches_the_pages_and_the_command_line(tmp_path, monkeypatch):
    for name in ("continual_backprop", "experience_replay", "upgd"):
        shutil.copy(methods.PAGES / f"{name}.md", tmp_path)
    before = {path.stem: path.read_text() for path in tmp_path.glob("*.md")}
    results = {
        "experience_replay": entry(boundary=3.25),
        "continual_backprop": entry(clock=None),  # the plain copies did not agree
        "no_page_yet": entry(),
        "upgd": entry(against="torch's SGD"),
    }
    costs = tmp_path / "costs.json"
    for _ in range(2):  # the second time replaces what the first has written
        assert methods.spread(results, costs, tmp_path) == ["experience_replay", "no_page_yet", "upgd"]
    assert (tmp_path / "continual_backprop.md").read_text() == before["continual_backprop"]
    page = (tmp_path / "experience_replay.md").read_text()
    start, stop = page.index("<!-- cost -->\n"), page.index("<!-- /cost -->")
    text = page[start:stop]
    assert page.count("<!-- cost -->") == page.count("<!-- /cost -->") == 1
    assert "1.03 times a plain step" in text
    assert "a task boundary costs 3.2 plain steps" in text
    assert "a processor, PyTorch 2.13.0, commit 012345678" in text
    old = before["experience_replay"]
    assert page[:start] + page[stop:] == old[: old.index("<!-- cost -->\n")] + old[old.index("<!-- /cost -->") :]
    monkeypatch.setattr(catalogue.resources, "files", lambda package: tmp_path)
    catalogue.costs.cache_clear()
    try:
        assert about("experience_replay").cost.step == 1.0346
        assert about("continual_backprop").cost is None
        assert "| 1.03 |" in methods_table.row(about("experience_replay"))
        assert about("upgd").cost.against == "torch's SGD"
        assert "| 1.03 |" in methods_table.row(about("upgd"))
        assert "1.03 times a step with torch's SGD" in (tmp_path / "upgd.md").read_text()
    finally:
        catalogue.costs.cache_clear()


def test_time_inside_a_method_is_seen_and_its_class_is_left_as_it_was():
    method = methods.minimal("l2").METHOD
    event, own, spent = type(method).after_step, set(vars(type(method))), [0.0]
    arm = methods.Arm("method", "l2")
    with methods.stopwatch(type(method), spent):
        assert type(method).after_step is not event
        arm.run(2)
    assert type(method).after_step is event
    assert set(vars(type(method))) == own
    once = spent[0]
    assert once > 0
    arm.run(2)
    assert spent[0] == once


def test_bytes_are_those_of_the_state():
    state = {"state": {0: {"0": {"age": torch.zeros(8, dtype=torch.int64)}}}, "random": {"cpu": [torch.zeros(99)]}}
    assert methods.num_bytes(state) == 64
    assert methods.num_bytes({"memory": [torch.zeros(3), 7, None, "x"]}) == 12


# ---- the table ----
def test_the_table_of_methods_is_up_to_date_apart_from_costs(capsys):
    assert methods_table.main(["--check"]) == 0, capsys.readouterr().out


def test_the_check_sees_what_has_changed(tmp_path, monkeypatch, capsys):
    page = tmp_path / "README.md"
    monkeypatch.setattr(methods_table, "PAGE", page)
    monkeypatch.setattr(methods_table, "ROOT", tmp_path)
    assert methods_table.main(["--check"]) == 1
    assert methods_table.main([]) == 0
    assert methods_table.main(["--check"]) == 0
    text = page.read_text()
    page.write_text(text.replace("| – |\n", "| 9.99 |\n"))
    assert methods_table.main(["--check"]) == 0
    page.write_text(text.replace("every 1000 steps", "every 2000 steps"))
    assert methods_table.main(["--check"]) == 1
    assert "run python benchmarks/methods_table.py" in capsys.readouterr().out


def test_the_table_has_every_method_and_no_markup():
    lines = [line for line in methods_table.table().splitlines() if line.startswith("| [") or line.startswith("| `")]
    assert len(lines) == len(catalogue.catalogue())
    for line, name in zip(lines, catalogue.catalogue(), strict=True):
        assert f"`{name}`" in line
        assert line.replace(r"\|", "").count("|") == 7
        assert ":math:" not in line
        assert "``" not in line


def test_the_data_file_is_part_of_the_package():
    assert '"interventions/*.json"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert methods.COSTS.parent == Path(catalogue.__file__).parents[1] / "interventions"
