"""The parts of the page that put several streams together."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from pliant.intervals import Estimate
from pliant.report._tables import grid_html
from pliant.report.grids import budget_grid, leaderboard, price_grid
from pliant.report.metrics import format_interval
from pliant.report.overview import Entry, Overview, RankOrder
from pliant.report.plots import Axis, curve_chart, interval_chart, point_chart, rank_chart
from pliant.report.standings import Standing
from pliant.report.style import Style, escape
from pliant.report.summary import Stream
from pliant.report.trials import Trials

__all__ = [
    "beyond_section",
    "calm_section",
    "cost_section",
    "leaderboard_section",
    "stability_section",
    "tuning_section",
]

Styles = Mapping[str, Style]


def leaderboard_section(found: Overview, styles: Styles) -> str:
    """Who leads, in a sentence, the table, and what each method gains on each stream."""
    if len(found.entries) < 2:
        return ""
    parts = ['<section id="leaderboard"><h2>Leaderboard</h2>', f'<p class="text">{_leader(found)}</p>']
    parts.append(grid_html(leaderboard(found), styles, "Leaderboard"))
    figures = [
        _figure(
            f"Gain over no protection: {stream.title}",
            "Difference of the averages over all tasks, on the same seeds, with 95 % intervals.",
            interval_chart(rows, _axis(stream, "difference")),
            place,
        )
        for place, stream in found.continual.items()
        if (rows := _gains(found, place, styles))
    ]
    parts.append(f'<div class="pair">{"".join(figures)}</div>' if figures else "")
    return "".join([*parts, "</section>\n"])


def beyond_section(found: Overview, styles: Styles) -> str:
    """What a mean does not show: how sure an improvement is, and whether all runs share it."""
    rows = [(e.label, e.improvement, styles[e.label]) for e in found.entries if e.improvement is not None]
    rows = [row for row in rows if not math.isnan(row[1].mean)]
    rows.sort(key=lambda row: -row[1].mean)
    figures = []
    if rows:
        text = "A run of the method and a run without protection: which scores higher? At 0.5 neither is better."
        axis = Axis("probability of improvement, 95 % interval")
        figures.append(_figure("How sure is the improvement?", text, interval_chart(rows, axis, reference=0.5)))
    if found.profile is not None and len(found.profile.curves) > 1:
        curves = [(label, found.profile.thresholds, c, styles[label]) for label, c in found.profile.curves.items()]
        text = "Which share of the runs has an average above each level; every stream counts the same."
        chart = curve_chart(curves, Axis("average accuracy, %", 100), Axis("runs above, %", 100))
        figures.append(_figure("Performance profile", text, chart))
    if not figures:
        return ""
    return f'<section id="beyond"><h2>Beyond the mean</h2><div class="pair">{"".join(figures)}</div></section>\n'


def calm_section(found: Overview, styles: Styles) -> str:
    """What methods cost where nothing changes, and whether static data would have told the order."""
    if not found.controls:
        return ""
    parts = [
        '<section id="calm"><h2>When nothing changes</h2><p class="text">On a stationary control every task is the '
    ]
    parts.append(
        "same. What a method loses there against no protection is its price, in held-out score where there is "
    )
    parts.append("one; beside it stands what it gains where tasks change.</p>")
    parts.append(grid_html(price_grid(found), styles, "Price and gain of each method"))
    charts = [_order_figure(order, styles) for order in found.orders]
    if charts:
        parts.append("<h3>Would static data have told the order?</h3>")
        parts.append(
            '<p class="text">Rank on the control (held-out score at the end) and on the stream (average while '
        )
        parts.append(
            "learning). A rank correlation of 1 is the same order, 0 is no relation; the interval is over seeds "
        )
        parts.append(f'and speaks of these alone.</p><div class="pair">{"".join(charts)}</div>')
    return "".join([*parts, "</section>\n"])


def stability_section(found: Overview, styles: Styles) -> str:
    """Stability beside plasticity, so that a method which stays plastic by forgetting is seen to do so."""
    figures = []
    for place, stream in found.continual.items():
        points = [
            (entry.label, standing.past, standing.average, styles[entry.label])
            for entry, standing in _on(found, place)
            if standing.past is not None
        ]
        if len(points) > 1:
            chart = point_chart(points, _axis(stream, "on earlier tasks"), _axis(stream, "while learning"))
            sides = _better(stream, "Right: remembers more. Up: learns", "Left: remembers more. Down: learns")
            figures.append(_figure(stream.title, f"{sides} better.", chart, place))
    if not figures:
        return ""
    return (
        '<section id="stability"><h2>Stability beside plasticity</h2><p class="text">A network can stay able to learn '
        "by forgetting what it knew. One axis says how much of the earlier tasks is still known at the end, the other "
        f'how well new tasks are learnt.</p><div class="pair">{"".join(figures)}</div></section>\n'
    )


def cost_section(found: Overview, styles: Styles) -> str:
    """Score against time, and scores at equal gradient evaluations per example."""
    figures = []
    for place, stream in found.continual.items():
        points = [
            (entry.label, standing.seconds, standing.average, styles[entry.label])
            for entry, standing in _on(found, place)
            if standing.seconds is not None
        ]
        if len(points) > 1:
            brief = max(standing.mean for _, standing, _, _ in points) < 1
            axis = Axis(f"measured {'milliseconds' if brief else 'seconds'} per task and seed", 1000 if brief else 1)
            chart = point_chart(points, axis, _axis(stream, "average"))
            text = f"Left: faster. {_better(stream, 'Up', 'Down')}: learns better."
            figures.append(_figure(stream.title, text, chart, place))
    tables = [
        f"<h3>{escape(budgets.title)}: at equal gradient evaluations per example</h3>"
        f"{grid_html(budget_grid(budgets), styles, f'{budgets.title} at equal cost')}"
        for budgets in found.budgets
    ]
    if not figures and not tables:
        return ""
    return (
        '<section id="cost"><h2>What it costs</h2><p class="text">Seconds are as measured, per task and seed; of seeds '
        "that trained together, each has its share. They compare methods that ran on one machine, and nothing else.</p>"
        f'{"".join(tables)}<div class="pair">{"".join(figures)}</div></section>\n'
    )


def tuning_section(trials: Sequence[Trials], styles: Styles) -> str:
    """The best of k settings, for every k: what a method owes to tuning."""
    if not trials:
        return ""
    figures = [_tuning_figure(item, styles) for item in trials]
    return (
        '<section id="tuning"><h2>What tuning contributes</h2><p class="text">The score of the best of k settings, '
        "mean over all choices of k among those that were tried; bands hold the middle half of these choices. Methods "
        "are compared fairly at the same k. These are scores on tuning seeds, by which settings are chosen, and "
        f'therefore optimistic.</p><div class="pair">{"".join(figures)}</div></section>\n'
    )


def _tuning_figure(item: Trials, styles: Styles) -> str:
    curves, names = [], []
    for i, (name, scores) in enumerate(item.scores.items()):
        best = item.curve(name)
        label = _label_of(name, styles)
        points = [Estimate(b.mean, b.low, b.high, len(scores)) for b in best]
        curves.append((label, [float(b.k) for b in best], points, styles.get(label) or Style(i % 8, i // 8 % 4)))
        names.append(label)
    budget = f"{item.budget} settings for every method" if item.budget else "budgets differ"
    failed = sum(item.num_failed.values())
    facts = [budget, f"{len(item.seeds)} tuning seeds", f"commit {item.commit[:12]}" if item.commit else "", item.rule]
    facts.append(f"{failed} failed settings count as the worst score" if failed else "")
    facts.append("the search learnt from its trials" if item.sampler not in ("", "random") else "")
    unknown = [name for name in names if name not in styles]
    if unknown:
        facts.append(f"also shown: {', '.join(unknown)}")
    axis = Axis(f"best of k, {item.metric.unit or item.metric.title}", 100 if item.metric.percent else 1)
    chart = curve_chart(curves, Axis("k, settings tried"), axis, steps=True)
    return _figure(item.title, "; ".join(fact for fact in facts if fact) + ".", chart)


def _label_of(name: str, styles: Styles) -> str:
    """The label of the method that a list of trials calls so; trials have plain names."""
    plain = {"none": "no protection", "fresh_start": "fresh network per task"}.get(name, name)
    wanted = {plain.replace("_", " ").lower(), name.replace("_", " ").lower()}
    return next((label for label in styles if label.lower() in wanted), plain.replace("_", " "))


def _leader(found: Overview) -> str:
    """Who leads, and by what."""
    how = "Select a heading to sort, and a number to see exactly what was run."
    ranks = [(e.rank.mean, e, e.rank) for e in found.entries if e.rank is not None and math.isfinite(e.rank.mean)]
    if len(found.ranking) == 1 or not ranks:
        return how
    top = min(mean for mean, _, _ in ranks)
    best = [(entry, rank) for mean, entry, rank in ranks if mean == top]
    of = f"of {len(ranks)} methods on {len(found.ranking)} streams"
    if len(best) > 1:
        names = [f"<b>{escape(entry.label)}</b>" for entry, _ in best]
        return f"{', '.join(names[:-1])} and {names[-1]} share the best mean rank, {top:.2f}, {of}. {how}"
    entry, rank = best[0]
    sure = ""
    if entry.improvement is not None:
        sure = f" A run of it beats a run without protection with probability {format_interval(entry.improvement)}."
    return f"<b>{escape(entry.label)}</b> has the best mean rank, {format_interval(rank)}, {of}.{sure} {how}"


def _gains(found: Overview, place: int, styles: Styles) -> list[tuple[str, Estimate, Style]]:
    rows = [(e.label, s.gain, styles[e.label]) for e, s in _on(found, place) if s.gain is not None]
    rows.sort(key=lambda row: -row[1].mean if math.isfinite(row[1].mean) else math.inf)
    score = found.continual[place].score
    return rows[::-1] if score is not None and score.sign < 0 else rows


def _on(found: Overview, place: int) -> Iterable[tuple[Entry, Standing]]:
    return ((entry, entry.standings[place]) for entry in found.entries if place in entry.standings)


def _axis(stream: Stream, what: str) -> Axis:
    """The axis of a stream's score; where less is better it says so."""
    metric = stream.score
    if metric is None:
        return Axis(what)
    if metric.percent:
        return Axis(f"{what}, {'points' if what == 'difference' else metric.unit}", 100)
    name = metric.words.removesuffix(" while learning")
    return Axis(f"{what}, {name}{' (less is better)' if metric.sign < 0 else ''}")


def _better(stream: Stream, more: str, less: str) -> str:
    """In which direction the score is better."""
    return less if stream.score is not None and stream.score.sign < 0 else more


def _order_figure(order: RankOrder, styles: Styles) -> str:
    agreement = f"rank correlation {format_interval(order.agreement)}"
    if math.isnan(order.agreement.mean):
        agreement = "no rank correlation: all are equal on one side"
    chart = rank_chart(order.static, order.continual, (order.control, order.stream), styles)
    return _figure(f"{order.what.capitalize()}: {order.control} and {order.stream}", f"{agreement}.", chart)


def _figure(title: str, text: str, chart: str, place: int | None = None) -> str:
    stream = "" if place is None else f' data-stream="stream-{place}"'
    return (
        f"<figure{stream}><figcaption><b>{escape(title)}</b><span>{escape(text)}</span></figcaption>{chart}</figure>\n"
    )
