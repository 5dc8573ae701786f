"""What the pages of the documentation show runs: Python block after block, and the commands that are meant to be."""

from __future__ import annotations

import inspect
import re
import shlex
import sys
from importlib import import_module
from pathlib import Path

import pytest

import pliant
from pliant.cli import main

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", flags=re.MULTILINE | re.DOTALL)

ELSEWHERE = {
    "environments.md": "bench/test_bench_environments_page.py",
    "integrations.md": "integrations/frameworks.py",
    "diagnosis.md": "diagnosis/test_diagnosis.py",
    "language_models.md": "lm/test_lm_transformers.py",
    "manifolds.md": "manifolds/test_manifolds_page.py",
    "monitor.md": "monitor/test_monitor_readings.py",
    "probe.md": "probe/test_probe_docs.py",
    "reinforcement_learning.md": "integrations/test_reinforcement_learning_page.py",
    "spectrum.md": "spectrum/test_spectrum_page.py",
}
"""Pages whose code is run by a test of its own, which looks at what it prints; those of methods: test_method_pages."""

AFTER_A_RUN = {"running.md"}
"""Pages whose code reads the results of a run that their first lines show, at its full size."""
SMALL_RUN = "run random_label_digits --tasks 2 --seeds 2 --set stream.num_epochs=1 --workers 0"


def pages() -> list[str]:
    """Pages with something to run."""
    found = [path for path in DOCS.rglob("*.md") if "_build" not in path.parts]
    names = [
        str(path.relative_to(DOCS)) for path in found if re.search(r"^```(python|sh)\n", path.read_text("utf-8"), re.M)
    ]
    return sorted(name for name in names if name not in ELSEWHERE and not name.startswith("methods/"))


def blocks(page: str) -> list[tuple[str, str]]:
    return BLOCK.findall((DOCS / page).read_text(encoding="utf-8"))


@pytest.mark.parametrize("page", pages())
def test_the_code_of_a_page_runs(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    names: dict[str, object] = {"__name__": "__main__"}
    (tmp_path / "benchmarks").symlink_to(ROOT / "benchmarks")  # commands are given from the root of the repository
    if page in AFTER_A_RUN:
        assert main(SMALL_RUN.split()) == 0
    for language, text in blocks(page):
        if language == "python":
            file = re.match(r"# (\w+\.py)\n", text)
            if file is not None:  # shown as a file of its own
                (tmp_path / file[1]).write_text(text, encoding="utf-8")
            exec(compile(text, page, "exec", dont_inherit=True), names)
        elif language == "sh":
            for line in text.replace("\\\n", " ").splitlines():
                command = shlex.split(line, comments=True)
                if command:
                    assert command[0] == "pliant", f"{page}: a test can run nothing but pliant: {line}"
                    assert main(command[1:]) == 0, (line, capsys.readouterr())
    for name in set(sys.modules) - before:  # a file of the page is no module for other tests
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def test_every_page_with_code_is_run_by_some_test():
    for page, test in ELSEWHERE.items():
        assert page in (ROOT / "tests" / test).read_text(encoding="utf-8"), page
        assert any(language == "python" for language, _ in blocks(page)), page


def test_the_commands_of_all_pages_exist(capsys):
    seen = 0
    for path in [*DOCS.rglob("*.md"), ROOT / "CONTRIBUTING.md"]:
        for language, text in BLOCK.findall(path.read_text(encoding="utf-8")):
            if language != "":
                continue
            for line in text.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                if words[:1] == ["pliant"]:
                    assert main([*words[1:], "--help"]) == 0, (path.name, line)
                    seen += 1
                elif words[:1] == ["python"] and not words[1].startswith("-"):
                    assert (ROOT / words[1]).exists(), (path.name, line)
                    seen += 1
    capsys.readouterr()
    assert seen > 25


def test_every_public_name_has_an_example():
    without = []
    integrations = [f"pliant.integrations.{name}" for name in pliant._INTEGRATIONS]  # all frameworks are in `dev`
    for module in ("pliant", *(f"pliant.{name}" for name in pliant._MODULES), *integrations):
        for name in import_module(module).__all__:
            value = getattr(import_module(module), name)
            if callable(value) and ">>>" not in (inspect.getdoc(value) or ""):
                without.append(f"{module}.{name}")
    assert without == []


def test_which_method_says_what_the_records_say():
    from benchmarks.which_method import PAGE, filled

    text = PAGE.read_text(encoding="utf-8")
    assert filled(text) == text, "run python benchmarks/which_method.py"
    assert text.count("▲") > 10
