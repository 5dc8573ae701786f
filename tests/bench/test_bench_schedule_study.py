"""The study of schedules: tuning task by task is one experiment, and what it is held against has the same budget."""

from __future__ import annotations

import json

import pytest

from benchmarks import schedule_study as study
from pliant import records
from pliant.bench.runner import run_experiments


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("schedules")
    study.run("permuted_digits", "none", folder, quick=True)
    return folder


def test_what_is_chosen_task_by_task_is_the_best_continuation(out, tmp_path):
    """The branch that was kept is, bit by bit, a run of the experiment that it became; and so are the scores."""
    data = json.loads((out / "permuted_digits/none/study.json").read_text())
    base = study.base("permuted_digits", "none", 2)
    candidates = [tuple(item) for item in data["candidates"]]
    first, second = [tuple(item) for item in data["chosen"]["per_task"]]
    for before, scores in (([], data["scores"]["per_task"][0]), ([first], data["scores"]["per_task"][1])):
        runs = [study.with_settings(base, [*before, setting]) for setting in candidates]
        run_experiments(runs, data["tuning_seeds"], tmp_path, num_workers=0)
        for experiment, score in zip(runs, scores, strict=True):
            found = records.read_records(tmp_path / experiment.id)
            assert sum(record.series["online_accuracy"][-1] for record in found) / len(found) == score
    assert scores[candidates.index(second)] == max(scores)
    # Both ways of tuning have trained each setting for each task once.
    assert len(data["scores"]["reused"]) == len(candidates) == len(data["scores"]["per_task"][0])
    best = max(range(len(candidates)), key=lambda k: data["scores"]["reused"][k])
    assert data["chosen"]["reused"] == [list(candidates[best])] * 2
    assert all(shape == "constant" for shape, _ in data["chosen"]["constant"])


def test_what_is_written_is_what_was_recorded(out, tmp_path):
    study.publish(out, tmp_path / "results")
    page = tmp_path / "schedules.md"
    page.write_text("before\n<!-- tables -->\nold\n<!-- /tables -->\nafter\n")
    study.write(tmp_path / "results", page)
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert text.count("no protection") == 3
    _, series = study.read("permuted_digits", "none", tmp_path / "results")
    whole = [sum(values) / len(values) for values in series["per_task"].values()]
    assert f"| {100 * sum(whole) / len(whole):.1f} ± " in text
    assert study.read("random_label_digits", "none", tmp_path / "results") is None


def test_it_goes_on_where_it_stopped(out, tmp_path):
    base, candidates = study.base("permuted_digits", "none", 2), study.settings()[::4]
    path = tmp_path / "per_task.json"
    study.per_task(base.replace(num_tasks=1), candidates, (100, 101), tmp_path)
    assert len(json.loads(path.read_text())["chosen"]) == 1
    study.per_task(base, candidates, (100, 101), tmp_path)
    whole = json.loads((out / "permuted_digits/none/per_task/per_task.json").read_text())
    assert json.loads(path.read_text()) == whole
