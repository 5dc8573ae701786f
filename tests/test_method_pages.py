"""Every exported method has its page, of one form, whose example runs; and says where it and its defaults come from."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from pliant.bench.catalogue import About, about, catalogue
from pliant.bench.experiment import method_table

FOLDER = Path(__file__).parents[1] / "docs" / "methods"
HEADINGS = ("Idea", "Formula", "Usage", "Cost", "Implementation details", "Deviations", "Results")
MARKERS = ("<!-- cost -->", "<!-- /cost -->")

NO_PAGE: set[str] = set()
"""Methods whose page is still to be written; it has to stay empty."""
NO_ORIGIN: set[str] = set()
"""Methods that do not yet say where they and their defaults come from; it has to stay empty."""

NAMES = list(catalogue())


def parts_of(name: str) -> tuple[str, dict[str, str]]:
    """The title of a page, and the text under each of its headings, in order."""
    text = (FOLDER / f"{name}.md").read_text(encoding="utf-8")
    outside = re.sub(r"^```.*?^```", lambda block: re.sub("^#", "%", block[0], flags=re.M), text, flags=re.M | re.S)
    pieces = re.split(r"^#+ (.*)\n", outside, flags=re.MULTILINE)
    assert not pieces[0].strip(), "nothing stands before the title"
    levels = re.findall(r"^(#+) ", outside, flags=re.MULTILINE)
    assert levels == ["#", *["##"] * (len(levels) - 1)], "one title, and headings of one level under it"
    assert not pieces[2].strip(), "nothing stands between the title and the first heading"
    return pieces[1], dict(zip(pieces[3::2], pieces[4::2], strict=True))


def test_the_lists_of_what_is_missing_are_right():
    assert {name for name in NAMES if not (FOLDER / f"{name}.md").exists()} == NO_PAGE
    assert {name for name in method_table() if not states_its_origin(about(name))} == NO_ORIGIN


def test_there_is_no_page_of_a_method_that_does_not_exist():
    assert {path.stem for path in FOLDER.glob("*.md")} - {"README"} <= set(NAMES)


def states_its_origin(item: About) -> bool:
    return bool(item.cls.source) and all(option.origin for option in item.options)


@pytest.mark.parametrize("name", [name for name in method_table() if name not in NO_ORIGIN])
def test_every_default_has_an_origin(name):
    item = about(name)
    assert re.search(r"\d{4}|[Cc]lassic|example|this library", item.source), item.source
    assert list(item.cls.defaults) == [field.name for field in dataclasses.fields(item.cls)]
    assert all(text.strip() for text in item.cls.defaults.values())
    assert item.section("Source")


@pytest.mark.parametrize("name", [name for name in NAMES if name not in method_table()])
def test_layers_and_optimizers_name_their_source(name):
    assert re.search(r"\d{4}", about(name).source), about(name).source


@pytest.mark.parametrize("name", [name for name in NAMES if name not in NO_PAGE])
def test_a_page_has_the_fixed_headings(name):
    title, parts = parts_of(name)
    assert title == catalogue()[name].__name__
    assert tuple(parts) == HEADINGS
    assert all(text.strip() for text in parts.values())
    lines = parts["Cost"].splitlines()
    places = [lines.index(marker) for marker in MARKERS]
    assert places[0] < places[1], "the measured numbers stand between the two markers"
    assert "".join(lines[: places[0]]).strip(), "the cost is also said in words"
    for text in parts.values():
        for target in re.findall(r"\]\(([^)#]+)\)", re.sub(r"\$[^$]*\$|`[^`]*`", "", text)):  # not in maths or code
            assert target.startswith("http") or (FOLDER / target).exists(), target


@pytest.mark.parametrize("name", [name for name in NAMES if name not in NO_PAGE])
def test_the_usage_of_a_page_runs(name):
    _, parts = parts_of(name)
    blocks = re.findall(r"^```python\n(.*?)^```", parts["Usage"].replace("\n%", "\n#"), flags=re.MULTILINE | re.DOTALL)
    assert len(blocks) == 1, "one block that runs as it is"
    assert catalogue()[name].__name__ in blocks[0]
    exec(compile(blocks[0], f"{name}.md", "exec"), {"__name__": "__main__"})
