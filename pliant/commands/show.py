"""``pliant show``: one method: idea, formula, options and where their defaults come from, what it needs and costs."""

from __future__ import annotations

import re
import shutil
import sys
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, final

import tyro

from pliant.commands.base import Command
from pliant.commands.formula import plain_formula, plain_text

if TYPE_CHECKING:
    from pliant.bench.catalogue import About

__all__ = ["Show"]

_MAX_WIDTH = 100
_INDENT = "  "


@final
@dataclass(frozen=True, kw_only=True)
class Show(Command):
    """Show one method: its idea and formula, its options and where their defaults come from, what it needs and costs.

    METHOD is a name from `pliant list methods` or my.module:MyMethod.
    """

    examples: ClassVar[tuple[str, ...]] = ("pliant show redo", "pliant show my.module:MyMethod")
    positional: ClassVar[tuple[str, ...]] = ("method",)

    method: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="METHOD")]
    """the method"""

    def run(self) -> int:
        """Print it."""
        from pliant.bench.catalogue import about

        width = min(shutil.get_terminal_size().columns, _MAX_WIDTH) if sys.stdout.isatty() else 80
        text, encoding = page(about(self.method), width), sys.stdout.encoding or "utf-8"
        print(text.encode(encoding, "replace").decode(encoding))  # Greek letters where the terminal has none
        return 0


def page(item: About, width: int) -> str:
    """All that is known of a method, in lines of at most so many columns."""
    title = f"{item.name}  ({item.cls.__name__})"
    parts = [title + "\n" + _wrapped(plain_text(item.title), width, "")]
    parts += _idea(item.text, width)
    if item.options:
        parts.append("options\n" + "\n".join(_option(item, width)))
    facts = {
        "acts": item.when,
        "waits for": ", ".join(_calls(item)),
        "reads": ", ".join(name.replace("_", " ") for name in item.reads),
        "keeps": "; ".join(f"{name} ({what})" for name, what in item.keeps.items()) or "nothing",
        "edits": item.edits,
        "conflicts": "; ".join(f"{name}: {why}" for name, why in item.conflicts.items()),
        "deviations": item.section("Deviations"),
        "cost": item.cost.sentence() if item.cost else "not measured",
        "source": item.section("Source") or item.source,
        "page": item.page,
    }
    column = max(len(name) for name in facts) + 2 + len(_INDENT)
    parts.append("\n".join(_fact(name, text, column, width) for name, text in facts.items() if text))
    return "\n\n".join(parts)


def _idea(text: str, width: int) -> Iterable[str]:
    """The docstring's paragraphs; formulas stand by themselves."""
    lines = text.splitlines()
    paragraphs: list[str] = []
    while lines:
        line = lines.pop(0)
        if line.startswith(".. math::"):
            body = [line.removeprefix(".. math::")]
            while lines and (lines[0].startswith(" ") or not lines[0].strip()):
                body.append(lines.pop(0))
            formula = plain_formula("\n".join(body)).splitlines()
            paragraphs.append("\n".join(_wrapped(part, width, 2 * _INDENT) for part in formula))
            paragraphs.append("")
        elif not line.strip():
            paragraphs.append("")
        elif paragraphs and paragraphs[-1] and not paragraphs[-1].startswith(2 * _INDENT):
            paragraphs[-1] += " " + line.strip()
        else:
            paragraphs.append(line.strip())
    return [
        paragraph if paragraph.startswith(2 * _INDENT) else _wrapped(plain_text(paragraph), width, "")
        for paragraph in paragraphs
        if paragraph
    ]


def _option(item: About, width: int) -> Iterable[str]:
    for option in item.options:
        yield f"{_INDENT}{option.name} = {option.default}"
        if option.meaning:
            yield _wrapped(plain_text(option.meaning), width, 3 * _INDENT)
        yield _wrapped(f"default: {plain_text(option.origin) or 'its origin is not stated'}", width, 3 * _INDENT)


def _calls(item: About) -> list[str]:
    waiting = {
        "handle.task_boundary()": item.needs_boundary,
        "handle.penalty(), added to the loss": item.needs_penalty,
        "handle.batch(...), before the forward pass": item.needs_batch,
    }
    return [call for call, needed in waiting.items() if needed]


def _fact(name: str, text: str, column: int, width: int) -> str:
    body = _wrapped(plain_text(" ".join(text.split())), width, " " * column)
    return f"{_INDENT}{name}".ljust(column) + body.lstrip()


def _wrapped(text: str, width: int, indent: str) -> str:
    text = re.sub(r"\s*\n\s*", " ", text)
    return textwrap.fill(
        text, width, initial_indent=indent, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )
