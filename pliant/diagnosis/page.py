"""A diagnosis as one HTML page: no other file, no network, readable in light and dark and without scripts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pliant.diagnosis.terminal import facts_line, trap_lines
from pliant.mechanisms import MECHANISMS
from pliant.report._page import PAGE_STYLE
from pliant.report.style import escape

if TYPE_CHECKING:
    from pliant.diagnosis.findings import Diagnosis, Finding

__all__ = ["html_text"]

_STYLE = (
    PAGE_STYLE
    + """
.tag.severe{color:var(--bad);border-color:var(--bad)}.tag.warning{color:var(--c6);border-color:var(--c6)}
.tag.note{color:var(--c1);border-color:var(--c1)}.tag.good{color:var(--good);border-color:var(--good)}
svg.strip{display:block;width:220px;height:18px}
svg.strip .twin{fill:var(--axis)}svg.strip .here{fill:var(--bad)}svg.strip line{stroke:var(--grid)}
"""
)
_TAGS = {"plasticity": "severe", "not plasticity": "good", "unknown": "warning"}


def html_text(diagnosis: Diagnosis, title: str) -> str:
    """The page as text."""
    sections = [_section(found) for mechanism in MECHANISMS if (found := diagnosis.of(mechanism))]
    more: list[tuple[str, Sequence[str]]] = [
        ("Frozen and cloned units", trap_lines(diagnosis)),
        ("Is the size of the weights the cause?", [diagnosis.causal.sentence] if diagnosis.causal else []),
        ("The probe", [diagnosis.probe] if diagnosis.probe else []),
        ("Methods attached", [f"{method.name}: {method.sentence}" for method in diagnosis.methods]),
        ("Not known", diagnosis.unknowns),
        ("Remarks", diagnosis.remarks),
    ]
    sections += [_list(name, lines) for name, lines in more if lines]
    tag = f'<span class="tag {_TAGS[diagnosis.verdict]}">{escape(diagnosis.verdict)}</span>'
    return "".join(
        [
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width,initial-scale=1">',
            f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>",
            f'<header><div class="brand">pliant</div><h1>{escape(title)} {tag}</h1>',
            f'<p class="lede">{escape(diagnosis.reason)}</p><p class="facts">{escape(facts_line(diagnosis))}</p>',
            "</header><main>",
            *sections,
            "</main><footer><p>A fresh twin is the same network with weights drawn anew. The grey dots are twins, the "
            "red one is this network.</p></footer></body></html>\n",
        ]
    )


def _section(found: Sequence[Finding]) -> str:
    about, worst = found[0].about, found[0].severity
    rows = "".join(
        f'<tr><td><code>{escape(f.layer)}</code></td><td class="left">{escape(f.severity)}</td>'
        f'<td class="wrap">{escape(f.sentence)}</td><td>{_strip(f)}</td></tr>'
        for f in found
    )
    methods = ", ".join(f"<code>{escape(name)}</code>" for name in about.methods)
    acting = f"<p>Methods that act on it: {methods}</p>" if methods else ""
    return (
        f'<section><h2>{escape(about.title)} <span class="tag {worst}">{worst}</span></h2>'
        f'<p class="text">{escape(about.sentence)}</p><div class="scroll"><table><thead><tr><th>layer</th>'
        f'<th class="left">severity</th><th class="left">evidence</th><th>beside fresh twins</th></tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
        f'<p class="muted">How sure: {escape(found[0].sureness)}.</p>{acting}</section>'
    )


def _strip(finding: Finding) -> str:
    """The value among those of the twins, on one line."""
    values = [v for v in (finding.value, *finding.twins) if abs(v) < float("inf")]
    if not finding.twins or len(values) < 2:
        return ""
    low, high = min(0.0, *values), max(values)
    width = (high - low) or 1.0

    def dot(value: float, kind: str, radius: float) -> str:
        return f'<circle class="{kind}" cx="{8 + 204 * (value - low) / width:.1f}" cy="9" r="{radius}"/>'

    dots = "".join(dot(v, "twin", 3.5) for v in finding.twins if abs(v) < float("inf"))
    here = dot(finding.value, "here", 4.5) if abs(finding.value) < float("inf") else ""
    return (
        f'<svg class="strip" viewBox="0 0 220 18" role="img" aria-label="{escape(f"{finding.value:.3g}")}">'
        f'<line x1="8" x2="212" y1="9" y2="9"/>{dots}{here}</svg>'
    )


def _list(title: str, lines: Sequence[str]) -> str:
    items = "".join(f"<p>{escape(line)}</p>" for line in lines)
    return f"<section><h2>{escape(title)}</h2>{items}</section>"
