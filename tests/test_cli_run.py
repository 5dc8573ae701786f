"""The command line of runs: limits, forecasts, merging and tuning, and the one line where something is wrong."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex

import pytest
from test_cli import ROOT, SLOW, TINY, _own_folder, run, run_tiny  # noqa: F401

from pliant.cli import main

WRONG = {
    "run random_label_digits --seeds 0:5,3": "seed 3 is there twice",
    "run random_label_digits --seeds -1": "give a number such as 10",
    "run random_label_digits --seeds 1000000": "more than 100,000 seeds",
    "run random_label_digits --lr 0.1 --set optimizer.lr=0.2": "--lr says optimizer.lr=0.1, and --set says",
    "run random_label_digits --optimizer adam --set optimizer.name=sgd": "give one of the two",
    "run random_label_digits --schedule cosine --set schedule.name=step": "give one of the two",
    "run random_label_digits --schedule cosin": "no schedule 'cosin'; nearest: cosine",
    "run random_label_digits --schedule cosine --set schedule.final=2": "final=2.0 must be in [0, 1]",
    "run random_label_digits --method none l2": "none is plain training, with no method beside",
    "run random_label_digits --stack 0": "--stack 0: give a positive number",
    "run random_label_digits --backend rray": "no backend 'rray'; nearest: ray",
    "run random_label_digits --backend ray --workers 0": "--backend ray nothing: give one",
    "run random_label_digits --max-time soon": "--max-time soon: give a time such as 90s",
    "run random_label_digits --set model.hidden=[3000000,3000000]": "take a smaller preset or model",
    "run random_label_digits --dry-run --set model.hidden=[3000000,3000000]": "needs at least 72 TB",
    "run missing.json": "this study cannot be read",
    "tune random_label_digits --seeds 3:8": "are those that are reported; tune on others",
    "tune random_label_digits --trials 0": "--trials 0: give a positive number",
    "tune random_label_digits --last-fraction 0": "give a number in (0, 1]",
    "tune random_label_digits --sampler grid": "no sampler 'grid'; valid: random, tpe",
    "tune random_label_digits --search lr": "write KEY=RANGE",
    "tune random_label_digits --search lr=3": "give a range such as",
    "tune random_label_digits --search lr=1:0.1": "the bounds must be finite and rise",
    "tune random_label_digits --search lr=1:2 --lr 0.1": "optimizer.lr is both given and searched",
    "tune random_label_digits --lr 0.1": "nothing is left to search",
    "tune random_label_digits --method redo --search redo.taw=0:1": "no option of redo 'taw'; nearest: tau",
    "tune random_label_digits --method redo --search rdo.tau=0:1": "nearest: redo",
    "tune mine.toml": "name the stream itself",
    "merge": "name at least one results folder",
    "merge nowhere": "nowhere: there is no such folder",
    "merge .": "holds no records",
}


@pytest.mark.parametrize(("line", "message"), WRONG.items(), ids=WRONG)
def test_what_a_user_gets_wrong_is_one_line_and_leaves_nothing(capsys, tmp_path, line: str, message: str):
    before = sorted(path.name for path in tmp_path.iterdir())
    assert run(line) == 2
    output = capsys.readouterr()
    assert message in output.err
    assert output.err.startswith("pliant: ")
    assert output.err.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "__pycache__") == before


@pytest.mark.skipif(importlib.util.find_spec("ray") is not None, reason="Ray is installed here")
def test_without_ray_its_backend_says_what_to_install(capsys, tmp_path):
    assert main(["run", "random_label_digits", *TINY[:-2], "--backend", "ray"]) == 2
    assert "pip install 'pliant[ray]'" in capsys.readouterr().err
    assert not (tmp_path / "results").exists()


def test_a_schedule_is_part_of_the_experiment(tmp_path):
    assert run_tiny("--schedule cosine --set schedule.over=stream") == 0
    (path,) = (tmp_path / "results").glob("*/experiment.json")
    assert json.loads(path.read_text())["experiment"]["schedule"] == {
        "name": "cosine",
        "warmup": 0.0,
        "over": "stream",
        "final": 0.0,
    }
    (tmp_path / "mine.toml").write_text(
        'stream = "random_label_digits"\npreset = "demo"\nnum_tasks = 2\n'
        '[stream_options]\nnum_examples = 16\nnum_epochs = 1\n[schedule]\nname = "linear"\n'
    )
    assert run("run mine.toml --seeds 1 --workers 0") == 0


def test_seeds_of_two_folders_are_merged(capsys, tmp_path):
    for seeds, out in (("0:2", "a"), ("1,4", "b")):
        assert main(["run", "random_label_digits", *TINY, "--seeds", seeds, "--out", out]) == 0
    capsys.readouterr()
    assert run("merge a b --out all") == 0
    assert "3 records added, 1 known already; all are in all" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.glob("all/*/seed-*")) == [f"seed-000{k}.json" for k in (0, 1, 4)]
    (path,) = tmp_path.glob("b/*/seed-0001.json")
    path.write_text(re.sub(r'("loss": \[)[0-9.]+', r"\g<1>7.5", path.read_text()))
    assert run("merge a b --out other") == 2
    error = capsys.readouterr().err
    assert "loss in task 0 is" in error
    assert "Nothing was merged" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "other").exists()


def test_the_time_is_up_has_an_exit_code_of_its_own(capsys, tmp_path):
    (tmp_path / "cli_slow.py").write_text(SLOW)
    command = "run cli_slow:Slow --seeds 2 --tasks 40 --workers 0"
    assert run(command, "--max-time 2s") == 124
    assert "run the same command again" in capsys.readouterr().err
    assert not list(tmp_path.glob("results/*/seed-*.json"))
    assert list(tmp_path.glob("results/*/.checkpoint/*.pt"))


def test_a_dry_run_says_hours_memory_and_disk_and_writes_nothing(capsys, tmp_path):
    before = sorted(path.name for path in tmp_path.iterdir())
    assert run_tiny("--dry-run") == 0
    text = capsys.readouterr().out
    assert re.search(r"time: about \d+ .* with 1 process\n", text)
    assert re.search(r"memory: about [\d.]+ [MG]B for 1 process\n", text)
    assert re.search(r"disk: about [\d.]+ [kM]B", text)
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert run_tiny() == 0
    assert run_tiny("--dry-run") == 0
    assert "nothing is left to do" in capsys.readouterr().out


def test_tune_then_run_what_was_chosen(capsys, tmp_path):
    pytest.importorskip("optuna", reason="tuning needs Optuna, which is not installed here")
    tiny = [*TINY[:-4], "--workers", "0", "--seeds", "100,101"]
    search = ["--method", "continual_backprop", "--trials", "5", "--search", "replacement_rate=log:1e-3:0.1"]
    command = ["tune", "random_label_digits", *tiny, *search, "--set", "maturity_threshold=2"]
    assert main(command) == 0
    output = capsys.readouterr()
    assert "4 of 5 trials, best 0." in output.err
    assert "left" in output.err
    assert "best of 5 trials: number" in output.out
    assert "score to expect of the best of k trials: 1: 0." in output.out
    (path,) = (tmp_path / "tuning").glob("*.json")
    assert f"all trials: tuning/{path.name}" in output.out
    data = json.loads(path.read_text())
    assert set(data["setting"]["space"]) == {"optimizer.lr", "continual_backprop.replacement_rate"}
    assert all(trial["score"] is not None for trial in data["trials"])
    # Once more runs nothing, and the same search of another method must have the same budget.
    times = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("seed-*.json")}
    assert main(command) == 0
    assert {file: file.stat().st_mtime_ns for file in tmp_path.rglob("seed-*.json")} == times
    assert main(["tune", "random_label_digits", *tiny, "--trials", "4"]) == 2
    assert "budget of 5 trials" in capsys.readouterr().err
    # What was chosen runs on other seeds, and on those alone.
    assert run(f"run {path} --seeds 100:102 --workers 0") == 2
    assert "among those that chose the settings" in capsys.readouterr().err
    assert run(f"run {path} --seeds 1 --lr 0.1") == 2
    assert "leave out --method" in capsys.readouterr().err
    assert run(f"run {path} --seeds 2 --workers 0") == 0
    (config,) = (tmp_path / "results").glob("*/experiment.json")
    assert json.loads(config.read_text())["experiment"] == data["chosen"]


def test_the_commands_of_the_page_exist(capsys):
    text = (ROOT / "docs" / "running.md").read_text(encoding="utf-8").replace("\\\n", " ")
    found = re.findall(r"^(?:RAY_ADDRESS=auto )?(pliant .*)$", text, re.MULTILINE)
    assert len(found) >= 12
    for command in found:  # with --help every option is checked and nothing is run
        assert main([*shlex.split(command)[1:], "--help"]) == 0, command
        assert "usage: pliant" in capsys.readouterr().out
