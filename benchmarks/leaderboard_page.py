"""The page of the leaderboard, and its figure, from the committed records and lists of trials alone."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from benchmarks.leaderboard_claims import CLAIMS, CURVES
from benchmarks.leaderboard_runs import (
    BASELINE,
    FRESH,
    WINDOW,
    Run,
    Runs,
    curve,
    gains,
    merit,
    outcome,
    read,
    scaled,
    verdict,
)
from benchmarks.leaderboard_settings import PARTS, WAYS, streams, ways
from benchmarks.speed.methods import between_markers
from pliant.intervals import Estimate, estimate, paired_difference
from pliant.report.metrics import Metric, format_estimate, format_interval, metric_info
from pliant.report.plots import Axis, curve_chart
from pliant.report.style import CHART_STYLE, COLOUR_STYLE, Style, escape
from pliant.statistics import iqm, mean_ranks, probability_of_improvement, rank_agreement

__all__ = ["write"]

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "results" / "leaderboard.md"
FIGURE = ROOT / "docs" / "images" / "leaderboard_best_of_k.svg"
METHODS = ROOT / "docs" / "methods"
COSTS = ROOT / "pliant" / "interventions" / "costs.json"
CONTROL = "stationary_digits"
DORMANT = metric_info("dormant_fraction")


# ---- tables ----
def _label(way: str) -> str:
    entry = WAYS[way]
    return f"[{entry.label}](../methods/{entry.page}.md)" if entry.page else entry.label


def _title(stream: str) -> str:
    return stream.replace("_", " ").capitalize()


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    rule = "|" + ":--|" * left + "--:|" * (len(heads) - left)
    return "\n".join(["| " + " | ".join(heads) + " |", rule, *("| " + " | ".join(row) + " |" for row in rows)])


def overall(runs: Runs, num_seeds: int = 10) -> str:
    """The leaderboard over the streams on which something changes."""
    changing = {stream: there for stream, there in runs.items() if stream != CONTROL and BASELINE in there}
    names = [name for name in WAYS if changing and all(name in there for there in changing.values())]
    contenders = [name for name in names if name != FRESH]
    if len(contenders) < 2:
        return ""
    ranks = dict(zip(contenders, mean_ranks([
        [[merit(there[name], there[name].whole, num_seeds).get(seed, math.nan) for name in contenders]
         for seed in range(num_seeds)]
        for there in changing.values()
    ]), strict=True))  # fmt: skip
    accuracy = [there for there in changing.values() if there[BASELINE].metric.percent]
    every_gain = {stream: gains(there) for stream, there in changing.items()}
    control = runs.get(CONTROL, {})
    rows = []
    for name in sorted(contenders, key=lambda item: ranks[item].mean) + [FRESH] * (FRESH in names):
        better = "–"
        if name != BASELINE:
            better = format_interval(
                probability_of_improvement(
                    [merit(there[name], there[name].last, num_seeds) for there in changing.values()],
                    [merit(there[BASELINE], there[BASELINE].last, num_seeds) for there in changing.values()],
                )
            )
        mine = [found[name] for found in every_gain.values() if name in found]
        ahead = sum(p < 0.05 and item.mean > 0 for item, p in mine)
        behind = sum(p < 0.05 and item.mean < 0 for item, p in mine)
        strata = [list(merit(there[name], there[name].whole, num_seeds).values()) for there in accuracy]
        middle = scaled(iqm(strata), 100.0)
        rows.append(
            [
                _label(name),
                format_interval(ranks[name], 1) if name in ranks else "–",
                better,
                f"{ahead} / {behind}" if mine else "–",
                format_interval(middle, 1),
                _price(control, name),
                _cost(name),
            ]
        )
    heads = [
        "method",
        f"mean rank, 1 to {len(contenders)}",
        "P(better than no protection)",
        f"ahead / behind, of {len(changing)}",
        f"IQM of {len(accuracy)} accuracies, %",
        "price where nothing changes, points",
        "a step costs",
    ]
    part = _part_of(next(iter(changing)))
    missing = [WAYS[name].label for name in ways(part) if name not in names]
    note = f"\n\nNot on all streams yet: {'; '.join(missing)}." if missing else ""
    return "### Leaderboard\n\n" + _table(heads, rows) + note


def _price(control: Mapping[str, Run], name: str) -> str:
    """What it costs in held-out accuracy when nothing changes."""
    if name == BASELINE or name not in control or BASELINE not in control:
        return "–"
    found = paired_difference(control[name].held_out, control[BASELINE].held_out)
    return format_estimate(found, metric_info("test_accuracy"), signed=True)


def _cost(name: str) -> str:
    """Time of a step over that of a plain one, as the method's page has it."""
    known = json.loads(COSTS.read_text(encoding="utf-8"))["methods"].get(WAYS[name].page or "")
    return "–" if known is None else f"{known['step']:.2f}"


def agreement(runs: Runs, num_seeds: int = 10) -> str:
    """Whether the order of the methods where nothing changes is their order on the streams."""
    control = {name: run for name, run in runs.get(CONTROL, {}).items() if name != FRESH and not run.num_failed}
    rows = []
    for stream, there in runs.items():
        names = [name for name in control if name in there and not there[name].num_failed]
        if stream == CONTROL or len(names) < 3:
            continue

        def scores(chosen: Mapping[str, Run], of: Callable[[Run], Mapping[int, float]], names: Sequence[str] = names):
            mine = [merit(chosen[name], of(chosen[name]), num_seeds) for name in names]
            return [[values[seed] for values in mine] for seed in sorted(set.intersection(*map(set, mine)))]

        learning = scores(there, lambda run: run.whole)
        rows.append(
            [
                _title(stream),
                format_interval(rank_agreement(scores(control, lambda run: run.whole), learning)),
                format_interval(rank_agreement(scores(control, lambda run: run.held_out), learning)),
                str(len(names)),
            ]
        )
    if not rows:
        return ""
    heads = ["stream", "with the online score of the control", "with its held-out accuracy", "methods"]
    return "### Static against continual order\n\n" + _table(heads, rows)


def table(stream: str, there: Mapping[str, Run]) -> str:
    """One stream's table."""
    metric = next(iter(there.values())).metric
    unit, points = (", %", ", points") if metric.percent else ("", "")
    against = gains(there)
    held_out, past = any(run.held_out for run in there.values()), any(run.past for run in there.values())
    heads = ["method", f"chosen of {len(next(iter(there.values())).trials)}", f"whole stream{unit}"]
    heads += [f"last {WINDOW} tasks{unit}", f"change{points}", f"better than no protection by{points}"]
    heads += ["held-out, last tasks, %"] * held_out + ["earlier tasks, %"] * past + ["dormant at the end, %", "seeds"]
    rows = []
    for name, run in there.items():
        gain = "baseline" if name == BASELINE else "–"
        if name in against:
            value, p = against[name]
            gain = format_estimate(value, metric, signed=True)
            gain = f"**{gain}**" if p < 0.05 else gain
        row = [_label(name), run.setting, _text(run.whole, metric), _text(run.last, metric)]
        row += [format_estimate(estimate(run.change.values()), metric, signed=True), gain]
        row += [_text(run.held_out, metric_info("test_accuracy"))] * held_out
        row += [_text(run.past, metric_info("past_accuracy"))] * past
        failed = f", {run.num_failed} failed" if run.num_failed else ""
        rows.append([*row, _text(run.dormant, DORMANT), f"{len(run.last)}{failed}"])
    kind = " (the control: nothing changes)" if stream == CONTROL else ""
    missing = [WAYS[name].label for name in ways(_part_of(stream)) if name not in there]
    note = f"\n\nNot run yet: {'; '.join(missing)}." if missing else ""
    return f"### {_title(stream)}{kind}\n\n" + _table(heads, rows, left=2) + note


def _part_of(stream: str) -> str:
    return next(name for name in PARTS if stream in streams(name))


def _text(values: Mapping[int, float], metric: Metric) -> str:
    return format_estimate(estimate(values.values()), metric)


# ---- best of k ----
def best_table(runs: Runs) -> str:
    """The best of one setting, of half of them, and of all, on the tuning seeds."""
    parts = []
    for stream, there in runs.items():
        metric = next(iter(there.values())).metric
        num = len(next(iter(there.values())).trials)
        ks = sorted({1, (num + 1) // 2, num})
        rows = []
        for name, run in there.items():
            found = curve(run, there)
            cells = [f"{(100 if metric.percent else 1) * found[k - 1].mean:.{1 if metric.percent else 3}f}" for k in ks]
            rows.append([_label(name), *cells])
        unit = ", %" if metric.percent else ""
        parts.append(f"**{_title(stream)}{unit}**\n\n" + _table(["method", *(f"best of {k}" for k in ks)], rows))
    return "### Best of k settings\n\n![The best of k settings](../images/leaderboard_best_of_k.svg)\n\n" + "\n\n".join(
        parts
    )


def figure(runs: Runs) -> str:
    """The curves of all streams as a standalone SVG."""
    width, height, columns = 470, 300, 2
    styles = _styles()
    shown = [name for name in WAYS if any(name in there for there in runs.values())]
    parts = []
    for number, (stream, there) in enumerate(runs.items()):
        metric = next(iter(there.values())).metric
        factor = 100.0 if metric.percent else 1.0
        axis = Axis(f"{metric.words}{', %' if metric.percent else ''}", factor)
        curves = []
        for name, run in there.items():
            points = [Estimate(p.mean, math.nan, math.nan, p.num) for p in curve(run, there)]
            curves.append((WAYS[name].label, [float(k) for k in range(1, len(points) + 1)], points, styles[name]))
        chart = curve_chart(curves, Axis("settings tried"), axis, steps=True, width=width, height=height - 24)
        x, y = width * (number % columns), height * (number // columns)
        parts.append(f'<text class="title" x="{x + 60}" y="{y + 18}">{escape(_title(stream))}</text>')
        size = f'<svg x="{x}" y="{y + 24}" width="{width}" height="{height - 24}" '
        parts.append(chart.replace("<svg ", size, 1))
    top = height * math.ceil(len(runs) / columns) + 20
    for number, name in enumerate(shown):
        x, y = 30 + 300 * (number % 3), top + 22 * (number // 3)
        style = styles[name]
        parts.append(f'<g stroke="{style.css}"><line class="line"{style.dashes} x1="{x}" x2="{x + 34}" y1="{y}" ')
        parts.append(f'y2="{y}"/><text class="name" x="{x + 42}" y="{y + 4}">{escape(WAYS[name].label)}</text></g>')
    bottom = top + 22 * math.ceil(len(shown) / 3) + 6
    opening = f'<svg class="chart" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {columns * width} {bottom}" '
    opening += f'width="{columns * width}" role="img" aria-label="The best of k settings, by stream and method">'
    ground = f'<style>{COLOUR_STYLE}{CHART_STYLE}</style><rect width="100%" height="100%" fill="var(--paper)"/>'
    return f"{opening}{ground}{''.join(parts)}</svg>\n"


def _styles() -> dict[str, Style]:
    others = [name for name in WAYS if name not in (BASELINE, FRESH)]
    found = {name: Style(1 + number % 6, number // 6) for number, name in enumerate(others)}
    return {BASELINE: Style(0), FRESH: Style(7, 1), **found}


# ---- claims ----
def claims_table(runs: Runs) -> str:
    """Each claim, what was found on each stream, and the verdict."""
    rows = []
    for claim in CLAIMS:
        found = outcome(claim, runs)
        cells = []
        for stream, (word, number) in found.items():
            percent = claim.rule == "fewer dormant" or runs[stream][claim.way].metric.percent
            factor = 100 if percent else 1
            digits = 1 if percent else 2
            text = f"{factor * number.mean:+.{digits}f} ± {factor * number.half_width:.{digits}f}".replace("-", "−")
            cells.append(f"{_short(stream)} {text} {word}")
        rows.append([f"{claim.text} ({claim.source})", "; ".join(cells) or "–", verdict(found)])
    counts: dict[str, int] = {}
    for row in rows:
        counts[row[2]] = counts.get(row[2], 0) + 1
    total = ", ".join(f"{word}: {num}" for word, num in sorted(counts.items(), key=lambda item: -item[1]))
    table_text = _table(["claim", "here: for it by, ± half of the 95 % interval", "direction"], rows, left=3)
    return f"### Published claims\n\n{table_text}\n\nOf {len(rows)} claims: {total}."


def curves_table(runs: Runs) -> str:
    """Published curves and ours, by first, best and last."""
    rows = []
    for item in CURVES:
        for stream in item.streams:
            run = runs.get(stream, {}).get(item.way)
            if run is None:
                continue
            factor, digits = (100, 1) if run.metric.percent else (1, 2)
            ours = [estimate(run.first.values()).mean, run.best, estimate(run.last.values()).mean]
            shown = ", ".join(f"{factor * value:.{digits}f}" for value in ours)
            rows.append([WAYS[item.way].label, item.published, item.shape, _title(stream), shown])
    if not rows:
        return ""
    heads = [
        "training",
        "published",
        "first, best, last",
        "here",
        f"first {WINDOW}, best {WINDOW}, last {WINDOW} tasks",
    ]
    return "### Published curves beside ours\n\n" + _table(heads, rows, left=5)


def _short(stream: str) -> str:
    return stream.replace("slowly_changing_", "").replace("_", " ")


# ---- writing ----
def text(runs: Runs, num_seeds: int = 10) -> str:
    """All tables."""
    parts = [overall(runs, num_seeds)]
    parts += [table(stream, there) for stream, there in runs.items()]
    if any(outcome(claim, runs) for claim in CLAIMS):
        parts.append(claims_table(runs))
    parts += [curves_table(runs), agreement(runs, num_seeds)]
    return "\n\n".join(part for part in [*parts, best_table(runs)] if part)


def sentence(way: str, runs: Runs) -> str:
    """What a method's own page says of it."""
    found, than_other, other = [], [], WAYS[way].variant_of
    for stream, there in runs.items():
        if way in there and stream != CONTROL and BASELINE in there:
            value, p = gains(there)[way]
            unit = " points" if there[way].metric.percent else " of squared error"
            text = format_estimate(value, there[way].metric, signed=True)
            found.append(f"{_short(stream)} {text}{unit}{'' if p < 0.05 else ' (not told apart)'}")
            budget = f"{len(there[way].trials)} settings on tuning seeds, {len(there[way].last)} other seeds"
            if other in there:
                value = scaled(paired_difference(there[way].last, there[other].last), there[way].sign)
                than_other.append(f"{_short(stream)} {format_estimate(value, there[way].metric, signed=True)}{unit}")
    if not found:
        return ""
    label = WAYS[way].label
    called = "" if label.lower().replace(" ", "_").replace("-", "_") == WAYS[way].page else f", as *{label}*"
    plain = "plain SGD" if WAYS[way].optimizer else "no protection"
    return (
        f"In the [leaderboard](../results/leaderboard.md){called} ({budget}), "
        f"better than {plain} over the last {WINDOW} tasks by: {'; '.join(found)}."
        + (f" Than {WAYS[other].label.split(', ')[-1]} (not corrected): {'; '.join(than_other)}." if than_other else "")
    )


def on_pages(runs: Runs, folder: Path = METHODS) -> None:
    """Put its sentence on the page of each method, where there is a place for it."""
    for way, entry in WAYS.items():
        path = folder / f"{entry.page}.md"
        if entry.page and way != FRESH and (text := sentence(way, runs)):
            page = path.read_text(encoding="utf-8")
            if "<!-- leaderboard -->" not in page:
                raise ValueError(
                    f"{path} has no place for the leaderboard: add <!-- leaderboard --> and <!-- /leaderboard -->"
                )
            path.write_text(between_markers(page, text, "leaderboard"), encoding="utf-8")


def write(results: Path, page: Path = PAGE, drawing: Path = FIGURE, num_seeds: int = 10) -> None:
    """Write tables and figure from the records; what is not there yet is named."""
    for part in PARTS:
        runs = read(results, part, num_seeds)
        if not runs:
            continue
        content = text(runs, num_seeds)
        path = drawing if part == "stacked" else drawing.with_stem(f"{drawing.stem}_{part}")
        if path != drawing:
            content = content.replace(drawing.name, path.name)
        page.write_text(between_markers(page.read_text(encoding="utf-8"), content, part), encoding="utf-8")
        path.write_text(figure(runs), encoding="utf-8")
        if part == "stacked" and page == PAGE:
            on_pages(runs)
