"""The page of a diagnosis in a terminal."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from pliant.mechanisms import MECHANISMS

if TYPE_CHECKING:
    from pliant.diagnosis.findings import Diagnosis, Finding

__all__ = ["MAX_LAYERS", "facts_line", "page", "text", "trap_lines"]

MAX_LAYERS = 6
"""Layers of one mechanism that are listed; more are counted."""

_COLOURS = {"severe": "bold red", "warning": "bold yellow", "note": "cyan", None: "green"}
_VERDICTS = {"plasticity": "red", "not plasticity": "green", "unknown": "yellow"}


def page(diagnosis: Diagnosis) -> RenderableType:
    """The page, for a rich console."""
    parts: list[RenderableType] = [
        Text.assemble(("verdict: ", "bold"), (diagnosis.verdict, f"bold {_VERDICTS[diagnosis.verdict]}")),
        Text(diagnosis.reason),
        Text(facts_line(diagnosis), style="dim"),
    ]
    for mechanism in MECHANISMS:
        found = diagnosis.of(mechanism)
        if found:
            parts += _mechanism(found)
    if diagnosis.traps:
        parts += _block("Frozen and cloned units", trap_lines(diagnosis))
    if diagnosis.causal is not None:
        parts += _block("Is the size of the weights the cause?", [diagnosis.causal.sentence])
    if diagnosis.probe is not None:
        parts += _block("The probe", [diagnosis.probe])
    if diagnosis.methods:
        parts += _block("Methods attached", [f"{method.name}: {method.sentence}" for method in diagnosis.methods])
    if diagnosis.unknowns:
        parts += _block("Not known", diagnosis.unknowns)
    if diagnosis.remarks:
        parts += _block("Remarks", diagnosis.remarks)
    return Group(*parts)


def _mechanism(found: Sequence[Finding]) -> list[RenderableType]:
    about, worst = found[0].about, found[0].severity
    head = Text.assemble("\n", (about.title, "bold"), "  ", (worst, _COLOURS[worst]))
    lines: list[RenderableType] = [head, Padding(Text(about.sentence, style="dim"), (0, 0, 0, 2))]
    for finding in found[:MAX_LAYERS]:
        line = Text.assemble((f"{finding.severity:<8}", _COLOURS[finding.severity]), finding.sentence)
        lines.append(Padding(line, (0, 0, 0, 2)))
    if len(found) > MAX_LAYERS:
        lines.append(Padding(Text(f"and {len(found) - MAX_LAYERS} more"), (0, 0, 0, 2)))
    lines.append(Padding(Text(f"how sure: {found[0].sureness}", style="dim"), (0, 0, 0, 2)))
    if about.methods:
        lines.append(Padding(Text(f"methods that act on it: {', '.join(about.methods)}"), (0, 0, 0, 2)))
    return lines


def _block(title: str, lines: Sequence[str]) -> list[RenderableType]:
    return [Text(f"\n{title}", style="bold"), *(Padding(Text(line), (0, 0, 0, 2)) for line in lines)]


def trap_lines(diagnosis: Diagnosis) -> list[str]:
    """Each trap in words, with what draws frozen units anew."""
    lines = []
    for trap in diagnosis.traps:
        by = f" Methods that draw them anew: {', '.join(trap.leaving)}." if trap.kind == "frozen" else ""
        lines.append(f"{trap.kind}: {trap.sentence}{by}")
    return lines


def facts_line(diagnosis: Diagnosis) -> str:
    """Loss, twins, batch and mode in one line."""
    facts = diagnosis.facts
    parts = []
    if facts.get("loss") is not None:
        parts.append(f"loss {facts['loss']:.4g}")
    if facts.get("twin_losses"):
        low, high = min(facts["twin_losses"]), max(facts["twin_losses"])
        parts.append(f"fresh twins {low:.4g} to {high:.4g}" if high > low else f"fresh twin {low:.4g}")
    parts.append(f"{facts.get('num_examples', 0)} examples")
    parts.append(f"{facts.get('num_groups', 0)} unit groups seen")
    parts.append(f"{facts.get('mode') or 'own'} mode")
    return " · ".join(parts)


def text(diagnosis: Diagnosis, width: int = 100) -> str:
    """The page as plain text.

    Args:
        diagnosis: What was found.
        width: Of a line.
    """
    file = io.StringIO()
    Console(file=file, width=width, color_system=None, highlight=False).print(page(diagnosis), soft_wrap=False)
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines())
