"""What the page about changing environments shows works, and it names every preset."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytest.importorskip("mujoco", reason="the environments need the extra rl: pip install 'pliant[rl]'")

from pliant.bench.rl.environments import ENVIRONMENTS


def test_the_snippets_of_the_page_run_one_after_the_other(capsys):
    page = (Path(__file__).parents[2] / "docs" / "environments.md").read_text(encoding="utf-8")
    names: dict[str, object] = {}
    snippets = re.findall(r"^```python\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL)
    assert len(snippets) == 6
    for snippet in snippets:
        exec(compile(snippet, "environments.md", "exec"), names)
    printed = capsys.readouterr().out
    for shown in re.findall(r"^```text\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL):
        assert shown in printed
    assert "[0, 0, 0, 0]" in printed
    table = page.partition("## Presets")[2].partition("###")[0]
    assert set(re.findall(r"`([a-z_]+)`", table)) - {"every", "schedule"} == set(ENVIRONMENTS)
