"""``pliant show``: one method or metric: idea, formula, options, what it needs; costs, or whose number it is."""

from __future__ import annotations

import inspect
import re
import shutil
import sys
import textwrap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, final

import tyro

from pliant.commands.base import Command
from pliant.commands.formula import plain_formula, plain_text

if TYPE_CHECKING:
    from pliant.bench.catalogue import About
    from pliant.metrics import MetricInfo

__all__ = ["Show"]

_MAX_WIDTH = 100
_INDENT = "  "


@final
@dataclass(frozen=True, kw_only=True)
class Show(Command):
    """Show one method or metric: its idea and formula, its options, what it needs, and what is known of it.

    NAME is from `pliant list methods`, a function of pliant.metrics, or my.module:MyMethod; both, if it is both.
    """

    examples: ClassVar[tuple[str, ...]] = (
        "pliant show redo",
        "pliant show effective_rank",
        "pliant show my.module:MyMethod",
    )
    positional: ClassVar[tuple[str, ...]] = ("name",)

    name: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="NAME")]
    """the method or metric"""

    def run(self) -> int:
        """Print it."""
        from pliant.bench.catalogue import about, catalogue
        from pliant.bench.names import unknown
        from pliant.metrics import CATALOGUE

        methods = catalogue()
        if ":" not in self.name and self.name not in methods and self.name not in CATALOGUE:
            raise unknown("method or metric", self.name, [*methods, *CATALOGUE])
        width = min(shutil.get_terminal_size().columns, _MAX_WIDTH) if sys.stdout.isatty() else 80
        pages = [page(about(self.name), width)] if ":" in self.name or self.name in methods else []
        if self.name in CATALOGUE:
            pages.append(metric_page(CATALOGUE[self.name], width))
        text, encoding = "\n\n\n".join(pages), sys.stdout.encoding or "utf-8"
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
    return "\n\n".join([*parts, _facts(facts, width)])


def metric_page(info: MetricInfo, width: int) -> str:
    """All that is known of a metric, in lines of at most so many columns."""
    from pliant.bench.catalogue import sections

    text, found = sections(inspect.getdoc(info.function) or "")
    signature = inspect.signature(info.function)
    parts = [f"{info.name}  ({info.module}.{info.name})", *_idea(text, width)]
    arguments = [f"{_INDENT}{p.replace(annotation=p.empty)}" for p in signature.parameters.values()]
    parts.append("takes\n" + "\n".join(arguments))
    facts = {
        "returns": found.get("Returns", ""),
        "reads": "a model and a batch" if info.needs == "model" else info.needs,
        "per": info.per,
        "healthy": info.better or "neither high nor low",
        "batch size": info.depends_on_batch,
        "offset": info.depends_on_offset,
        "scale": info.depends_on_scale,
        "is": "; ".join(f"{source} ({how})" for source, how in info.compatible_with.items()),
        "is not": "; ".join(f"{source} ({what})" for source, what in info.differs_from.items()),
        "source": found.get("Source", ""),
        "page": "docs/metrics.md",
    }
    return "\n\n".join([*parts, _facts(facts, width)])


def _facts(facts: Mapping[str, str], width: int) -> str:
    column = max(len(name) for name in facts) + 2 + len(_INDENT)
    return "\n".join(_fact(name, text, column, width) for name, text in facts.items() if text)


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
