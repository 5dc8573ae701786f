"""What the page for production shows works, and the page of the year says what the records say."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_the_snippets_run_one_after_the_other(tmp_path, monkeypatch, capsys):
    page = (ROOT / "docs" / "production.md").read_text(encoding="utf-8")
    snippets = re.findall(r"^```python\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL)
    assert len(snippets) == 7
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for snippet in snippets:
        exec(compile(snippet, "production.md", "exec"), names)
    said = capsys.readouterr().out
    assert "('body.0',)" in said
    assert "extended: words.weight (100 x 16 then, 130 x 16 now)" in said
    assert all(int(count) == 0 for count in names["handle"].immature(20).values())
    assert (tmp_path / "logs" / "edits.jsonl").read_text().startswith('{"begins": "resumed"')


@pytest.mark.parametrize("name", ["production.md", "results/daily_job.md"])
def test_links_and_pictures_are_there(name):
    page = ROOT / "docs" / name
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        assert target.startswith("http") or (page.parent / target).exists(), target


def test_the_tables_of_the_year_are_those_of_the_records():
    from benchmarks import daily_job

    records = daily_job.read()
    page = (ROOT / "docs" / "results" / "daily_job.md").read_text(encoding="utf-8")
    assert (daily_job.tables(records) if records else "Not run yet.") in page
    for years in records.values():
        for year in years.values():
            assert year["days"] == 365
            assert len(year["columns"]["test"]) == 365
            assert re.fullmatch(r"[0-9a-f]{40}", year["commit"])
            assert (year["kills"] > 50) == year["watched"]
    for file in (ROOT / "benchmarks" / "results" / "daily_job").glob("*.json"):
        assert file.stat().st_size < 1_000_000
        json.loads(file.read_text(encoding="utf-8"))
