"""``pliant list``: what can be named, read from the code itself."""

from __future__ import annotations

import inspect
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, final

import tyro

from pliant.bench.names import build, unknown
from pliant.commands.base import Command

__all__ = ["List"]


@final
@dataclass(frozen=True, kw_only=True)
class List(Command):
    """List the streams, methods, metrics and presets that can be named, with their options and defaults."""

    examples: ClassVar[tuple[str, ...]] = ("pliant list", "pliant list methods")
    positional: ClassVar[tuple[str, ...]] = ("kind",)

    kind: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="KIND")] = "all"
    """streams, methods, metrics, presets or all"""

    def run(self) -> int:
        """Print the lists."""
        sections: dict[str, Callable[[], str]] = {
            "streams": _streams,
            "methods": _methods,
            "metrics": _metrics,
            "presets": _presets,
        }
        if self.kind not in (*sections, "all"):
            raise unknown("list", self.kind, [*sections, "all"])
        chosen = sections if self.kind == "all" else {self.kind: sections[self.kind]}
        print("\n\n".join(f"{kind}\n{text()}" for kind, text in chosen.items()))
        return 0


def _lines(entries: Iterable[tuple[str, str, Mapping[str, Any]]]) -> str:
    """Names in one column, summaries and options in the next, as wide as the terminal; whole lines into a pipe."""
    found = list(entries)
    column = max(len(name) for name, _, _ in found) + 4
    width = _width()
    lines = []
    for name, summary, options in found:
        texts = [summary, ", ".join(f"{key}={value}" for key, value in options.items())]
        parts = [line for text in texts for line in textwrap.wrap(text, max(30, width - column))]
        lines += [f"{f'  {name}' if i == 0 else '':<{column}}{part}" for i, part in enumerate(parts)]
    return "\n".join(lines)


def _width() -> int:
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else 10_000


def _plain(text: str) -> str:
    return text.replace("``", "")


def _summary(thing: Any) -> str:
    """The first line of a docstring, without markup."""
    return _plain((inspect.getdoc(thing) or "").partition("\n")[0])


def _options(cls: type[Any]) -> dict[str, Any]:
    from pliant.bench.names import option_names

    return {name: _default(parameter.default) for name, parameter in option_names(cls).items()}


def _default(value: object) -> str:
    return "(required)" if value is inspect.Parameter.empty else repr(value)


def _streams() -> str:
    from pliant.bench.streams import STREAMS

    return _lines((name, _summary(cls), _options(cls)) for name, cls in STREAMS.items())


def _methods() -> str:
    """One method, one file: the file's first line says what it is, ``pliant show`` the rest."""
    from pliant.bench.catalogue import About, about, catalogue

    items = [about(name) for name in catalogue()]

    def row(item: About) -> tuple[str, ...]:
        cost = f"{item.cost.step:.2f}x" if item.cost else "-"
        return item.name, item.source or "-", cost, "yes" if item.needs_boundary else "no"

    rows = [row(item) for item in items]
    head = ("name", "source", "cost", "needs boundary")
    widths = [max(map(len, column)) + 2 for column in zip(head, ("none", "-", "1.00x", "no"), *rows, strict=True)]

    def line(cells: tuple[str, ...]) -> str:
        return ("  " + "".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True))).rstrip()

    lines = [line(head), line(("none", "-", "1.00x", "no")), *_indented(["Plain training."])]
    for item, cells in zip(items, rows, strict=True):
        options = ", ".join(f"{option.name}={option.default}" for option in item.options)
        lines += [line(cells), *_indented([_plain(item.title), options])]
    about_cost = "cost: a training step over a plain one (for layers and optimizers, with what they replace)"
    lines += ["", *_indented([f"{about_cost}; see pliant show METHOD"], "  ")]
    return "\n".join(lines)


def _indented(texts: Iterable[str], indent: str = " " * 6) -> list[str]:
    width = _width()
    return [
        part for text in texts for part in textwrap.wrap(text, width, initial_indent=indent, subsequent_indent=indent)
    ]


def _metrics() -> str:
    from pliant.report.metrics import METRICS

    return _lines((name, metric.text or metric.title, {}) for name, metric in METRICS.items())


def _presets() -> str:
    from pliant.bench.presets import PRESETS
    from pliant.bench.streams import STREAMS, traits

    entries: list[tuple[str, str, Mapping[str, Any]]] = []
    for stream, presets in PRESETS.items():
        for preset, settings in presets.items():
            parts = [f"{settings['num_tasks']} tasks"]
            for part in ("model", "optimizer"):
                options = ", ".join(f"{key}={value}" for key, value in settings[part].items() if key != "name")
                parts.append(f"{settings[part]['name']} {options}".rstrip())
            data = traits(build("stream", STREAMS[stream], settings["stream"])).requires_data
            if data:
                parts.append(f"needs {data}")
            entries.append((f"{stream} {preset}", ", ".join(parts), settings["stream"]))
    return _lines(entries)
