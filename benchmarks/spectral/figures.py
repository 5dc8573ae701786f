"""The figures of the study as SVG text."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.spectral.analysis import MEASURES, Found, Records, accuracy, eps_series, fit, series
from benchmarks.spectral.measures import FACTORS, QUANTILES
from benchmarks.spectral.problems import EPS, METHODS, NUM_TASKS, TITLES
from pliant.intervals import band
from pliant.report.curves import Curve
from pliant.report.figures import Chart, chart_svg
from pliant.report.metrics import Metric
from pliant.report.style import CHART_STYLE, COLOUR_STYLE, Style, escape

__all__ = ["all_of"]

STYLES: Mapping[str, Style] = {
    "backprop": Style(0),
    "l2": Style(2),
    "l2_effective_rank": Style(3),
    "effective_rank": Style(4),
    "spectral_regularisation": Style(5),
    "continual_backprop": Style(1),
    "fresh_start": Style(7, 1),
}
FLOOR = 1e-10
"""Eigenvalues below it are drawn there."""


def all_of(streams: Mapping[str, Records], found: Mapping[str, Mapping[str, Found]]) -> dict[str, str]:
    """Every figure by name."""
    return {
        "accuracy": over_tasks(streams, [("accuracy", "Accuracy at the end of each task", True)]),
        "health": over_tasks(
            streams,
            [
                ("share", "GGN: share of the rank above eps*", False),
                ("feature_rank", "Features: effective rank", False),
                ("alive", "Units that are not dead", True),
            ],
        ),
        "spectra": spectra(streams),
        "eps": against_eps(streams),
        "auroc": auroc(found),
        "cost": cost(streams),
    }


# ---- drawing ----
@dataclass(frozen=True)
class Panel:
    """A rectangle of data with its axes, at a place in a figure; scales map values to shares of its sides."""

    x: float
    y: float
    width: float
    height: float
    title: str
    across: Callable[[float], float]
    up: Callable[[float], float]
    ticks_across: Sequence[tuple[float, str]]
    ticks_up: Sequence[tuple[float, str]]
    label_across: str = ""

    def at(self, a: float, b: float) -> tuple[float, float]:
        """The place of a point."""
        share = [min(max(scale(value), 0.0), 1.0) for scale, value in ((self.across, a), (self.up, b))]
        return round(self.x + self.width * share[0], 1), round(self.y + self.height * (1 - share[1]), 1)

    def axes(self) -> list[str]:
        """Title, grid and ticks."""
        bottom = self.y + self.height
        lines = [f'<text class="name" x="{self.x}" y="{self.y - 10}">{escape(self.title)}</text>']
        for value, text in self.ticks_up:
            y = round(bottom - self.height * self.up(value), 1)
            lines.append(f'<line class="grid" x1="{self.x}" x2="{self.x + self.width}" y1="{y}" y2="{y}"/>')
            lines.append(f'<text x="{self.x - 8}" y="{y + 4}" text-anchor="end">{text}</text>')
        for value, text in self.ticks_across:
            x = round(self.x + self.width * self.across(value), 1)
            lines.append(f'<line class="axis" x1="{x}" x2="{x}" y1="{bottom}" y2="{bottom + 4}"/>')
            lines.append(f'<text x="{x}" y="{bottom + 18}" text-anchor="middle">{text}</text>')
        lines.append(f'<line class="axis" x1="{self.x}" x2="{self.x + self.width}" y1="{bottom}" y2="{bottom}"/>')
        middle = self.x + self.width / 2
        lines.append(f'<text x="{middle}" y="{bottom + 36}" text-anchor="middle">{escape(self.label_across)}</text>')
        return lines

    def line(self, points: Sequence[tuple[float, float]], colour: str, dash: str = "") -> str:
        """A line through some points."""
        text = " ".join(f"{x},{y}" for x, y in (self.at(*point) for point in points))
        style = f' stroke-dasharray="{dash}"' if dash else ""
        return f'<polyline class="line" stroke="{colour}"{style} points="{text}"/>'


def figure(width: int, height: int, title: str, parts: Sequence[str]) -> str:
    """A standalone drawing."""
    return "\n".join(
        [
            f'<svg class="chart" viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg" width="{width}" '
            f'role="img" aria-label="{escape(title)}">',
            f'<style>{COLOUR_STYLE}{CHART_STYLE}</style><rect width="100%" height="100%" fill="var(--paper)"/>',
            f'<text class="title" x="16" y="28">{escape(title)}</text>',
            *parts,
            "</svg>\n",
        ]
    )


def legend(names: Sequence[str], y: float, width: float) -> list[str]:
    """The methods' colours, in as many lines as they take."""
    parts, x = [], 16.0
    for name in names:
        step = 46 + 7 * len(name)
        if x + step > width:
            x, y = 16.0, y + 20
        style = STYLES[name]
        dash = "" if style.dash == 0 else f' stroke-dasharray="{style.dasharray}"'
        parts.append(f'<polyline class="line"{dash} stroke="{style.css}" points="{x},{y - 4} {x + 22},{y - 4}"/>')
        parts.append(f'<text class="name" x="{x + 28}" y="{y}">{escape(name)}</text>')
        x += step
    return parts


def linear(low: float, high: float) -> Callable[[float], float]:
    """A scale."""
    return lambda value: (value - low) / (high - low)


def logarithmic(low: float, high: float) -> Callable[[float], float]:
    """A scale of powers of ten; what is not above zero is at its lower end."""
    return lambda value: math.log(max(value, low) / low) / math.log(high / low)


# ---- the figures ----
def over_tasks(streams: Mapping[str, Records], rows: Sequence[tuple[str, str, bool]]) -> str:
    """Means and bands of measures over the tasks: a row for each measure, a column for each stream."""
    width, height, top = 460, 250, 106
    parts = legend(list(METHODS), 56, 2 * width)
    for row, (key, title, percent) in enumerate(rows):
        metric = Metric(key, title, percent=percent, full_axis=key == "accuracy")
        for column, (stream, records) in enumerate(streams.items()):
            x, y = column * width, top + row * (height + 34)
            curves = []
            for name in METHODS:
                values = [accuracy(run) if key == "accuracy" else series(run, key) for run in records.of(name)]
                curves.append(Curve(name, band([value.tolist() for value in values]), STYLES[name]))
            chart = chart_svg(curves, metric, Chart(width, height))
            place = f'<svg x="{x}" y="{y}" width="{width}" height="{height}" class="chart"'
            parts.append(f'<text class="name" x="{x + 16}" y="{y - 2}">{escape(f"{title}: {TITLES[stream]}")}</text>')
            parts.append(chart.replace('<svg class="chart"', place, 1))
    what = "Accuracy" if rows[0][0] == "accuracy" else "What networks look like before each task"
    return figure(2 * width, top + len(rows) * (height + 34), f"{what}: mean and 95 % interval of 10 seeds", parts)


def spectra(streams: Mapping[str, Records]) -> str:
    """The eigenvalues of the Gauss-Newton matrix, early and late."""
    shown = ("backprop", "l2_effective_rank", "spectral_regularisation", "fresh_start")
    parts = legend(shown, 56, 940)
    parts.append('<text x="16" y="78">solid: before task 2, dashed: before the last</text>')
    for column, (stream, records) in enumerate(streams.items()):
        panel = Panel(
            70 + 460 * column, 120, 370, 290, TITLES[stream], linear(0, 1), logarithmic(FLOOR, 1e2),
            [(share, f"{100 * share:g} %") for share in (0, 0.25, 0.5, 0.75, 1)],
            [(10.0**p, f"1e{p}") for p in range(-10, 3, 2)],
            "share of eigenvalues at or below",
        )  # fmt: skip
        parts += panel.axes()
        for name in shown:
            for index, dash in ((1, ""), (NUM_TASKS - 1, "5 4")):
                found = [
                    run["tasks"][index]["quantiles"] for run in records.of(name) if run["tasks"][index].get("quantiles")
                ]
                values = np.exp(np.log(np.maximum(np.array(found, dtype=float), FLOOR)).mean(0))
                parts.append(panel.line(list(zip(QUANTILES, values.tolist(), strict=True)), STYLES[name].css, dash))
    return figure(940, 470, "Eigenvalues of the Gauss-Newton matrix before a task (geometric means of 10 seeds)", parts)


def against_eps(streams: Mapping[str, Records]) -> str:
    """The share above eps* against accuracy, and how well a line fits for every eps."""
    parts = legend(list(METHODS), 56, 940)
    for column, (stream, records) in enumerate(streams.items()):
        x = 70 + 460 * column
        highest = max(float(np.nanmax(eps_series(run, "shares", 1.0))) for n in METHODS for run in records.of(n))
        panel = Panel(
            x, 110, 370, 260, f"{TITLES[stream]}: accuracy (up) against share above eps*", linear(0, 1.02 * highest),
            linear(0, 1.02), [(round(highest * k / 4, 3), f"{highest * k / 4:.2f}") for k in range(5)],
            [(k / 4, f"{25 * k} %") for k in range(5)], f"share of the rank above eps* = {EPS:.3g}, before the task",
        )  # fmt: skip
        parts += panel.axes()
        for name in METHODS:
            for run in records.of(name):
                shares, after = eps_series(run, "shares", 1.0), accuracy(run)
                for task in range(1, NUM_TASKS, 3):
                    if math.isfinite(shares[task]):
                        a, b = panel.at(float(shares[task]), float(after[task]))
                        parts.append(f'<circle cx="{a}" cy="{b}" r="1.8" fill="{STYLES[name].css}" opacity=".6"/>')
        below = Panel(
            x, 460, 370, 180, f"{TITLES[stream]}: R2 of a line, all methods", logarithmic(FACTORS[0], FACTORS[-1]),
            linear(0, 1), [(factor, f"{factor:g}") for factor in FACTORS], [(k / 4, f"{k / 4:g}") for k in range(5)],
            "eps / eps*",
        )  # fmt: skip
        parts += below.axes()
        for place, matrix in enumerate(("shares", "kernel_shares")):
            curve = [(factor, fit(records, matrix, factor).mean) for factor in FACTORS]
            parts.append(below.line(curve, "var(--ink)", "" if place == 0 else "5 4"))
        a, b = below.at(1.0, 0.0)
        parts.append(f'<line class="axis" x1="{a}" x2="{a}" y1="{b - 180}" y2="{b}"/>')
    parts.append('<text x="70" y="700">below: solid Gauss-Newton matrix, dashed kernel; the line marks eps*</text>')
    return figure(940, 716, "The share of the rank above an eps, and accuracy", parts)


def auroc(found: Mapping[str, Mapping[str, Found]]) -> str:
    """AUROC of each measure for being behind a fresh network."""
    left, width, top, row = 330, 940, 84, 24
    order = sorted(MEASURES, key=lambda key: -float(np.nanmean([item[key].behind.mean for item in found.values()])))
    bottom = top + row * len(order)
    panel = Panel(
        left, top, width - left - 30, row * len(order), "", linear(0, 1), linear(0, 1),
        [(k / 4, f"{k / 4:g}") for k in range(5)], [], "AUROC (0.5: chance)",
    )  # fmt: skip
    parts = panel.axes()
    middle = panel.at(0.5, 0.0)[0]
    parts.append(f'<line class="axis" x1="{middle}" x2="{middle}" y1="{top - 6}" y2="{bottom}"/>')
    for place, stream in enumerate(found):
        parts.append(f'<circle cx="{25 + 190 * place}" cy="52" r="4.5" fill="var(--c{place})"/>')
        parts.append(f'<text x="{36 + 190 * place}" y="56">{escape(TITLES[stream])}</text>')
    for index, key in enumerate(order):
        y = top + row * index + row / 2
        name = escape(MEASURES[key].strip("*") if MEASURES[key].startswith("*") else MEASURES[key])
        parts.append(f'<text class="name" x="{left - 14}" y="{y + 4}" text-anchor="end">{name}</text>')
        for place, item in enumerate(found.values()):
            value, shift = item[key].behind, 5 * (2 * place - 1)
            if not math.isfinite(value.mean):
                continue
            low, at, high = (panel.at(v, 0.0)[0] for v in (value.low, value.mean, value.high))
            colour = f"var(--c{place})"
            parts.append(f'<line x1="{low}" x2="{high}" y1="{y + shift}" y2="{y + shift}" stroke="{colour}"/>')
            parts.append(f'<circle cx="{at}" cy="{y + shift}" r="4" fill="{colour}"/>')
    return figure(
        width,
        int(bottom + 50),
        "Does it tell that the task to come will be learned worse than by a fresh network?",
        parts,
    )


def cost(streams: Mapping[str, Records]) -> str:
    """Time for learning, beside that of plain training."""
    left, width, top, row = 250, 940, 70, 26
    ratios = {
        name: [r.runs[name]["learning_seconds"] / r.runs["backprop"]["learning_seconds"] for r in streams.values()]
        for name in METHODS
    }
    highest = math.ceil(max(max(values) for values in ratios.values()))
    bottom = top + row * len(METHODS)
    panel = Panel(
        left, top, width - left - 30, row * len(METHODS), "", linear(0, highest), linear(0, 1),
        [(k, str(k)) for k in range(highest + 1)], [], "processor time of all steps, times that of plain training",
    )  # fmt: skip
    parts = panel.axes()
    for index, name in enumerate(METHODS):
        y = top + row * index
        parts.append(f'<text class="name" x="{left - 14}" y="{y + 17}" text-anchor="end">{escape(name)}</text>')
        for place, value in enumerate(ratios[name]):
            end = panel.at(value, 0.0)[0]
            parts.append(
                f'<rect x="{left}" y="{y + 3 + 10 * place}" width="{round(end - left, 1)}" height="9" '
                f'fill="var(--c{place})"/>'
            )
    for place, stream in enumerate(streams):
        parts.append(f'<circle cx="{25 + 190 * place}" cy="52" r="4.5" fill="var(--c{place})"/>')
        parts.append(f'<text x="{36 + 190 * place}" y="56">{escape(TITLES[stream])}</text>')
    return figure(width, int(bottom + 50), "Cost of learning", parts)
