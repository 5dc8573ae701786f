"""``pliant report``: several folders, trials among the records, thresholds, and what it refuses."""

import json

import pytest
from report_records import run

from pliant.cli import main
from pliant.records import write_record

CBP = ("CBP", ({"name": "continual_backprop"},))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Results of two methods, and apart from them the trial that one of them was tuned with."""
    monkeypatch.chdir(tmp_path)
    for record in run() + run(*CBP, start=0.7, end=0.9):
        write_record(record, tmp_path / "results")
    (trial, *_) = run(*CBP, seeds=(100,), optimizer={"name": "SGD", "lr": 9.0})
    write_record(trial, tmp_path / "tuning" / "trials")
    study = {
        "label": "CBP",
        "rule": "the best",
        "setting": {"tuning_seeds": [100]},
        "experiment": {"stream": {"name": "digits"}},
        "trials": [{"experiment_id": trial.experiment_id, "score": 0.5}, {"experiment_id": "x", "score": 0.75}],
    }
    (tmp_path / "tuning" / "digits-cbp.json").write_text(json.dumps(study))
    return tmp_path


def report(line: str) -> int:
    return main(["report", *line.split()])


def test_trials_become_curves_and_no_results(folder, capsys):
    assert report("results tuning --out a.html --csv a.csv --markdown a.md --threshold 0.85") == 0
    text = capsys.readouterr().out
    assert "1 records of tuning trials are in best-of-k curves only" in text
    page = (folder / "a.html").read_text()
    assert "What tuning contributes" in page
    assert "9.0" not in (folder / "a.csv").read_text()
    assert "reaches threshold" in page
    assert "reaches threshold" in (folder / "a.md").read_text()
    # A folder of trials alone is what one wants to see of it.
    assert report("tuning/trials") == 0
    assert "CBP" in capsys.readouterr().out


def test_a_record_in_two_folders_is_refused(folder, capsys):
    (folder / "copy").mkdir()
    for path in (folder / "results").rglob("*.json"):
        target = folder / "copy" / path.relative_to(folder / "results")
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(path.read_bytes())
    assert report("results copy --out a.html") == 2
    assert "would be counted twice" in capsys.readouterr().err
    assert not (folder / "a.html").exists()
    assert report("results results") == 0  # the same folder twice is one folder


def test_a_stream_can_be_named_by_its_title(folder, capsys):
    for record in run(stream={"name": "digits", "num_tasks": 8}, num_tasks=8):
        write_record(record, folder / "results")
    assert report("results --figure f.svg") == 2
    error = capsys.readouterr().err
    assert "has 2: add --stream with one of" in error
    assert report("results --figure f.svg --stream Digits") == 0
    assert "<svg" in (folder / "f.svg").read_text()


def test_what_makes_no_sense_is_one_line_and_exit_code_2(folder, capsys):
    for line, message in (
        ("", "name at least one folder"),
        ("results --threshold nan", "give a number"),
        ("results nowhere", "there is no such folder"),
        ("results --stream dgits", "nearest: digits"),
    ):
        assert report(line) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    (folder / "tuning" / "digits-cbp.json").write_text('{"setting": {"tuning_seeds": [1]}, "trials": 5}')
    assert report("results tuning") == 2
    assert "damaged" in capsys.readouterr().err
