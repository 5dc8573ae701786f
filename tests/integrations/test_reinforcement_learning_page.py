"""What the page for users of agents shows works, in its order."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytest.importorskip("stable_baselines3", reason="the page is about Stable-Baselines3")
PAGE = Path(__file__).parents[2] / "docs" / "reinforcement_learning.md"


def test_the_snippets_run_one_after_the_other(capsys):
    snippets = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert len(snippets) == 6
    names: dict[str, object] = {}
    for snippet in snippets:
        exec(compile(snippet, PAGE.name, "exec"), names)
    text = capsys.readouterr().out
    assert "saved while ContinualBackprop" in text
    assert names["protect"].handle.num_steps == 160, "80 before it was saved, and 80 after"
    assert sum(int(total) for total in names["protect"].handle.num_resets.values()) > 0
    assert list(names["found"]) == ["actor", "critic"]
    assert names["result"].gap.num == 3
