"""Colours that colour-blind readers can tell apart, in light and dark, and the escaping of every name."""

from __future__ import annotations

import html
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from pliant.report.summary import Method, Stream

__all__ = ["CHART_STYLE", "COLOUR_STYLE", "Style", "clean", "escape", "short", "styles_of", "swatch"]

# Okabe and Ito's palette, lightened on dark ground. The first colour is for training without protection, the last
# for the reference that starts afresh with every task.
_LIGHT = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#56b4e9", "#7a5195", "#e69f00", "#66717f")
_DARK = ("#ff8a3d", "#4aa8ee", "#2fc79a", "#ee9cc9", "#9bd8fb", "#b79be0", "#f3c75e", "#a3afbd")
_BASELINE, _REFERENCE = 0, len(_LIGHT) - 1
_COLOUR_OF = {
    "": _BASELINE,
    "continual_backprop": 1,
    "l2": 2,
    "redo": 3,
    "shrink_and_perturb": 4,
    "fresh_start": _REFERENCE,
}
_DASHES = ("none", "6 3", "2 3", "7 3 2 3")

_INK = {
    "ink": ("#1b2330", "#e8ecf2"),
    "muted": ("#5a6676", "#a0acba"),
    "grid": ("#e4e8ee", "#2b343f"),
    "axis": ("#98a2b0", "#5f6b7a"),
    "paper": ("#ffffff", "#14191f"),
    "wash": ("#f2f5f8", "#1c232c"),
    "good": ("#0b7a55", "#41d3a2"),
    "bad": ("#b3401a", "#ff9a66"),
}


def _variables(which: int) -> str:
    colours = {name: pair[which] for name, pair in _INK.items()}
    colours |= {f"c{i}": colour for i, colour in enumerate((_LIGHT, _DARK)[which])}
    return "".join(f"--{name}:{colour};" for name, colour in colours.items())


COLOUR_STYLE = f":root{{{_variables(0)}}}@media (prefers-color-scheme:dark){{:root{{{_variables(1)}}}}}"
"""The colours as CSS variables, for light and dark."""

CHART_STYLE = (
    ".chart text{font:12px system-ui,-apple-system,'Segoe UI',Roboto,'DejaVu Sans',sans-serif;fill:var(--muted)}"
    ".chart .title{font-size:16px;font-weight:600;fill:var(--ink)}.chart .name{fill:var(--ink);"
    "paint-order:stroke;stroke:var(--paper);stroke-width:3px;stroke-linejoin:round}"
    ".chart .grid{stroke:var(--grid)}.chart .axis{stroke:var(--axis)}.chart .window{fill:var(--wash)}"
    ".chart .line{fill:none;stroke-width:2.2;stroke-linejoin:round;stroke-linecap:round}"
    ".chart .band{opacity:.15;stroke:none}.chart .leader{fill:none;stroke:var(--axis)}"
)
"""What a chart needs besides; a page includes both once, a standalone figure carries them."""


@dataclass(frozen=True)
class Style:
    """How a method is drawn everywhere: the number of its colour and of its dashes."""

    colour: int
    dash: int = 0

    @property
    def css(self) -> str:
        """Its colour as a CSS value."""
        return f"var(--c{self.colour})"

    @property
    def dasharray(self) -> str:
        """Its dashes as an SVG attribute value."""
        return _DASHES[self.dash]

    @property
    def dashes(self) -> str:
        """The whole SVG attribute, nothing where the line is solid."""
        return f' stroke-dasharray="{self.dasharray}"' if self.dash else ""


def styles_of(streams: Iterable[Stream]) -> dict[str, Style]:
    """One style per label, the same in every figure of a report.

    The colour says which method it is, and for the methods of :mod:`pliant` it is the same in every report; runs of
    one method with other settings share it and differ in their dashes. Methods that nobody has heard of take the
    colours that are left; when none is, colours come again with other dashes.
    """
    methods = {method.label: method for stream in streams for method in stream.methods}
    colours: dict[str, int] = {}
    kinds = {label: _kind(method) for label, method in methods.items()}
    for kind in kinds.values():
        if kind in _COLOUR_OF:
            colours[kind] = _COLOUR_OF[kind]
    free = [colour for colour in range(_REFERENCE) if colour not in colours.values() and colour != _BASELINE]
    others = list(dict.fromkeys(kind for kind in kinds.values() if kind not in colours))
    for i, kind in enumerate(others):
        colours[kind] = (free or list(range(_BASELINE + 1, _REFERENCE)))[i % (len(free) or _REFERENCE - 1)]
    styles: dict[str, Style] = {}
    used: Counter[int] = Counter()
    for label, kind in kinds.items():
        colour = colours[kind]
        first = 1 if colour == _REFERENCE else 0
        styles[label] = Style(colour, (first + used[colour]) % len(_DASHES))
        used[colour] += 1
    return styles


def _kind(method: Method) -> str:
    """Which method it is, whatever its settings; empty for training without protection."""
    return " + ".join(method.names)


def swatch(style: Style) -> str:
    """A piece of a method's line, to stand beside its name in a page."""
    return (
        '<svg class="swatch" viewBox="0 0 22 10" aria-hidden="true"><line x1="0" x2="22" y1="5" y2="5" '
        f'stroke="{style.css}" stroke-width="3.5" stroke-dasharray="{style.dasharray}"/></svg>'
    )


def short(label: str, length: int) -> str:
    """A label that fits, without its middle: labels that share a beginning often differ at their end."""
    if len(label) <= length:
        return label
    end = length // 3
    return f"{label[: length - 1 - end].rstrip()}…{label[-end:].lstrip()}"


def clean(text: object) -> str:
    """Text without control characters and without the marks that turn the direction of what follows, replaced by �.

    Letters that are written from right to left stay as they are.

    Example:
        >>> [ord(letter) for letter in clean(chr(0x202E) + "b")]
        [65533, 98]
    """
    controls = r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
    return re.sub(controls, "\ufffd", str(text))


def escape(text: object) -> str:
    """Text that is safe inside HTML and SVG, as content and in quotes, and :func:`clean`.

    Example:
        >>> escape('<b title="x">&')
        '&lt;b title=&quot;x&quot;&gt;&amp;'
    """
    return html.escape(clean(text))
