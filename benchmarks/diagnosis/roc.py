"""The fitted thresholds, judged on the other half of the networks: ROC figure and ``docs/results/diagnosis.md``."""

from __future__ import annotations

import math
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.diagnosis.fit import worst  # noqa: E402
from benchmarks.diagnosis.planted import DOSES, MECHANISM_OF  # noqa: E402
from benchmarks.diagnosis.records import read  # noqa: E402
from pliant.diagnosis.evidence import KINDS, severity_of  # noqa: E402
from pliant.diagnosis.findings import SEVERITIES  # noqa: E402
from pliant.diagnosis.weights import thresholds  # noqa: E402
from pliant.mechanisms import MECHANISMS  # noqa: E402
from pliant.report.style import CHART_STYLE, COLOUR_STYLE  # noqa: E402

PAGE = ROOT / "docs" / "results" / "diagnosis.md"
FIGURE = ROOT / "docs" / "images" / "diagnosis_roc.svg"


def level(case: dict[str, Any], mechanism: str | None = None) -> int:
    """The worst severity, of one mechanism or of all: -1 for nothing, 0 for a note, 1 for a warning, 2 for severe."""
    found = [
        severity_of(metric, got, size)
        for name, metric, _, got, size in case["scores"]
        if mechanism in (None, name) and (KINDS[metric] != "count" or got > 0)
    ]
    return max((SEVERITIES.index(item) for item in found if item), default=-1)


def strength(case: dict[str, Any], mechanism: str) -> float:
    """How strongly a mechanism shows: the largest score in units of its warning."""
    metrics = {row[1] for row in case["scores"] if row[0] == mechanism}
    return max(((worst(case, metric) or 0.0) / thresholds()[metric].warning for metric in metrics), default=0.0)


def auroc(positive: list[float], negative: list[float]) -> float:
    """The chance that a planted case scores higher than a healthy one."""
    wins = sum((p > n) + 0.5 * (p == n) for p in positive for n in negative)
    return wins / (len(positive) * len(negative))


def wilson(hits: int, total: int) -> tuple[float, float]:
    """95 % interval of a share."""
    z, share = 1.96, hits / total
    middle = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total)) / (1 + z * z / total)
    return max(0.0, middle - half), min(1.0, middle + half)


def curve(positive: list[float], negative: list[float]) -> list[tuple[float, float]]:
    """False and true positive rate at every threshold."""
    limits = sorted({*positive, *negative}, reverse=True)
    points = [(0.0, 0.0)]
    for limit in limits:
        points.append(tuple(sum(v >= limit for v in values) / len(values) for values in (negative, positive)))  # type: ignore[arg-type]
    return points


def figure(healthy: list[dict[str, Any]], planted: list[dict[str, Any]]) -> str:
    """One panel per pathology, a line per dose."""
    parts, side = [], 150
    for index, (kind, mechanism) in enumerate(MECHANISM_OF.items()):
        x, y = 46 + (index % 3) * 220, 44 + (index // 3) * 226
        parts.append(f'<text class="name" x="{x}" y="{y - 10}">{kind.replace("_", " ")}</text>')
        parts.append(f'<rect x="{x}" y="{y}" width="{side}" height="{side}" fill="none" class="axis"/>')
        parts.append(f'<line class="grid" x1="{x}" y1="{y + side}" x2="{x + side}" y2="{y}"/>')
        parts.append(f'<text x="{x - 8}" y="{y + side}" text-anchor="end">0</text>')
        parts.append(f'<text x="{x - 8}" y="{y + 8}" text-anchor="end">1</text>')
        parts.append(f'<text x="{x + side}" y="{y + side + 16}" text-anchor="end">false alarms</text>')
        negative = [strength(case, mechanism) for case in healthy]
        for number, dose in enumerate(DOSES):
            positive = [strength(c, mechanism) for c in planted if c["kind"] == kind and c["dose"] == dose]
            dots = " ".join(f"{x + side * a:.1f},{y + side * (1 - b):.1f}" for a, b in curve(positive, negative))
            dash = ("none", "6 3", "2 3")[number]
            parts.append(
                f'<polyline class="line" points="{dots}" stroke="var(--c{number})" stroke-dasharray="{dash}"/>'
            )
            label = f"{dose:.0%}: {auroc(positive, negative):.2f}"
            parts.append(
                f'<text x="{x + side - 8}" y="{y + side - 10 - 16 * (2 - number)}" text-anchor="end" '
                f'style="fill:var(--c{number})">{label}</text>'
            )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="chart" viewBox="0 0 680 470" role="img" '
        f'aria-label="ROC of planted pathologies by dose"><style>{COLOUR_STYLE}{CHART_STYLE}'
        f"svg{{background:var(--paper)}}.axis{{stroke:var(--axis)}}</style>{''.join(parts)}</svg>\n"
    )


def unwrapped(text: str) -> str:
    """Paragraphs and list items as one line each; headings and tables stay."""
    return re.sub(r"(?<=[^\n|])\n(?=[ ]{2}[\w(`]|[^\n|#!\-{ ])", " ", text).replace("   ", " ").replace("  ", " ")


def page(config: dict[str, Any], healthy: list[dict[str, Any]], planted: list[dict[str, Any]]) -> str:
    """The results in words and tables."""
    lines = []
    for kind, mechanism in MECHANISM_OF.items():
        negative = [strength(case, mechanism) for case in healthy]
        for dose in DOSES:
            cases = [case for case in planted if case["kind"] == kind and case["dose"] == dose]
            named = [case for case in cases if level(case, mechanism) >= 1]
            low, high = wilson(len(named), len(cases))
            area = auroc([strength(case, mechanism) for case in cases], negative)
            missed = ", ".join(f"{c['network']} ({c['activation']})" for c in cases if c not in named) or "none"
            lines.append(
                f"| {kind.replace('_', ' ')} | `{mechanism}` | {dose:.0%} | {len(named)} of {len(cases)} "
                f"| {low:.2f} to {high:.2f} | {area:.3f} | {missed} |"
            )
    alarms = []
    for kind in ("fresh", "trained"):
        cases = [case for case in healthy if case["kind"] == kind]
        above = [case for case in cases if level(case) >= 1]
        low, high = wilson(len(above), len(cases))
        which = ", ".join(f"{c['network']} ({c['activation']}, seed {c['seed']})" for c in above) or "none"
        notes = sum(level(case) == 0 for case in cases)
        alarms.append(f"| {kind} | {len(cases)} | {len(above)} | {low:.2f} to {high:.2f} | {notes} | {which} |")
    limits = [
        f"| `{metric}` | {note:g} | {warning:g} | {severe:g} |"
        for metric, (note, warning, severe) in thresholds().items()
    ]
    networks = ", ".join(dict.fromkeys(case["network"] for case in healthy))
    return unwrapped(TEXT).format(
        named="\n".join(lines), alarms="\n".join(alarms), limits="\n".join(limits), networks=networks, **config
    )


TEXT = """# Diagnosis: planted pathologies

Does a diagnosis name what is wrong, and keep quiet where nothing is? Pathologies were planted in networks
that had been trained briefly, at doses of 5, 20 and 100 % (of the units of one layer; of the samples, for the
outputs). Thresholds were fitted on three networks (an MLP, a ConvNet with group norm, PyTorch's transformer
encoder) and judged on four others with other seeds: {networks}. All of these call their activation functions
as functions, the GELU of GPT-2 is written out. Every network was compared with {twins} fresh twins on a batch
of 128 examples.

Configuration: Adam, learning rate {rate:g}, {steps} steps of 64 examples before planting; {seeds} planted
networks per kind, dose and architecture; commit {commit}, PyTorch {torch}. Commands: `python
benchmarks/diagnosis/cases.py fit`, `... cases.py judge`, `... fit.py`, `... roc.py`; records in
`benchmarks/results/diagnosis/`.

## Named

A pathology counts as named if its mechanism has a finding of at least a warning. The area under the ROC curve
is that of the mechanism's strongest score against the healthy networks.

| planted | mechanism | dose | named | 95 % interval | AUROC | missed |
|---|---|---|---|---|---|---|
{named}

![ROC](../images/diagnosis_roc.svg)

True positives against false alarms, a line per dose; the number behind each dose is the area under its curve.

## False alarms

Networks of the judging half as they begin, and after brief training; an alarm is any finding above a note.

| networks | number | with an alarm | 95 % interval | with notes only | which |
|---|---|---|---|---|---|
{alarms}

## Thresholds

On the score of each metric: for counts of units the fraction by which the worst twin is exceeded; else how
many times the value has been halved (or doubled) beside the twins.

| metric | note | warning | severe |
|---|---|---|---|
{limits}

Nothing was planted for `dormant_fraction` and `gradient_norm`; their thresholds are stated floors, and have
not been tested on sick networks.

## What to know

- A healthy network here is one whose training leaves its units alive. A ReLU ConvNet without a norm, with a linear
  layer behind flattened positive features, loses units within a few dozen steps of Adam; so does the functional MLP
  at a learning rate of 1e-3. The diagnosis says so and is right: 5 % of dead units that were planted cannot be told
  from 5 % that died. Such networks are not among the healthy ones.
- Units that have learned the same classes correlate by more than 0.95, tanh units most of all. So near copies
  (`cloned_fraction`, 0.95) are never above a note, and exact ones (`copied_fraction`, 0.999) are what names clones.
- Where fresh networks have dead units themselves (a ReLU layer behind
  positive features), a few more cannot be told from them, and are not named.
- Earlier rounds on seeds 100 and up led to milder training, to exact copies apart from near ones, to the half-way rule
  for missing directions, and to a collapsed softmax that takes a class which is wrong. The seeds shown here (200 and
  up) were drawn after that.
- Exact clones are missing directions, too, so `rank_collapse` is often named beside `cloned_units`, and a
  collapsed head also has large weights.
- Rank-one features are units that are one feature, of several sizes where the activation function allows it
  (ReLU without a norm behind it). Units that are different functions of one direction are not named at small
  doses.
"""


def main() -> None:
    """Judge, draw and write."""
    config, cases = read("judge")
    healthy = [case for case in cases if case["kind"] in ("fresh", "trained")]
    planted = [case for case in cases if case["kind"] in MECHANISM_OF]
    assert {MECHANISM_OF[case["kind"]] for case in planted} <= set(MECHANISMS)
    FIGURE.write_text(figure(healthy, planted))
    PAGE.write_text(page(config, healthy, planted))
    print(PAGE.read_text())


if __name__ == "__main__":
    main()
