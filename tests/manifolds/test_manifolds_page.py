"""The page's snippets run, one after the other."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "manifolds.md"


def test_the_snippets_run_and_show_what_the_page_says(capsys):
    snippets = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    names: dict[str, object] = {}
    for snippet in snippets:
        exec(compile(snippet, PAGE.name, "exec"), names)
    text = capsys.readouterr().out
    for shown in (
        "0: 12 units in 4 blocks of 3 to 3",
        "block_constant: does not hold",
        "100% of the units have a clone (shuffled: 0%)",
        "no clones: no more than in shuffled networks",
        "on the manifold; normal share of the gradient",
        "leaves from a redistributed leaf",
        "saddle",
    ):
        assert shown in text, shown
