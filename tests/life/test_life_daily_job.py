"""The daily job: killed at random and restarted, it leaves the same bits as a job that was never killed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from life_tools import assert_same

import pliant

ROOT = Path(__file__).parents[2]
JOB = ROOT / "examples" / "daily_job.py"
TIMED = ("monitor", "live")  # they note how long things took


def started(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(JOB), *arguments, "--folder", str(folder)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)


def left(folder: Path):
    """What a job has left behind, without the time that things took."""
    state = torch.load(folder / "checkpoint.pt", weights_only=True)
    watched = {key: state.pop(key) for key in TIMED}
    edits = [(item.number, item.event) for item in pliant.read_edits(folder / "edits.jsonl")]
    races = [{key: value for key, value in race.items() if key != "seconds"} for race in watched["live"]["races"]]
    alarms = {key: watched["monitor"][key] for key in ("step", "history", "alarms", "current")}
    days = json.loads((folder / "days.json").read_text(encoding="utf-8"))
    return state, edits, races, alarms, days, torch.load(folder / "export.pt", weights_only=True)


@pytest.mark.wide
@pytest.mark.parametrize("kind", ["clicks", "series"])
def test_a_job_that_is_killed_leaves_the_bits_of_one_that_is_not(kind, tmp_path):
    """Three days, forks of one Python; in the killed job every process but the last of each day dies by SIGKILL."""
    common = ("year", "--data", kind, "--days", "3", "--start", "fork", "--seed", "1")
    for folder, kills in (("whole", "0"), ("killed", "0.6")):
        done = started(tmp_path / folder, *common, "--kills", kills)
        assert done.returncode == 0, done.stderr
    for mine, theirs in zip(left(tmp_path / "killed"), left(tmp_path / "whole"), strict=True):
        assert_same(mine, theirs)
    state, edits, *_ = left(tmp_path / "whole")
    if kind == "series":
        assert edits
    else:
        assert state["model"]["fields.0.weight"].shape == (44, 8), "the vocabulary has grown by two a day"
    files = [tmp_path / job / "edits.jsonl" for job in ("killed", "whole")]
    begun = [file.read_text(encoding="utf-8").count("begins") for file in files]
    assert begun == [6, 2], "four processes were killed: before a checkpoint, in the quiet period, after the last step"


@pytest.mark.wide
def test_a_day_in_a_new_process_goes_on_after_a_kill(tmp_path):
    """As cron starts it: one Python for each attempt."""
    assert started(tmp_path, "day", "--data", "series", "--kill-at", "30").returncode == -9
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert (state["day"], state["step"]) == (0, 24)
    done = started(tmp_path, "day", "--data", "series")
    assert done.returncode == 0, done.stderr
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert (state["day"], state["step"]) == (1, 0)
    assert len(json.loads((tmp_path / "days.json").read_text(encoding="utf-8"))) == 1


def test_a_checkpoint_of_another_kind_of_data_is_refused(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(JOB.parent))
    import daily_job

    daily_job.Day("series", tmp_path, 0, watched=False)
    assert (tmp_path / "checkpoint.pt").exists()
    with pytest.raises((SystemExit, pliant.IllegalConfiguration)):
        daily_job.Day("text", tmp_path, 0, watched=False)


def test_the_plan_of_kills_is_one_for_every_day():
    import importlib.util

    spec = importlib.util.spec_from_file_location("daily_job_alone", JOB)
    job = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = job
    spec.loader.exec_module(job)
    plan = job.kill_plan(365, 0.3, seed=0)
    assert len(plan) == 365
    assert 100 < sum(map(len, plan)) < 250
    assert all(1 <= step <= 64 for kills in plan for step in kills)
    assert plan == job.kill_plan(365, 0.3, seed=0)
