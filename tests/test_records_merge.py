"""Several results folders become one, and records become a table: nothing counted twice, nothing lost on the way."""

from __future__ import annotations

import math

import pytest
from test_records import CONFIG, NAME, make

from pliant.errors import NotYetSupported, RecordError
from pliant.records import experiment_id, merge, read_records, record_path, to_columns, to_frame, write_record

META = {"label": "L2", "pliant": "0.1.0", "torch": "2.13.0", "git_commit": "abcdef0123456"}


def files(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def failed(seed, error="diverged"):
    return make(seed, status="failed", error=error, series={"online_accuracy": [0.9]}, meta=META)


def test_seeds_from_several_machines_become_one_folder(tmp_path):
    a, b, out = (tmp_path / name for name in "abc")
    for seed in (0, 1):
        write_record(make(seed, meta=META), a)
    write_record(make(1, meta=META), b)  # was run on both
    write_record(make(2, meta={**META, "torch": "2.6.0"}), b)
    (b / NAME / ".checkpoint").mkdir()
    before = files(a) | files(b)
    merged = merge([a, b], out)
    assert (merged.num_added, merged.num_replaced, merged.num_known) == (3, 0, 1)
    assert [record.seed for record in read_records(out)] == [0, 1, 2]
    assert merged.versions == (
        "pliant 0.1.0, torch 2.13.0, commit abcdef01",
        "pliant 0.1.0, torch 2.6.0, commit abcdef01",
    )
    assert merged.unfinished == (str(b / NAME),)
    assert files(a) | files(b) == before
    assert files(out)[f"{NAME}/seed-0000.json"] == before[f"{NAME}/seed-0000.json"]  # the same bytes
    assert merge([a, b], out).num_added == 0  # once more changes nothing


def test_a_complete_record_stands_before_a_failed_one(tmp_path):
    a, b, out = (tmp_path / name for name in "abc")
    write_record(failed(0), a)
    write_record(failed(1, "the first"), a)
    write_record(make(2), a)
    write_record(make(0), b)
    write_record(failed(1, "the second"), b)
    write_record(failed(2), b)
    merge([a], out)
    merged = merge([b], out)
    assert (merged.num_added, merged.num_replaced, merged.num_known) == (0, 1, 2)
    found = {record.seed: record for record in read_records(out)}
    assert [found[seed].status for seed in (0, 1, 2)] == ["complete", "failed", "complete"]
    assert found[1].error == "the first"


def test_two_that_differ_are_refused_and_nothing_is_written(tmp_path):
    a, b, out = (tmp_path / name for name in "abc")
    other = CONFIG | {"num_tasks": 7}
    write_record(make(0, experiment=other, experiment_id=experiment_id(other, "digits", "l2")), a)
    write_record(make(1), a)
    series = {"online_accuracy": [0.9, 0.5, math.nextafter(0.1, 1)], "loss": [0.1, 0.2, float("nan")]}
    write_record(make(1, series=series), b)
    with pytest.raises(RecordError, match=r"seed-0001.*online_accuracy in task 2 is 0\.1 and 0\.1000000.*Nothing was"):
        merge([a, b], out)
    assert not out.exists()
    path = record_path(b, NAME, 1)
    path.write_text(path.read_text()[:-30])
    with pytest.raises(RecordError, match="damaged"):
        merge([a, b], out)
    assert not out.exists()


def test_what_cannot_be_merged_is_said(tmp_path):
    (tmp_path / "empty").mkdir()
    for sources, message in (
        ([], "at least one"),
        ([tmp_path / "no"], "no such folder"),
        ([tmp_path / "empty"], "no records"),
    ):
        with pytest.raises(RecordError, match=message):
            merge(sources, tmp_path / "out")


# ---- tables


def table():
    digits = {
        "stream": {"name": "my.module:Digits", "sizes": [3, 4]},
        "methods": [{"name": "redo", "tau": 0.1}, {"name": "l2", "strength": 1e-3}],
        "optimizer": {"name": "sgd", "lr": 0.1},
        "num_tasks": 3,
    }
    name = experiment_id(digits, "digits", "redo_l2")
    return [
        make(0, experiment=digits, experiment_id=name, meta=META),
        make(1, experiment=digits, experiment_id=name, status="failed", error="diverged", series={}, meta=META),
        make(0, series={"loss": [1.0, 2.0]}),
    ]


def test_one_row_for_each_task_of_each_seed(tmp_path):
    columns = to_columns(table())
    assert {len(values) for values in columns.values()} == {6}
    assert columns["task"] == [0, 1, 2, None, 0, 1]  # a seed that failed at once is not lost
    assert columns["status"] == ["complete"] * 3 + ["failed"] + ["complete"] * 2
    assert columns["stream"][:4] == ["Digits"] * 4
    assert columns["method"][:4] == ["redo+l2"] * 4
    assert columns["redo.tau"] == [0.1] * 4 + [None] * 2
    assert columns["stream.sizes"][0] == "[3, 4]"
    assert columns["experiment.num_tasks"][0] == 3
    assert columns["optimizer.lr"] == [0.1] * 6
    assert columns["meta.torch"][0] == "2.13.0"
    assert columns["online_accuracy"] == [0.9, 0.5, 0.1, None, None, None]
    assert columns["loss"][:2] == [0.1, 0.2]
    assert math.isnan(columns["loss"][2])
    for record in table():
        write_record(record, tmp_path)
    assert sorted(map(repr, to_columns(tmp_path)["seed"])) == sorted(map(repr, columns["seed"]))


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_a_data_frame(library):
    pytest.importorskip(library, reason=f"{library} is not installed here; it is optional")
    frame = to_frame(table(), library)
    assert len(frame) == 6
    accuracy = frame["online_accuracy"].to_list()
    assert accuracy[:3] == [0.9, 0.5, 0.1]
    assert frame["seed"].to_list() == [0, 0, 0, 1, 0, 0]
    if library == "pandas":
        means = to_frame(table(), library).groupby("experiment_id")["online_accuracy"].mean().dropna()
        assert means.to_list() == [pytest.approx(0.5)]
        assert frame["task"].isna().sum() == 1
        assert frame["redo.tau"].dtype == float
    else:
        assert frame["task"].null_count() == 1


def test_a_frame_of_something_else_is_refused():
    with pytest.raises(NotYetSupported, match="pandas or polars"):
        to_frame(table(), "excel")
