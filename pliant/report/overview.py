"""What several streams say together: who ranks where, at what price, and whether static data would tell."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pliant.intervals import Estimate
from pliant.report.budgets import Budgets, at_budgets
from pliant.report.metrics import Metric
from pliant.report.standings import Standing, ranked, standings
from pliant.report.summary import Method, Row, Stream, headline, headline_metrics
from pliant.statistics import (
    iqm,
    mean_ranks,
    performance_profile,
    probability_of_improvement,
    rank_agreement,
)

__all__ = ["Entry", "Overview", "Profile", "RankOrder", "overview"]

NUM_THRESHOLDS = 51


@dataclass(frozen=True)
class Entry:
    """One method over all streams; streams are named by their place.

    Args:
        label: What it is called on every stream.
        method: It, on the first stream that has it.
        standings: Continual stream to its standing there.
        prices: Stationary control to its headline row there, in held-out score where there is one.
        improvement: Probability that it beats no protection, over the continual streams.
        rank: Mean rank among the methods that ran on all streams of the ranking.
        iqm: Interquartile mean over the runs on all streams that are scored in accuracy.
        num_missing: Streams of the ranking on which it did not run; then it has no rank and no interquartile mean.
    """

    label: str
    method: Method
    standings: Mapping[int, Standing]
    prices: Mapping[int, Row]
    improvement: Estimate | None
    rank: Estimate | None
    iqm: Estimate | None
    num_missing: int


@dataclass(frozen=True)
class Profile:
    """The performance profiles of the methods that ran on all streams scored in accuracy."""

    thresholds: Sequence[float]
    curves: Mapping[str, Sequence[Estimate]]
    streams: Sequence[str]


@dataclass(frozen=True)
class RankOrder:
    """The order of the same methods, or of the same architectures, on a stationary control and on a stream.

    Args:
        what: ``"methods"``, or ``"architectures"`` with the method that they share.
        control: Title of the control.
        stream: Title of the stream.
        static: Name to rank by the score where nothing changes; 1 is the best.
        continual: Name to rank where tasks change.
        agreement: Spearman's correlation of the two, over seeds.
    """

    what: str
    control: str
    stream: str
    static: Mapping[str, float]
    continual: Mapping[str, float]
    agreement: Estimate


@dataclass(frozen=True)
class Overview:
    """All of it; parts for which the records lack something are empty.

    Args:
        continual: Streams on which tasks change, by their place.
        ranking: Those on which several methods ran, over which methods are ranked.
        controls: Streams on which nothing changes.
        entries: The methods.
        profile: Their performance profiles.
        orders: Their orders on static and on continual data.
        budgets: Their scores at equal budgets.
    """

    continual: Mapping[int, Stream]
    ranking: Mapping[int, Stream]
    controls: Mapping[int, Stream]
    entries: Sequence[Entry]
    profile: Profile | None
    orders: Sequence[RankOrder]
    budgets: Sequence[Budgets]


def overview(streams: Sequence[Stream], threshold: float | None = None) -> Overview:
    """Put the streams of :func:`pliant.report.summarise` together.

    A method is followed from stream to stream by its label. Where all streams are stationary, they take the place of
    the continual ones.

    Args:
        streams: The streams.
        threshold: See :func:`pliant.report.standings.standings`.
    """
    scored = {i: s for i, s in enumerate(streams) if s.score is not None}
    controls = {i: s for i, s in scored.items() if s.control}
    continual = {i: s for i, s in scored.items() if not s.control} or controls
    if continual is controls:
        controls = {}
    labels = dict.fromkeys(m.label for s in (*continual.values(), *controls.values()) for m in s.methods)
    found = {i: {x.method.label: x for x in standings(s, threshold)} for i, s in continual.items()}
    prices = {i: {row.method.label: row for row in headline(s, headline_metrics(s)[-1])} for i, s in controls.items()}
    # A stream on which a single method ran ranks nobody, and takes no rank from those that did not run there.
    ranking = {i: s for i, s in continual.items() if sum(not m.is_reference for m in s.methods) > 1} or continual
    # A fresh network per task is shown beside the methods; it does not take a rank from any of them.
    everywhere = [label for label in labels if all(label in found[i] for i in ranking)]
    contenders = [label for label in everywhere if not _method(label, streams).is_reference]
    ranks = _ranks(contenders, ranking)
    accuracy = {i: s for i, s in ranking.items() if s.score is not None and s.score.name == "online_accuracy"}
    on_accuracy = [label for label in labels if accuracy and all(label in found[i] for i in accuracy)]
    entries = [
        Entry(
            label=label,
            method=_method(label, streams),
            standings={i: found[i][label] for i in continual if label in found[i]},
            prices={i: prices[i][label] for i in controls if label in prices[i]},
            improvement=_improvement(label, continual),
            rank=ranks.get(label),
            iqm=iqm(_strata(label, accuracy)) if label in on_accuracy else None,
            num_missing=sum(label not in found[i] for i in ranking),
        )
        for label in labels
    ]
    return Overview(
        continual=continual,
        ranking=ranking,
        controls=controls,
        entries=entries,
        profile=_profile(on_accuracy, accuracy),
        orders=[order for c in controls.values() for s in continual.values() for order in _orders(c, s)],
        budgets=at_budgets(list(continual.values())),
    )


def _method(label: str, streams: Sequence[Stream]) -> Method:
    return next(m for s in sorted(streams, key=lambda s: s.control) for m in s.methods if m.label == label)


def _on(stream: Stream, label: str) -> Method | None:
    return next((m for m in stream.methods if m.label == label), None)


def _strata(label: str, streams: Mapping[int, Stream]) -> list[list[float]]:
    found = []
    for stream in streams.values():
        method, metric = _on(stream, label), stream.score
        found.append([] if method is None or metric is None else list(ranked(method, metric).values()))
    return found


def _improvement(label: str, streams: Mapping[int, Stream]) -> Estimate | None:
    """Over the streams on which both it and no protection ran."""
    mine, theirs = [], []
    for stream in streams.values():
        method, metric = _on(stream, label), stream.score
        base = None if method is None else stream.baseline_of(method)
        if method is not None and metric is not None and base is not None:
            mine.append(ranked(method, metric))
            theirs.append(ranked(base, metric))
    return probability_of_improvement(mine, theirs) if mine else None


def _together(methods: Sequence[Method], metric: Metric) -> list[list[float]]:
    """``[n, M]``: the scores on the seeds that all of the methods have."""
    scores = [ranked(method, metric) for method in methods]
    seeds = sorted(set.intersection(*(set(s) for s in scores))) if scores else []
    return [[s[seed] for s in scores] for seed in seeds]


def _ranks(labels: Sequence[str], streams: Mapping[int, Stream]) -> dict[str, Estimate]:
    if len(labels) < 2:
        return {}
    strata = []
    for stream in streams.values():
        methods = [m for label in labels if (m := _on(stream, label)) is not None]
        if stream.score is not None:
            strata.append(np.array(_together(methods, stream.score), dtype=np.float64).reshape(-1, len(labels)))
    return dict(zip(labels, mean_ranks(strata), strict=True))


def _profile(labels: Sequence[str], streams: Mapping[int, Stream]) -> Profile | None:
    if not labels:
        return None
    scores = [v for label in labels for stratum in _strata(label, streams) for v in stratum if math.isfinite(v)]
    if not scores:
        return None
    low, high = max(0.0, math.floor(20 * min(scores)) / 20), min(1.0, math.ceil(20 * max(scores)) / 20)
    levels = [low + (high - low) * i / (NUM_THRESHOLDS - 1) for i in range(NUM_THRESHOLDS)] if high > low else [low]
    curves = {label: performance_profile(_strata(label, streams), levels) for label in labels}
    return Profile(levels, curves, [stream.title for stream in streams.values()])


def _orders(control: Stream, stream: Stream) -> list[RankOrder]:
    """By method; and by architecture, for each method that ran with three or more."""
    common = [m.label for m in stream.methods if _on(control, m.label) and not m.is_reference]
    orders = [_order("methods", control, stream, {label: (label, label) for label in common})]
    static, continual = _by_model(control), _by_model(stream)
    for kind in dict.fromkeys(kind for kind, _ in continual):
        both = [model for name, model in continual if name == kind and (kind, model) in static]
        pairs = {_model_name(model): (static[kind, model], continual[kind, model]) for model in both}
        if len(pairs) >= 3:
            orders.append(_order(f"architectures with {kind}", control, stream, pairs))
    return [order for order in orders if order.static]


def _by_model(stream: Stream) -> dict[tuple[str, str], str]:
    """Method and architecture to the label; the first where several runs share both."""
    found: dict[tuple[str, str], str] = {}
    for method in stream.methods:
        model = json.dumps(method.experiment.get("model"), sort_keys=True)
        found.setdefault((" + ".join(method.names) or "no protection", model), method.label)
    return found


def _order(what: str, control: Stream, stream: Stream, names: Mapping[str, tuple[str, str]]) -> RankOrder:
    """Where nothing changes, the held-out score at the end counts; where tasks change, the average while learning."""
    static, continual = headline_metrics(control)[-1], stream.score
    columns = [
        [m for label in labels if (m := _on(side, label)) is not None]
        for side, labels in ((control, [a for a, _ in names.values()]), (stream, [b for _, b in names.values()]))
    ]
    nothing = RankOrder(what, control.title, stream.title, {}, {}, Estimate(math.nan, math.nan, math.nan, 0))
    if continual is None or len(names) < 3:
        return nothing
    scores = [_together(columns[0], static), _together(columns[1], continual)]
    if not all(scores):
        return nothing
    ranks = [_rank_of(rows) for rows in scores]
    agreement = rank_agreement(*scores)
    pairs = [dict(zip(names, side, strict=True)) for side in ranks]
    return RankOrder(what, control.title, stream.title, pairs[0], pairs[1], agreement)


def _rank_of(rows: Sequence[Sequence[float]]) -> list[float]:
    means = [sum(column) / len(column) for column in zip(*rows, strict=True)]
    return [sum(b > a for b in means) + (sum(b == a for b in means) + 1) / 2 for a in means]


def _model_name(model: str) -> str:
    config = json.loads(model)
    if not isinstance(config, dict):
        return str(config)
    rest = ", ".join(f"{k} {v}" for k, v in config.items() if k != "name")
    return f"{config.get('name', 'model')}{f' ({rest})' if rest else ''}"
