"""A grid as an HTML table that can be sorted and filtered."""

from __future__ import annotations

import math
from collections.abc import Mapping

from pliant.report.cells import Cell, Grid, Heading, Line
from pliant.report.style import Style, escape, swatch

__all__ = ["grid_html"]


def grid_html(grid: Grid, styles: Mapping[str, Style], caption: str) -> str:
    """The table; its first column stays in view where it is wider than the page.

    Args:
        grid: What it shows.
        styles: Label to style, for the piece of line beside each name.
        caption: What the table is, for those who do not see where it stands.
    """
    head = "".join(_heading(heading, i, i == grid.sorted_by) for i, heading in enumerate(grid.headings))
    body = "".join(_line(line, grid, styles) for line in grid.lines)
    wide = " wide" if len(grid.headings) > 6 else ""
    return (
        f'<div class="scroll{wide}" role="region" tabindex="0" aria-label="{escape(caption)}">'
        f'<table aria-label="{escape(caption)}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>\n'
    )


def _heading(heading: Heading, place: int, is_sorted: bool) -> str:
    unit = f"<small>{escape(heading.unit)}</small>" if heading.unit else ""
    about = f' title="{escape(heading.about)}"' if heading.about else ""
    # The better end comes first; names from A to Z.
    first = "ascending" if heading.better == "lower" or place == 0 else "descending"
    order = f' aria-sort="{first}"' if is_sorted else ""
    return (
        f'<th scope="col"{_stream(heading)}{order} data-first="{first}"><button type="button" class="sort"{about}>'
        f'<span class="name">{escape(heading.name)}</span>{unit}</button></th>'
    )


def _line(line: Line, grid: Grid, styles: Mapping[str, Style]) -> str:
    named = line.method is not None and line.method.is_reference and "reference" not in line.label.lower()
    tag = ' <span class="tag">reference</span>' if named else ""
    name = _link(escape(line.label), line.run)
    mark = swatch(styles[line.label]) if line.label in styles else ""
    cells = "".join(_cell(cell, heading) for cell, heading in zip(line.cells, grid.headings[1:], strict=True))
    kind = ' class="reference"' if line.method is not None and line.method.is_reference else ""
    return (
        f'<tr{kind} data-label="{escape(line.label)}"><th scope="row" data-value="{escape(line.label)}">{mark}{name}'
        f"{tag}</th>{cells}</tr>"
    )


def _cell(cell: Cell, heading: Heading) -> str:
    value = ""
    if cell.value is not None and not math.isnan(cell.value):
        infinite = "Infinity" if cell.value > 0 else "-Infinity"
        value = f' data-value="{cell.value!r}"' if math.isfinite(cell.value) else f' data-value="{infinite}"'
    if cell.drawing:
        return f"<td{_stream(heading)}{value}>{cell.drawing}</td>"
    main, sign, rest = _parts(cell.text)
    kind = f' class="{cell.verdict}"' if cell.verdict else ""
    inner = f"<span{kind}>{escape(main)}</span>" + (f'<span class="pm">{escape(sign + rest)}</span>' if rest else "")
    return f"<td{_stream(heading)}{value}>{_link(inner, cell.run)}</td>"


def _parts(text: str) -> tuple[str, str, str]:
    """A number and its interval, which steps back."""
    for sign in (" ± ", " ["):
        if sign in text:
            return text.partition(sign)
    return text, "", ""


def _stream(heading: Heading) -> str:
    return "" if heading.stream is None else f' data-stream="stream-{heading.stream}"'


def _link(text: str, run: str) -> str:
    return f'<a class="run" href="#run-{escape(run)}" title="what exactly was run">{text}</a>' if run else text
