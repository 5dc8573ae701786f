"""Records: nothing lost, nothing half-written, nothing believed that is damaged."""

import dataclasses
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pliant.records
from pliant.errors import RecordError
from pliant.records import (
    Record,
    canonical_json,
    experiment_id,
    prepare_folder,
    read_record,
    read_records,
    record_path,
    write_record,
)

CONFIG = {
    "stream": {"name": "digits", "num_tasks": 3},
    "method": ["L2(strength=0.0001)"],
    "optimizer": {"name": "SGD", "lr": 0.1},
}
NAME = experiment_id(CONFIG, "digits", "l2")


def make(seed: int = 0, **changes) -> Record:
    fields = {
        "experiment": CONFIG,
        "experiment_id": NAME,
        "seed": seed,
        "series": {"online_accuracy": [0.9, 0.5, 0.1], "loss": [0.1, 0.2, float("nan")]},
        "meta": {"label": "L2", "seconds": 1.5},
    }
    return Record(**(fields | changes))


def same(a: Record, b: Record) -> bool:
    """Equal to the last bit; NaN equals NaN."""
    return repr(dataclasses.asdict(a)) == repr(dataclasses.asdict(b))


# ---- round trip


def test_round_trip_keeps_every_bit(tmp_path: Path) -> None:
    values = [float("nan"), float("inf"), -float("inf"), 0.1 + 0.2, -0.0, 5e-324, 1.7976931348623157e308]
    record = make(series={"loss": values})
    path = write_record(record, tmp_path)
    assert path == tmp_path / NAME / "seed-0000.json" == record_path(tmp_path, NAME, 0)
    again = read_record(path)
    assert same(again, record)
    assert np.array(again.series["loss"]).tobytes() == np.array(values).tobytes()


def test_the_file_is_strict_json_a_person_can_read(tmp_path: Path) -> None:
    path = write_record(make(series={"loss": [float("nan"), float("inf"), 1.0], "b": [1, 2, 3]}), tmp_path)

    def no_constant(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    data = json.loads(path.read_text(), parse_constant=no_constant)
    assert data["series"]["loss"] == [None, "inf", 1.0]
    assert '    "b": [1.0, 2.0, 3.0],\n' in path.read_text()
    assert json.loads((path.parent / "experiment.json").read_text())["experiment"] == CONFIG


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(), max_size=5), st.text(max_size=20), st.text(max_size=20))
def test_round_trip_of_anything(tmp_path_factory, values: list[float], name: str, error: str) -> None:
    folder = tmp_path_factory.mktemp("results")
    config = {"stream": {"name": name}, name: [error]}
    record = Record(
        experiment=config,
        experiment_id=experiment_id(config, name, error),
        seed=7,
        status="failed",
        error=error,
        series={name: values},
    )
    # A NaN has many bit patterns; null keeps that it is one.
    assert same(read_record(write_record(record, folder)), record)


def test_numpy_is_welcome_and_becomes_plain_data() -> None:
    config = {"lr": np.float64(0.1), "widths": (np.int64(3), 4), "stream": {"name": "s"}}
    record = Record(
        experiment=config,
        experiment_id=experiment_id(config, "s", "m"),
        seed=np.int64(3),
        series={"loss": np.ones(2, dtype=np.float32)},
    )
    assert record.experiment == {"lr": 0.1, "widths": [3, 4], "stream": {"name": "s"}}
    assert type(record.experiment["lr"]) is float
    assert type(record.seed) is int
    assert record.series == {"loss": [1.0, 1.0]}
    assert record.num_tasks == 2


def test_a_record_does_not_follow_later_changes_of_what_it_was_made_from() -> None:
    config = json.loads(json.dumps(CONFIG))
    record = make(experiment=config)
    config["optimizer"]["lr"] = 7.0
    assert record.experiment["optimizer"]["lr"] == 0.1


# ---- the id


def test_id_is_stable() -> None:
    # Frozen: results that people keep are found by this name.
    assert experiment_id({}, "s", "m") == "s-m-44136fa355b3"
    assert canonical_json({"b": (1, 2.5), "a": {"é": None}}) == '{"a":{"\\u00e9":null},"b":[1,2.5]}'


@settings(max_examples=50, deadline=None)
@given(st.text(), st.text())
def test_id_is_always_a_safe_file_name(stream: str, method: str) -> None:
    name = experiment_id({"x": 1}, stream, method)
    assert set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789_-")
    assert len(name) < 128
    Record(experiment={"x": 1}, experiment_id=name, seed=0)


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(st.text(), st.integers() | st.floats(allow_nan=False, allow_infinity=False), max_size=4))
def test_id_ignores_the_order_of_keys_and_survives_json(config: dict) -> None:
    name = experiment_id(config, "s", "m")
    assert experiment_id(dict(reversed(config.items())), "s", "m") == name
    assert experiment_id(json.loads(json.dumps(config)), "s", "m") == name


def test_any_change_changes_the_id() -> None:
    names = {experiment_id(c, "s", "m") for c in ({"lr": 1}, {"lr": 1.0}, {"lr": "1"}, {"lr": None}, {"LR": 1})}
    assert len(names) == 5


@pytest.mark.parametrize(
    ("config", "where"),
    [
        ({"a": {"b": [1, float("nan")]}}, r"experiment\['a'\]\['b'\]\[1\] is nan"),
        ({"a": object()}, r"experiment\['a'\] is a object"),
        ({1: 2}, "has the key 1"),
        ({"a": {1, 2}}, r"experiment\['a'\] is a set"),
    ],
)
def test_configurations_that_are_no_json(config: dict, where: str) -> None:
    with pytest.raises(RecordError, match=where):
        experiment_id(config, "s", "m")


# ---- what a record refuses


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"seed": -1}, "seed must be"),
        ({"seed": True}, "seed must be"),
        ({"seed": 1.0}, "seed must be"),
        ({"status": "done"}, "status must be one of complete, failed"),
        ({"status": "failed"}, "a failed one needs its error"),
        ({"error": "boom"}, "a complete one has none|complete record has error"),
        ({"series": {"a": [1.0], "b": [1.0, 2.0]}}, "not equally long"),
        ({"series": {"a": [[1.0]]}}, "one value per task"),
        ({"series": {"a": ["x"]}}, "not a list of numbers"),
        ({"meta": {"x": object()}}, r"meta\['x'\]"),
        ({"experiment": {**CONFIG, "extra": 1}}, "does not belong to this configuration"),
        ({"experiment_id": "digits"}, "is no experiment id"),
        ({"experiment_id": "../../etc-passwd-0123456789ab"}, "is no experiment id"),
    ],
)
def test_pieces_that_do_not_fit(changes: dict, what: str) -> None:
    with pytest.raises(RecordError, match=what):
        make(**changes)


# ---- writing


def test_a_failed_record_is_kept_read_and_replaced_by_a_good_one(tmp_path: Path) -> None:
    failed = make(status="failed", error="loss is NaN at task 2", series={"loss": [0.5]})
    path = write_record(failed, tmp_path)
    assert [(r.status, r.error) for r in read_records(tmp_path)] == [("failed", "loss is NaN at task 2")]
    write_record(make(), tmp_path)
    assert read_record(path).status == "complete"


def test_a_complete_record_is_never_replaced_by_accident(tmp_path: Path) -> None:
    path = write_record(make(), tmp_path)
    before = path.read_bytes()
    assert write_record(make(meta={"label": "again"}), tmp_path) == path
    assert path.read_bytes() == before
    for other in (make(series={"loss": [1.0]}), make(status="failed", error="boom")):
        with pytest.raises(RecordError, match="holds a complete record of this seed"):
            write_record(other, tmp_path)
        assert path.read_bytes() == before
    write_record(make(series={"loss": [1.0]}), tmp_path, overwrite=True)
    assert read_record(path).series == {"loss": [1.0]}


def test_a_damaged_record_is_not_written_over_unasked(tmp_path: Path) -> None:
    path = write_record(make(), tmp_path)
    path.write_text("{")
    with pytest.raises(RecordError, match="damaged"):
        write_record(make(), tmp_path)
    write_record(make(), tmp_path, overwrite=True)
    assert same(read_record(path), make())


def test_a_folder_with_a_different_experiment_is_left_alone(tmp_path: Path) -> None:
    other = {**CONFIG, "optimizer": {"name": "SGD", "lr": 0.3}}
    write_record(make(experiment=other, experiment_id=experiment_id(other, "digits", "l2")), tmp_path)
    (folder,) = tmp_path.iterdir()
    folder.rename(tmp_path / NAME)
    before = sorted((p.name, p.read_bytes()) for p in (tmp_path / NAME).iterdir())
    for action in (lambda: write_record(make(1), tmp_path), lambda: prepare_folder(tmp_path, CONFIG, NAME)):
        with pytest.raises(RecordError, match="this folder holds a different experiment") as caught:
            action()
        assert "['optimizer']['lr'] is 0.3 there and 0.1 here" in str(caught.value)
        assert "Choose another results folder" in str(caught.value)
    assert sorted((p.name, p.read_bytes()) for p in (tmp_path / NAME).iterdir()) == before


def test_records_of_an_unknown_experiment_are_not_claimed(tmp_path: Path) -> None:
    write_record(make(), tmp_path)
    (tmp_path / NAME / "experiment.json").unlink()
    with pytest.raises(RecordError, match=r"no experiment\.json"):
        write_record(make(1), tmp_path)


def test_prepare_folder_makes_and_then_accepts_the_folder(tmp_path: Path) -> None:
    results = tmp_path / "deep" / "results"
    folder = prepare_folder(results, CONFIG, NAME)
    before = (folder / "experiment.json").stat().st_mtime_ns
    assert prepare_folder(results, CONFIG, NAME) == folder == results / NAME
    assert (folder / "experiment.json").stat().st_mtime_ns == before
    assert read_records(results) == []


def test_a_results_path_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "results").write_text("mine")
    with pytest.raises(RecordError, match="Choose another results folder"):
        write_record(make(), tmp_path / "results")
    assert (tmp_path / "results").read_text() == "mine"


@pytest.mark.parametrize("moment", ["fsync", "replace"])
def test_a_full_disk_leaves_what_was_there(tmp_path: Path, monkeypatch, moment: str) -> None:
    path = write_record(make(status="failed", error="first"), tmp_path)
    before = path.read_bytes()

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(*((os, "fsync", full) if moment == "fsync" else (Path, "replace", full)))
        with pytest.raises(RecordError, match="No space left on device"):
            write_record(make(), tmp_path)
    assert path.read_bytes() == before
    assert sorted(p.name for p in path.parent.iterdir()) == ["experiment.json", "seed-0000.json"]


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc what is flushed")
def test_file_and_folder_are_flushed_before_and_after_the_move(tmp_path: Path, monkeypatch) -> None:
    prepare_folder(tmp_path, CONFIG, NAME)
    events: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def log_fsync(descriptor: int) -> None:
        events.append("folder" if os.path.isdir(f"/proc/self/fd/{descriptor}") else "file")
        fsync(descriptor)

    def log_replace(self: Path, target: Path) -> Path:
        events.append("move")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", log_fsync)
    monkeypatch.setattr(Path, "replace", log_replace)
    write_record(make(), tmp_path)
    assert events == ["file", "move", "folder"]


# ---- damaged and foreign files


def test_every_truncation_is_noticed(tmp_path: Path) -> None:
    path = write_record(make(), tmp_path)
    whole = path.read_bytes()
    for length in range(len(whole.rstrip()) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(RecordError, match="damaged") as caught:
            read_record(path)
        assert str(path) in str(caught.value)
        assert "only this seed is repeated" in str(caught.value)


@pytest.mark.parametrize("name", ["schema_version", "experiment_id", "seed", "status", "error", "meta", "series"])
def test_every_missing_field_is_named(tmp_path: Path, name: str) -> None:
    path = write_record(make(), tmp_path)
    data = json.loads(path.read_text())
    del data[name]
    path.write_text(json.dumps(data))
    with pytest.raises(RecordError, match=f"the field '{name}' is missing"):
        read_record(path)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"schema_version": 2}, "format version 2, but this pliant reads 1"),
        ({"seed": "0"}, "the field 'seed' holds '0'"),
        ({"seed": 5}, "its name says seed 0, its content 5"),
        ({"seed": False}, "seed must be an integer"),
        ({"status": "complete!"}, "status must be one of"),
        ({"status": "failed"}, "needs its error"),
        ({"error": 3}, "the field 'error' holds 3"),
        ({"series": {"a": [1.0, "x"]}}, "the series 'a' is not a list of numbers"),
        ({"series": {"a": [1.0, True]}}, "the series 'a' is not a list of numbers"),
        ({"series": {"a": 1.0}}, "the series 'a' is not a list of numbers"),
        ({"series": [1.0]}, "the field 'series' holds"),
        ({"series": {"a": [1.0], "b": []}}, "not equally long"),
        ({"experiment_id": "digits-l2-0123456789ab"}, "belongs to the experiment digits-l2-0123456789ab"),
    ],
)
def test_what_a_record_may_not_hold(tmp_path: Path, change: dict, what: str) -> None:
    path = write_record(make(), tmp_path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(RecordError, match=what) as caught:
        read_record(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00", b"[]", b"null", b"[" * 100_000, b'{"a": 1'])
def test_files_that_are_something_else(tmp_path: Path, content: bytes) -> None:
    path = write_record(make(), tmp_path)
    path.write_bytes(content)
    with pytest.raises(RecordError, match="damaged"):
        read_records(tmp_path)


def test_experiment_json_is_checked_too(tmp_path: Path) -> None:
    path = write_record(make(), tmp_path)
    config = path.parent / "experiment.json"
    whole = config.read_text()
    config.write_text(whole.replace("0.1", "0.2"))
    with pytest.raises(RecordError, match="changed since it was written"):
        read_record(path)
    config.write_text(whole[:40])
    with pytest.raises(RecordError, match=r"experiment\.json: damaged"):
        read_record(path)
    config.unlink()
    with pytest.raises(RecordError, match=r"experiment\.json: this file is missing"):
        read_record(path)


def test_a_missing_record(tmp_path: Path) -> None:
    prepare_folder(tmp_path, CONFIG, NAME)
    with pytest.raises(RecordError, match="this file is missing"):
        read_record(record_path(tmp_path, NAME, 3))


# ---- reading a folder


def test_records_are_found_at_any_depth_sorted_and_hidden_files_are_not(tmp_path: Path) -> None:
    other = {**CONFIG, "method": []}
    other_name = experiment_id(other, "digits", "a_none")
    for seed in (10, 2, 0):
        write_record(make(seed), tmp_path / "b")
    write_record(make(4, experiment=other, experiment_id=other_name), tmp_path / "z" / "deep")
    folder = tmp_path / "b" / NAME
    (folder / ".checkpoint").mkdir()
    (folder / ".checkpoint" / "seed-0001.json").write_text("{")
    (folder / ".seed-0003.json.12-ab.tmp").write_text("{")
    (folder / "seed-0003.json.bak").write_text("{")
    (folder / "notes.txt").write_text("mine")
    found = read_records(tmp_path)
    assert [(r.experiment_id, r.seed) for r in found] == [(other_name, 4), (NAME, 0), (NAME, 2), (NAME, 10)]
    assert [r.seed for r in read_records(folder)] == [0, 2, 10]


def test_a_hidden_results_folder_can_be_named(tmp_path: Path) -> None:
    write_record(make(), tmp_path / ".results")
    assert len(read_records(tmp_path / ".results")) == 1
    assert read_records(tmp_path) == []


def test_the_same_run_twice_is_not_counted_twice(tmp_path: Path) -> None:
    write_record(make(), tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    with pytest.raises(RecordError, match="would be counted twice"):
        read_records(tmp_path)
    assert len(read_records(tmp_path / "a")) == 1


def test_no_folder_and_an_empty_folder(tmp_path: Path) -> None:
    assert read_records(tmp_path) == []
    with pytest.raises(RecordError, match="no such folder"):
        read_records(tmp_path / "nowhere")


# ---- many writers, and writers that die


def test_writers_at_the_same_time(tmp_path: Path) -> None:
    errors: list[BaseException] = []
    start = threading.Barrier(8)

    def work(k: int) -> None:
        try:
            start.wait()
            for seed in range(k % 2, 12, 2):
                write_record(make(seed), tmp_path)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert [r.seed for r in read_records(tmp_path)] == list(range(12))
    assert not list(tmp_path.rglob("*.tmp"))


WRITER = """
import sys
from pliant.records import Record, experiment_id, write_record
config = {"stream": {"name": "digits"}, "method": []}
name = experiment_id(config, "digits", "none")
print("ready", flush=True)
k = 0
while True:
    k += 1
    series = {"loss": [float(k)] * 20_000}
    record = Record(experiment=config, experiment_id=name, seed=k % 3, series=series)
    write_record(record, sys.argv[1], overwrite=True)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system cannot kill a process outright")
@pytest.mark.parametrize("round_", range(5))
def test_a_killed_writer_leaves_only_whole_records(tmp_path: Path, round_: int) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": ROOT},
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        time.sleep(random.Random(round_).uniform(0.0, 0.3))
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
    for record in read_records(tmp_path):
        (values,) = record.series.values()
        assert len(values) == 20_000
        assert len(set(values)) == 1
        assert math.isfinite(values[0])
    # What the kill left behind does not stand in the way of the next run.
    config = {"stream": {"name": "digits"}, "method": []}
    name = experiment_id(config, "digits", "none")
    write_record(make(9, experiment=config, experiment_id=name), tmp_path)
    assert read_records(tmp_path)[-1].seed == 9


ROOT = str(Path(pliant.records.__file__).resolve().parents[2])


def test_only_numpy_is_needed() -> None:
    code = f"""
import sys, types
package = types.ModuleType("pliant"); package.__path__ = [{os.path.join(ROOT, "pliant")!r}]
sys.modules["pliant"] = package      # the package's own names may need more
import pliant.records
heavy = sorted({{name.split(".")[0] for name in sys.modules}} & {{"torch", "rich", "tyro", "scipy"}})
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code], check=True)
