"""The log of edits in a file: whole lines, rotation, and one history over many processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest
import torch
from life_tools import METHOD, Run

import pliant
from pliant import IllegalConfiguration, RecordError, devices
from pliant.interventions import L2, ReDo


def told(items):
    return [(item.number, item.event) for item in items]


def test_every_edit_is_a_line_with_all_that_the_event_says(tmp_path):
    run = Run(METHOD, measure_change=(torch.arange(10),))
    run.handle.log_to(tmp_path / "logs" / "edits.jsonl")
    run.train(0, 40)
    found = pliant.read_edits(tmp_path / "logs" / "edits.jsonl")
    assert [item.event for item in found] == list(run.handle.events)
    assert all(item.time > 1.7e9 for item in found)
    line = json.loads((tmp_path / "logs" / "edits.jsonl").read_text().splitlines()[1])
    assert {"time", "number", "step", "intervention", "reason", "group", "units", "output_change"} <= set(line)


def test_a_run_of_edits_is_told_with_its_length(tmp_path):
    run = Run([L2(0.1), METHOD])
    log = run.handle.log_to(tmp_path / "edits.jsonl")
    run.train(0, 20)
    log.flush()
    run.train(20, 30)
    log.close()
    decay = [item.event for item in pliant.read_edits(tmp_path / "edits.jsonl") if item.event.action == "shrink"]
    assert [(event.step, event.last_step, event.count) for event in decay] == [(1, 30, 30)]


def test_what_a_lost_process_added_to_a_run_of_edits_does_not_count(tmp_path):
    cut = Run(L2(0.1))
    cut.handle.log_to(tmp_path / "edits.jsonl")
    saved = cut.train(0, 10).saved()
    cut.train(10, 15).handle.detach()  # its last line says 15
    rest = Run(L2(0.1), seed=3).load(saved)
    log = rest.handle.log_to(tmp_path / "edits.jsonl")
    rest.train(10, 30)
    log.close()
    found = pliant.read_edits(tmp_path / "edits.jsonl")
    assert [(item.number, item.event.step, item.event.last_step) for item in found] == [(1, 1, 10), (11, 11, 30)]


@pytest.mark.parametrize("log_first", [True, False])
def test_a_resumed_run_has_the_log_of_one_that_never_stopped(tmp_path, log_first):
    """What was done between the checkpoint and the end of the process is done again, and counts once."""
    whole = Run(METHOD)
    whole.handle.log_to(tmp_path / "whole.jsonl")
    whole.train(0, 40)

    cut = Run(METHOD)
    cut.handle.log_to(tmp_path / "cut.jsonl")
    saved = cut.train(0, 20).saved()
    cut.train(20, 33)  # lost
    rest = Run(METHOD, seed=5)
    if log_first:
        rest.handle.log_to(tmp_path / "cut.jsonl")
    rest.load(saved)
    if not log_first:
        rest.handle.log_to(tmp_path / "cut.jsonl")
    rest.train(20, 40)
    found = pliant.read_edits(tmp_path / "cut.jsonl")
    assert told(found) == told(pliant.read_edits(tmp_path / "whole.jsonl"))
    both = pliant.read_edits(tmp_path / "cut.jsonl", superseded=True)
    assert len(both) == len(found) + sum(20 < event.step <= 33 for event in cut.handle.events)


def test_a_run_that_begins_anew_in_the_same_file_keeps_what_was_there(tmp_path):
    for _ in range(2):
        run = Run(METHOD)
        run.handle.log_to(tmp_path / "edits.jsonl")
        run.train(0, 20)
        run.handle.detach()
    events = [item.event for item in pliant.read_edits(tmp_path / "edits.jsonl")]
    assert events == 2 * list(run.handle.events)


def test_files_are_rotated_and_read_in_order(tmp_path):
    run = Run(METHOD)
    path = tmp_path / "edits.jsonl"
    log = run.handle.log_to(path, max_bytes=1500, backups=3)
    run.train(0, 120)
    log.close()
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "edits.jsonl", "edits.jsonl.1", "edits.jsonl.2", "edits.jsonl.3"]  # fmt: skip
    assert all(file.stat().st_size <= 1500 for file in tmp_path.iterdir())
    found = told(pliant.read_edits(path))
    everything = list(enumerate(run.handle.events, start=1))
    assert 0 < len(found) < len(everything)
    assert found == everything[-len(found) :]


def test_a_torn_line_is_cut_off_and_a_broken_one_is_named(tmp_path):
    run = Run(METHOD)
    path = tmp_path / "edits.jsonl"
    run.handle.log_to(path).close()
    log = run.handle.log_to(path)
    saved = run.train(0, 20).saved()
    log.close()
    whole = told(pliant.read_edits(path))
    with path.open("a") as file:
        file.write('{"time": 1.0, "numb')
    assert told(pliant.read_edits(path)) == whole
    rest = Run(METHOD, seed=4).load(saved)
    rest.handle.log_to(path)
    rest.train(20, 40)
    assert told(pliant.read_edits(path)) == [(n, e) for n, e in enumerate([*run.handle.events, *rest.handle.events], 1)]
    path.write_text('{"time": 1.0}\n' + path.read_text())
    with pytest.raises(RecordError, match="line 1: not a line of a log of edits"):
        pliant.read_edits(path)
    with pytest.raises(RecordError, match="no log of edits"):
        pliant.read_edits(tmp_path / "none.jsonl")


def test_an_accelerator_is_not_waited_for(tmp_path, monkeypatch):
    """Nothing is read back before 256 edits have come together, or the state is saved."""
    monkeypatch.setattr(devices, "_as_accelerator", True)
    run = Run(ReDo(tau=1.0, every=2))
    path = tmp_path / "edits.jsonl"
    log = run.handle.log_to(path)
    run.train(0, 20)
    assert not path.exists() or not path.read_text()
    run.handle.state_dict()
    assert [item.event for item in pliant.read_edits(path)] == list(run.handle.events)
    log.close()


@pytest.mark.wide
def test_a_killed_process_leaves_whole_lines(tmp_path):
    """SIGKILL in the middle of training: every edit that was made is in the file."""
    code = (
        "import os, signal, sys; sys.path.insert(0, sys.argv[2])\n"
        "from life_tools import METHOD, Run\n"
        "run = Run(METHOD)\n"
        "run.handle.log_to(sys.argv[1])\n"
        "run.train(0, 25)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    path = tmp_path / "edits.jsonl"
    command = [sys.executable, "-c", code, str(path), os.path.dirname(__file__)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert [item.event for item in pliant.read_edits(path)] == list(Run(METHOD).train(0, 25).handle.events)


def test_bad_options_are_refused(tmp_path):
    handle = Run().handle
    for options in ({"max_bytes": 0}, {"backups": -1}):
        with pytest.raises(IllegalConfiguration, match="log_to"):
            handle.log_to(tmp_path / "edits.jsonl", **options)
    log = handle.log_to(tmp_path / "edits.jsonl")
    with pytest.raises(IllegalConfiguration, match="already"):
        handle.log_to(tmp_path / "edits.jsonl")
    log.close()
    handle.log_to(tmp_path / "edits.jsonl")
    handle.detach()
    with pytest.raises(IllegalConfiguration, match="detached"):
        handle.log_to(tmp_path / "edits.jsonl")
