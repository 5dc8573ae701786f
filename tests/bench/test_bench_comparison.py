"""The comparison of all methods: everything is in it, with equal budgets, and what it writes is what was recorded."""

from __future__ import annotations

import pytest

from benchmarks import comparison
from benchmarks.comparison_settings import ENTRIES, NUM_SETTINGS, STREAMS, settings
from pliant.bench.catalogue import catalogue
from pliant.bench.experiment import Experiment


def test_every_method_is_in_it_once():
    assert sorted(entry.page for entry in ENTRIES.values() if entry.page) == sorted(catalogue())


@pytest.mark.parametrize("stream", STREAMS)
def test_all_have_the_same_budget(stream):
    for name, entry in ENTRIES.items():
        found = settings(name, stream)
        assert len(set(found)) == len(found) == NUM_SETTINGS, name
        assert {experiment.num_tasks for experiment in found} == {comparison.NUM_TASKS}
        assert ENTRIES[entry.baseline].baseline in (entry.baseline, "none")
        assert all(Experiment.from_dict(experiment.to_dict()) == experiment for experiment in found)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("comparison")
    for name in ("none", "crelu"):
        assert comparison.run("permuted_digits", name, folder / "out", quick=True)
    comparison.publish(folder / "out", folder / "results")
    assert not (folder / "results").exists()  # of ten seeds there are two: not yet
    comparison.publish(folder / "out", folder / "results", num_seeds=2)
    return folder / "results"


def test_what_was_recorded_is_what_is_written(results, tmp_path):
    tables = tmp_path / "comparison.md"
    tables.write_text("before\n<!-- tables -->\nold\n<!-- /tables -->\nafter\n")
    (tmp_path / "crelu.md").write_text((comparison.PAGES / "crelu.md").read_text())
    assert comparison.write(results, tables, tmp_path) == []  # one stream alone is not in the pages
    text = tables.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    row = comparison.read("permuted_digits", "crelu", results)
    assert set(row.whole) == set(row.held_out) == {0, 1}
    assert row.setting.startswith("step size ")
    (line,) = [line for line in text.splitlines() if line.startswith("| [CReLU]")]
    assert f"| {100 * (row.whole[0] + row.whole[1]) / 2:.1f} ± " in line
    assert line.endswith("| 2 |")
    assert "Not run yet: fresh network per task" in text


def test_differences_are_to_the_right_baseline_and_failures_are_counted():
    def row(*values, failed=0):
        series = dict(enumerate(values))
        return comparison.Row("step size 0.1", series, series, {}, series, failed)

    there = {"none": row(0.5, 0.6), "l2": row(0.7, 0.8, failed=1), "momentum": row(0.1, 0.2), "adam": row(0.3, 0.3)}
    there["optimizer_reset"] = row(0.2, 0.3)
    rows = {"permuted_digits": there}
    assert comparison.difference("l2", there).mean == pytest.approx(0.2)
    assert comparison.difference("optimizer_reset", there).mean == pytest.approx(0.1)
    assert comparison.difference("none", there) is None
    assert comparison.difference("adam", there) is None
    assert "+20.0 ± 0.0 points against no protection" in comparison.sentence("l2", rows)
    assert "1 of 3 seeds failed" in comparison.sentence("l2", rows)
    table = comparison.table("permuted_digits", there)
    assert "| 2, 1 failed |" in table
    assert "held-out" not in table
