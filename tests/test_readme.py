"""What the README shows works, and the files and commands that it names exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from pliant import interventions
from pliant.bench.catalogue import catalogue
from pliant.bench.names import snake_case
from pliant.cli import main

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES += sorted((ROOT / "docs" / "methods").glob("*.md"))


def blocks(language: str) -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)
    return [text for name, text in found if name == language]


def test_the_snippets_run_one_after_the_other(capsys):
    names: dict[str, object] = {}
    snippets = blocks("python")
    assert len(snippets) == 10
    for snippet in snippets:
        exec(compile(snippet, "README.md", "exec"), names)
    text = capsys.readouterr().out
    assert "reset" in text
    assert "it is the model's output" in text
    assert "would have been reset (dry run)" in text
    assert names["declared"]["fc1"].tensors == ("fc1.weight", "fc1.bias", "left.weight", "right.weight")
    assert [group.name for group in names["both"].units] == ["actor.0", "critic.0"]
    assert names["targets"].shape == (64,), "32 new examples and 32 of the past"
    assert names["loss"].isfinite()
    assert names["tensors"]
    assert names["metadata"]
    assert sum(int(count.sum()) for count in names["handle"].num_resets.values()) > 0


def test_the_commands_exist(capsys):
    lines = [line.partition("#")[0] for block in blocks("") for line in block.splitlines()]
    commands = [shlex.split(line)[1:] for line in lines if line.startswith("pliant ")]
    assert len(commands) >= 5
    for command in commands:  # with --help, every option is checked and nothing is run
        assert main([*command, "--help"]) == 0, command
        assert "usage: pliant" in capsys.readouterr().out


def test_the_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for page in PAGES:
        lines = re.findall(r"^make ([a-z-]+)|`make ([a-z-]+)[` ]", page.read_text(encoding="utf-8"), re.MULTILINE)
        for target in (first or second for first, second in lines):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), (page.name, target)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(page: Path):
    code = r"^```.*?^```|`[^`\n]*`|\$[^$\n]*\$"  # there, brackets one after the other are no link
    text = re.sub(code, "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


def test_the_table_of_methods_has_all_of_them_and_links_to_their_pages():
    rows = re.findall(r"^\| \[?`(\w+)`(?:\]\((.*?)\))? \|", README, re.MULTILINE)
    named = [name for name, _ in rows]
    assert len(set(named)) == len(named)
    assert set(interventions.__all__) <= set(named)
    assert {snake_case(name) for name in named} == set(catalogue())
    for name, link in rows:
        page = f"docs/methods/{snake_case(name)}.md"
        assert link == (page if (ROOT / page).exists() else ""), name
