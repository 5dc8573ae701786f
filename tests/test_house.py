"""The rules of the house that no linter knows; each test lists every offender."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDERS = ("pliant", "references", "benchmarks", "examples", "tests", "docs", ".ci")
SUFFIXES = (".py", ".toml", ".md", ".svg", ".txt", ".json", ".csv", "")
MAX_LINES = 500


def is_source(path: Path) -> bool:
    parts = path.relative_to(ROOT).parts
    hidden = any(part.startswith(".") and part != ".ci" for part in parts)
    return path.is_file() and path.suffix in SUFFIXES and not hidden and "__pycache__" not in parts


TEXTS = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if is_source(path))
TEXTS += sorted(path for path in ROOT.iterdir() if is_source(path))
CODE = [path for path in TEXTS if path.suffix == ".py"]
PACKAGE = [path for path in CODE if path.is_relative_to(ROOT / "pliant")]


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def at(path: Path, node: ast.AST | None = None) -> str:
    line = "" if node is None else f":{getattr(node, 'lineno', 0)}"
    return f"{path.relative_to(ROOT).as_posix()}{line}"


def nodes(paths: list[Path], kind: type[ast.AST]) -> Iterator[tuple[Path, ast.AST]]:
    for path in paths:
        for node in ast.walk(ast.parse(read(path))):
            if isinstance(node, kind):
                yield path, node


def test_the_files_are_found():
    assert len(PACKAGE) > 50
    assert len(CODE) > len(PACKAGE)
    assert any(path.name == "README.md" for path in TEXTS)


def test_nothing_points_outside():
    """Someone else's machine has none of these folders."""
    places = re.compile(r"(?<![\w.])/(work|root|home/\w+|Users/\w+)/|\.\./shared|file://")
    texts = [path for path in TEXTS if not path.is_relative_to(ROOT / "tests")]
    assert [f"{at(path)}: {found[0]}" for path in texts if (found := places.search(read(path)))] == []


def test_files_stay_readable():
    long = [f"{at(path)}: {lines}" for path in CODE if (lines := len(read(path).splitlines())) > MAX_LINES]
    assert long == [], "split them by meaning"


def test_no_word_of_unfinished_work():
    words = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b")
    assert [at(path) for path in CODE if path != Path(__file__) and words.search(read(path))] == []


def test_nobody_touches_the_data_attribute():
    """Writes through ``.data`` pass by autograd's version counter; the editor writes under ``no_grad``."""
    assert [at(path, node) for path, node in nodes(PACKAGE, ast.Attribute) if node.attr == "data"] == []


def test_no_error_is_swallowed():
    found = []
    for path, node in nodes(PACKAGE, ast.ExceptHandler):
        broad = isinstance(node.type, ast.Name) and node.type.id in ("Exception", "BaseException")
        silent = all(isinstance(item, ast.Pass) for item in node.body)
        if node.type is None or (broad and silent):
            found.append(at(path, node))
    assert found == []


def public(body: list[ast.stmt]) -> Iterator[ast.FunctionDef | ast.ClassDef]:
    """Functions and classes that others may use, and the public methods of those classes."""
    for node in body:
        if not isinstance(node, ast.FunctionDef | ast.ClassDef) or node.name.startswith("_"):
            continue
        if any(isinstance(item, ast.Attribute) and item.attr == "setter" for item in node.decorator_list):
            continue
        yield node
        if isinstance(node, ast.ClassDef):
            yield from public(node.body)


def test_what_is_public_says_what_it_is():
    silent = [at(path) for path in PACKAGE if not (ast.get_docstring(ast.parse(read(path))) or "").strip()]
    for path in PACKAGE:
        for node in public(ast.parse(read(path)).body):
            if not (ast.get_docstring(node) or "").strip():
                silent.append(f"{at(path, node)} {node.name}")
    assert silent == []


def test_no_test_is_switched_off_without_a_reason():
    switches = re.compile(r"(mark\.(skip|skipif|xfail)|pytest\.(skip|xfail))$")
    found = []
    for path, node in nodes([path for path in CODE if "tests" in path.parts], ast.Call):
        if switches.search(ast.unparse(node.func)):
            reasons = [key.value for key in node.keywords if key.arg == "reason"] + node.args[:1]
            if not any(len(ast.unparse(reason)) > 10 for reason in reasons):
                found.append(at(path, node))
    assert found == []


def test_the_shipped_files_are_small():
    files = [path for path in (ROOT / "pliant").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert [at(path) for path in files if path.stat().st_size > 200_000] == []
