"""The committed pages say what the committed records say."""

import json
from pathlib import Path

from benchmarks.interval_coverage import table
from pliant.records import read_records
from pliant.report import html_text, markdown_text, read_trials

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"


def test_the_tables_of_the_demo_are_those_of_its_records():
    page = (ROOT / "docs" / "results" / "demo.md").read_text(encoding="utf-8")
    assert markdown_text(read_records(RESULTS / "demo")).strip() in page, (
        "print them anew: pliant report benchmarks/results/demo --markdown tables.md"
    )


def test_the_coverage_of_the_intervals_is_that_of_its_record():
    page = (ROOT / "docs" / "statistics.md").read_text(encoding="utf-8")
    record = json.loads((RESULTS / "statistics" / "coverage.json").read_text(encoding="utf-8"))
    assert table(record["coverage"]) in page, "python benchmarks/interval_coverage.py --write"


def test_the_demo_with_its_trials_is_a_page():
    trials = read_trials(RESULTS / "tuning")
    assert [item.budget for item in trials] == [8, 8]
    page = html_text(read_records(RESULTS / "demo"), trials=trials)
    for word in ("Leaderboard", "Would static data have told the order?", "What tuning contributes", "share the best"):
        assert word in page
    assert len(page) < 700_000
