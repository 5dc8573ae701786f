"""The tables of a report: the leaderboard, one stream's standings, prices, and scores at equal budgets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from pliant.report.budgets import Budgets
from pliant.report.cells import (
    EMPTY,
    Cell,
    Grid,
    Heading,
    Line,
    difference_cell,
    finite,
    interval_cell,
    number_cell,
    seconds_cell,
    times_cell,
    with_best,
)
from pliant.report.metrics import Metric, format_p
from pliant.report.overview import Entry, Overview
from pliant.report.standings import Standing
from pliant.report.summary import Row, headline_metrics

__all__ = ["budget_grid", "leaderboard", "price_grid", "standing_grid"]


def leaderboard(found: Overview) -> Grid:
    """All methods over all streams, the best mean rank first; where there is one stream, the best average."""
    several = len(found.ranking) > 1
    with_iqm = sum(s.score is not None and s.score.name == "online_accuracy" for s in found.ranking.values()) > 1
    headings = [Heading("method")]
    if several:
        about = "By average score on each stream, averaged over streams; 1 is best. Fresh networks take no rank."
        headings.append(Heading("mean rank", "95 % interval", about, better="lower"))
    about = "Probability that a run of it scores higher than a run without protection; 0.5: neither is better."
    headings.append(Heading("beats no protection", "probability, 95 % interval", about, better="higher"))
    if with_iqm:
        about = "Mean of the middle half of all runs on all streams that are scored in accuracy."
        headings.append(Heading("interquartile mean", "%, 95 % interval", about, better="higher"))
    for i, stream in found.continual.items():
        metric = stream.score
        assert metric is not None
        about = f"{metric.title}, mean over all tasks. {stream.description}"
        headings.append(Heading(stream.title, _unit(metric, "average"), about, i, metric.better))
    for i, stream in found.controls.items():
        about = "The last tasks, minus no protection: what the method costs, in generalisation, when nothing changes."
        headings.append(Heading(f"price: {stream.title}", "difference, points", about, i, "higher"))
    headings.append(Heading("seeds", about="Runs per stream; failed ones are in no mean."))
    lines = [
        Line(entry.label, entry.method, tuple(_leaderboard_cells(entry, found, several, with_iqm)))
        for entry in sorted(found.entries, key=lambda e: _place(e, found))
    ]
    # A column in which nobody has a number, as the mean rank where no method ran everywhere, says nothing.
    kept = [i for i in range(len(headings) - 1) if any(line.cells[i].value is not None for line in lines)]
    lines = [replace(line, cells=tuple(line.cells[i] for i in kept)) for line in lines]
    is_ranked = several and 0 in kept
    return with_best(Grid((headings[0], *(headings[i + 1] for i in kept)), tuple(lines), 1 if is_ranked else None))


def standing_grid(standings: Sequence[Standing]) -> Grid:
    """One stream's methods against a fresh network, in stability and in cost: columns for which there is something."""
    if not standings:
        return Grid((Heading("method"),), ())
    metric = standings[0].metric
    points = "points" if metric.percent else ""
    average = Heading("average", metric.unit, f"{metric.title}, mean over all tasks.", better=metric.better)
    about = (
        "Average minus that without protection, on the same seeds. Coloured where the corrected p-value is below 0.05."
    )
    gain = Heading("vs no protection", f"average, {points}".strip(", "), about, better=metric.better)
    about = "Holm's correction for all methods of this table that are compared with no protection."
    corrected = Heading("p, corrected", about=about, better="lower")
    about = (
        "Average minus that of a freshly initialised network per task, on the same seeds: the area between the curves."
    )
    area = Heading("vs fresh network", f"average, {points}".strip(", "), about, better=metric.better)
    about = "The same, over the last tasks."
    last = Heading("vs fresh network", f"last tasks, {points}".strip(", "), about, better=metric.better)
    about = "Median number of tasks after which the mean over the last ten is worse than a fresh network's for good."
    onset = Heading("behind fresh for good", "after tasks", about, better="higher")
    about = "Median number of tasks after which the mean over the last ten reaches the threshold that was asked for."
    reached = Heading("reaches threshold", "after tasks", about, better="lower")
    about = "On held-out examples of up to five earlier tasks, mean over the last task boundaries."
    past = Heading("earlier tasks", metric.unit, about, better=metric.better)
    about = "Score on those earlier tasks now, minus right after they were learnt: negative is forgetting."
    transfer = Heading("backward transfer", points, about, better=metric.better)
    about = "Measured seconds per task and seed; compare them within one machine."
    seconds = Heading("time", "per task", about, better="lower")
    about = "Gradient evaluations for each new example: passes over the data, and replayed examples."
    passes = Heading("passes", "per example", about, better="lower")
    about = "Extra seconds per task for each point gained over no protection; only where a gain is shown."
    price = Heading("cost of a point" if metric.percent else "cost of a unit", "per task", about, better="lower")
    columns = [
        (average, [number_cell(s.average, metric) for s in standings]),
        (gain, [difference_cell(s.gain, metric, s.p_adjusted, baseline=s.method.is_baseline) for s in standings]),
        (corrected, [Cell(format_p(s.p_adjusted), finite(s.p_adjusted)) for s in standings]),
        (area, [difference_cell(s.fresh_area, metric) for s in standings]),
        (last, [difference_cell(s.fresh_last, metric) for s in standings]),
        (onset, [times_cell(s.onset) for s in standings]),
        (reached, [times_cell(s.reached) for s in standings]),
        (past, [number_cell(s.past, metric) for s in standings]),
        (transfer, [difference_cell(s.transfer, metric) for s in standings]),
        (seconds, [seconds_cell(s.seconds) for s in standings]),
        (passes, [EMPTY if s.passes is None else Cell(f"{s.passes:g}", s.passes) for s in standings]),
        (price, [seconds_cell(s.price, signed=True) for s in standings]),
    ]
    kept = [(heading, cells) for heading, cells in columns if any(cell.value is not None for cell in cells)]
    # What is the same for all tells nothing of them; it stands among the settings.
    same = len(standings) > 1 and len({s.passes for s in standings}) == 1
    kept = [(heading, cells) for heading, cells in kept if heading is not passes or not same]
    lines = [Line(s.method.label, s.method, tuple(cells[i] for _, cells in kept)) for i, s in enumerate(standings)]
    return with_best(Grid((Heading("method"), *(heading for heading, _ in kept)), tuple(lines)))


def price_grid(found: Overview) -> Grid:
    """What each method costs on each stationary control, beside what it gains where tasks change."""
    headings = [Heading("method")]
    for i, stream in found.controls.items():
        headings.append(Heading(stream.title, "last tasks", "Where nothing changes.", i, "higher"))
        headings.append(Heading("price", "vs no protection", "Difference on the same seeds.", i, "higher"))
    for i, stream in found.continual.items():
        better = "" if stream.score is None else stream.score.better
        headings.append(Heading(f"gain: {stream.title}", "vs no protection", "Difference of the averages.", i, better))
    lines = []
    for entry in found.entries:
        cells: list[Cell] = []
        for i, stream in found.controls.items():
            row, metric = entry.prices.get(i), headline_metrics(stream)[-1]
            cells.append(EMPTY if row is None else number_cell(row.last, metric))
            cells.append(EMPTY if row is None else _row_difference(row, metric))
        for i in found.continual:
            standing = entry.standings.get(i)
            cells.append(EMPTY if standing is None else _gain(standing))
        if entry.prices:
            lines.append(Line(entry.label, entry.method, tuple(cells)))
    return Grid(tuple(headings), tuple(lines))


def budget_grid(budgets: Budgets) -> Grid:
    """Scores at equal gradient evaluations per new example."""
    metric = budgets.metric
    headings = [Heading("method")]
    for level in budgets.budgets:
        about = "The run with the most evaluations that are not above this budget."
        headings.append(Heading(f"{level:g} per example", metric.unit, about, better=metric.better))
    lines = [
        Line(label, None, tuple(EMPTY if e is None else number_cell(e, metric) for e in cells))
        for label, cells in budgets.rows.items()
    ]
    return with_best(Grid(tuple(headings), tuple(lines)))


def _leaderboard_cells(entry: Entry, found: Overview, several: bool, with_iqm: bool) -> list[Cell]:
    cells = []
    if several:
        cells.append(interval_cell(entry.rank))
    if entry.method.is_baseline:
        cells.append(Cell("baseline"))
    else:
        better = entry.improvement
        clear = better is not None and (better.low > 0.5 or better.high < 0.5)
        verdict = "" if better is None or not clear else "good" if better.low > 0.5 else "bad"
        cells.append(replace(interval_cell(better), verdict=verdict))
    if with_iqm:
        cells.append(interval_cell(entry.iqm, 100.0, 1))
    for i in found.continual:
        standing = entry.standings.get(i)
        if standing is None:
            cells.append(Cell("not run"))
        else:
            number = number_cell(standing.average, standing.metric)
            cells.append(replace(number, run=standing.method.experiment_id))
    for i, stream in found.controls.items():
        row = entry.prices.get(i)
        if row is None:
            cells.append(Cell("not run"))
        else:
            number = _row_difference(row, headline_metrics(stream)[-1])
            cells.append(replace(number, run=row.method.experiment_id))
    cells.append(_seeds(entry))
    return cells


def _seeds(entry: Entry) -> Cell:
    rows = [s.average.num for s in entry.standings.values()] + [r.last.num for r in entry.prices.values()]
    if not rows:
        return EMPTY
    least, most = min(rows), max(rows)
    failed = sum(s.num_failed for s in entry.standings.values()) + sum(r.num_failed for r in entry.prices.values())
    text = f"{least}" if least == most else f"{least}–{most}"
    return Cell(f"{text}, {failed} failed" if failed else text, float(least), "bad" if failed else "")


def _place(entry: Entry, found: Overview) -> tuple[bool, float, str]:
    """Where it stands: by mean rank, else by the average on the first stream; references last."""
    if entry.rank is not None and math.isfinite(entry.rank.mean):
        return entry.method.is_reference, entry.rank.mean, entry.label
    standing = entry.standings.get(next(iter(found.continual), -1))
    value = math.inf if standing is None else -standing.metric.sign * standing.average.mean
    return True, value if math.isfinite(value) else math.inf, entry.label


def _unit(metric: Metric, what: str) -> str:
    return f"{what}, {metric.unit}" if metric.unit else f"{what}, {metric.words}"


def _row_difference(row: Row, metric: Metric) -> Cell:
    return difference_cell(row.difference, metric, row.p_adjusted, baseline=row.method.is_baseline)


def _gain(standing: Standing) -> Cell:
    return difference_cell(standing.gain, standing.metric, standing.p_adjusted, baseline=standing.method.is_baseline)
