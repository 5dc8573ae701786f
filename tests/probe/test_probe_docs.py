"""What the page about probes shows works, and its numbers are those of the committed result."""

from __future__ import annotations

import json
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "probe.md").read_text(encoding="utf-8")


def test_the_snippets_run_one_after_the_other(capsys):
    names: dict[str, object] = {}
    snippets = re.findall(r"^```python\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)
    assert len(snippets) == 5
    for snippet in snippets:
        exec(compile(snippet, "probe.md", "exec"), names)
    assert names["result"].outcome == "worse"
    assert names["before"].minus(names["after"]).mean > 0
    shown = re.findall(r"^```text\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)
    assert len(shown) == 2
    printed = capsys.readouterr().out
    for text in shown:
        for line in text.splitlines():
            for part in line.split("..."):
                assert part.strip() in printed


def test_the_numbers_are_those_of_the_result():
    found = json.loads((ROOT / "benchmarks" / "results" / "probe" / "agreement.json").read_text(encoding="utf-8"))
    low, high = found["interval"]
    assert f"rank correlation {found['rank_correlation']:.3f}" in PAGE
    assert f"{low:.3f} to {high:.3f}" in PAGE
    assert found["meta"]["git_commit"][:7] in PAGE
    assert found["rank_correlation"] >= 0.8
    assert found["config"]["probe"]["steps"] == 150
    fresh = [name for name in found["probe"] if name.endswith(" 0 tasks")]
    for key, text in (("live", "0.21 to 0.50"), ("probe", "0.01 to 0.07")):
        values = [found[key][name] for name in fresh]
        assert text == f"{min(values):.2f} to {max(values):.2f}"
        assert text.split()[0] in PAGE
