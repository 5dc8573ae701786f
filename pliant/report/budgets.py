"""Scores at equal cost: the same problem at several numbers of gradient evaluations per example."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pliant.intervals import Estimate, estimate
from pliant.report.metrics import Metric
from pliant.report.standings import averages, passes
from pliant.report.summary import Stream
from pliant.statistics import at_budget

__all__ = ["Budgets", "at_budgets"]


@dataclass(frozen=True)
class Budgets:
    """Methods on one problem at equal gradient evaluations per new example.

    Args:
        title: The problem.
        metric: Its score.
        budgets: The evaluations per example that occur.
        rows: Method to its average score at each budget; ``None`` where even its cheapest run costs more.
    """

    title: str
    metric: Metric
    budgets: Sequence[float]
    rows: Mapping[str, Sequence[Estimate | None]]


def at_budgets(streams: Sequence[Stream]) -> list[Budgets]:
    """Streams that differ in nothing but the passes over each task's data are one problem at several budgets."""
    problems: dict[str, list[Stream]] = defaultdict(list)
    for stream in streams:
        config = {k: v for k, v in stream.config.items() if k != "num_epochs"}
        problems[json.dumps([config, stream.num_tasks], sort_keys=True)].append(stream)
    found = []
    for group in problems.values():
        metric = group[0].score
        points: dict[str, list[tuple[float, Estimate]]] = defaultdict(list)
        for stream in group:
            for method in stream.methods:
                cost = passes(method.experiment)
                if cost is not None and metric is not None and not method.is_reference:
                    scores = averages(method, metric.name)
                    points[method.label].append((cost, estimate(scores.values())))
        levels = sorted({cost for costs in points.values() for cost, _ in costs})
        if len(levels) > 1 and metric is not None:
            rows = {label: [at_budget(costs, level) for level in levels] for label, costs in points.items()}
            found.append(Budgets(_common([stream.title for stream in group]), metric, levels, rows))
    return found


def _common(titles: Sequence[str]) -> str:
    """What titles share, without the settings in brackets that tell them apart."""
    heads = {title.rpartition(" (")[0] or title for title in titles} if len(titles) > 1 else set(titles)
    return heads.pop() if len(heads) == 1 else titles[0]
