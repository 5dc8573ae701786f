"""Records, sorted into streams and methods, and the headline numbers of each: what every output is made from."""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pliant.errors import RecordError
from pliant.intervals import Estimate, FirstLast, estimate, first_last, paired_difference
from pliant.records import Record
from pliant.report.metrics import Metric, metric_info
from pliant.statistics import holm, p_value

__all__ = ["Method", "Row", "Stream", "flatten", "headline", "headline_metrics", "summarise"]

TRANSFER = "backward_transfer"
"""The series of backward transfer, whose unit is that of the stream's score."""

WINDOW = 10
"""How many tasks the first and the last mean of a headline cover."""


@dataclass(frozen=True)
class Method:
    """One experiment of a stream: a method with its settings, and a record per seed.

    Args:
        label: What it is called in every table and figure; no other method of the stream shares it.
        experiment: Its configuration.
        experiment_id: Its name on disk.
        complete: The complete records, by seed.
        failed: The failed records, by seed.
    """

    label: str
    experiment: dict[str, Any]
    experiment_id: str
    complete: tuple[Record, ...]
    failed: tuple[Record, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The names of its interventions, in their order; none for training without protection."""
        return _names(self.experiment)

    @property
    def is_baseline(self) -> bool:
        """Whether this is training without any protection."""
        return not self.names

    @property
    def is_reference(self) -> bool:
        """Whether this is a fresh network per task: shown for comparison, no method to keep a network learning."""
        return self.names == ("fresh_start",)

    @property
    def started(self) -> str:
        """When its first seed started, as the records say it; empty where none does."""
        return min((str(r.meta.get("started", "")) for r in self.complete + self.failed), default="")

    def curves(self, metric: str) -> dict[int, list[float]]:
        """Seed to series, of the complete records that have this metric."""
        return {r.seed: r.series[metric] for r in self.complete if metric in r.series}


@dataclass(frozen=True)
class Stream:
    """One stream of tasks and the methods that ran on it, training without protection first."""

    name: str
    title: str
    description: str
    control: bool
    config: dict[str, Any]
    methods: tuple[Method, ...]

    @property
    def metrics(self) -> list[Metric]:
        """What was measured on it, in the order that reports show."""
        names = {name for m in self.methods for r in m.complete + m.failed for name in r.series}
        found = sorted((metric_info(name) for name in names), key=lambda metric: (metric.order, metric.name))
        score = next((metric for metric in found if metric.name.startswith("online_")), None)
        if score is None:
            return found
        return [
            replace(metric, percent=score.percent, better=score.better) if metric.name == TRANSFER else metric
            for metric in found
        ]

    @property
    def score(self) -> Metric | None:
        """What the stream is scored by: what is measured while learning, or the best there is."""
        return next(iter(headline_metrics(self)), None)

    @property
    def num_tasks(self) -> int:
        """How many tasks the longest series covers."""
        return max((r.num_tasks for m in self.methods for r in m.complete + m.failed), default=0)

    @property
    def window(self) -> int:
        """How many tasks the first and last means cover."""
        return min(WINDOW, self.num_tasks // 2)

    def baseline_of(self, method: Method) -> Method | None:
        """The unprotected run to compare a method with; the one with the same other settings if there are several."""
        baselines = [m for m in self.methods if m.is_baseline]
        if method.is_baseline or not baselines:
            return None
        if len(baselines) == 1:
            return baselines[0]
        same = [b for b in baselines if _settings(b.experiment) == _settings(method.experiment)]
        return same[0] if len(same) == 1 else None


@dataclass(frozen=True)
class Row:
    """The headline of one method in one metric.

    Args:
        method: The method.
        first: Mean over the first tasks.
        last: Mean over the last tasks.
        change: Last minus first.
        difference: Its last tasks minus the unprotected run's, on the same seeds.
        num_failed: Seeds that failed.
        p_adjusted: P-value of the difference, corrected for all methods of the table that are compared so.
    """

    method: Method
    first: Estimate
    last: Estimate
    change: Estimate
    difference: Estimate | None
    num_failed: int
    p_adjusted: float = math.nan


def summarise(records: Iterable[Record]) -> list[Stream]:
    """Sort records into streams and methods.

    Two records belong to the same stream if the whole stream configuration and the number of tasks agree, so a short
    and a long run of one stream are never averaged or compared, and to the same method if the whole experiment agrees.
    Labels and titles that two of them would share are told apart by the settings in which they differ.

    Args:
        records: Any records, in any order.

    Returns:
        The streams in the order in which they were run, stationary controls last. In each, training without
        protection comes first and fresh starts last.

    Raises:
        RecordError: If there is no record: a report on nothing would look like a result.

    Example:
        >>> from pliant.records import Record, experiment_id
        >>> def run(seed, last):
        ...     config = {"stream": {"name": "digits"}, "methods": [], "num_tasks": 2}
        ...     name = experiment_id(config, "digits", "none")
        ...     return Record(experiment=config, experiment_id=name, seed=seed, series={"online_accuracy": [0.5, last]})
        >>> records = [run(0, 0.25), run(1, 0.75)]
        >>> (stream,) = summarise(records)
        >>> stream.name, stream.num_tasks, [len(method.complete) for method in stream.methods]
        ('digits', 2, [2])
    """
    by_stream: dict[str, dict[str, list[Record]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        config = record.experiment.get("stream")
        config = dict(config) if isinstance(config, dict) else {"name": str(config)}
        if "num_tasks" in record.experiment:
            config["num_tasks"] = record.experiment["num_tasks"]
        key = json.dumps(config, sort_keys=True)
        by_stream[key][record.experiment_id].append(record)
    if not by_stream:
        raise RecordError("there are no records to report on; name the results folder of a run that has finished")
    streams = [_stream(json.loads(key), groups) for key, groups in by_stream.items()]
    titles = _distinct([s.title for s in streams], [flatten(s.config) for s in streams])
    streams = [replace(s, title=title) for s, title in zip(streams, titles, strict=True)]
    return sorted(streams, key=lambda s: (s.control, min(m.started for m in s.methods), s.name, s.title))


def headline_metrics(stream: Stream) -> list[Metric]:
    """The metrics that deserve a table: the score while learning and on held-out examples, or the best there is."""
    metrics = stream.metrics
    found = [m for when in ("online_", "test_") for m in metrics if m.name.startswith(when)]
    return found or metrics[:1]


def headline(stream: Stream, metric: Metric) -> list[Row]:
    """One row per method: first and last tasks, change, and the paired difference to no protection.

    Failed seeds are in no mean; every row says how many there are.
    """
    rows = [_row(stream, method, metric.name) for method in stream.methods]
    adjusted = holm([math.nan if row.difference is None else p_value(row.difference) for row in rows])
    return [replace(row, p_adjusted=p) for row, p in zip(rows, adjusted, strict=True)]


def flatten(config: Any, prefix: str = "") -> dict[str, str]:
    """Nested settings as dotted names and texts, the form in which they are shown and compared.

    Example:
        >>> flatten({"optimizer": {"name": "SGD", "lr": 0.1}, "widths": [8, 8]})
        {'optimizer.name': 'SGD', 'optimizer.lr': '0.1', 'widths': '8, 8'}
    """
    if isinstance(config, Mapping):
        flat: dict[str, str] = {}
        for key, value in config.items():
            flat |= flatten(value, f"{prefix}.{key}" if prefix else str(key))
        return flat
    if isinstance(config, list):
        if any(isinstance(v, Mapping) for v in config):
            named = {str(v.get("name", i)) if isinstance(v, Mapping) else str(i): v for i, v in enumerate(config)}
            return flatten(named if len(named) == len(config) else dict(enumerate(config)), prefix)
        return {prefix: ", ".join(v if isinstance(v, str) else json.dumps(v) for v in config) or "none"}
    return {prefix: config if isinstance(config, str) else json.dumps(config)}


def _row(stream: Stream, method: Method, metric: str) -> Row:
    mine = {seed: first_last(curve, WINDOW) for seed, curve in method.curves(metric).items()}
    # A seed with a broken window is in none of the row's numbers, so that they all speak for the same seeds.
    mine = {
        seed: s if math.isfinite(s.change) else FirstLast(math.nan, math.nan, math.nan, s.k) for seed, s in mine.items()
    }
    base = stream.baseline_of(method)
    difference = None
    if base is not None:
        theirs = {seed: first_last(curve, WINDOW).last for seed, curve in base.curves(metric).items()}
        difference = paired_difference({seed: s.last for seed, s in mine.items()}, theirs)
    return Row(
        method=method,
        first=estimate(s.first for s in mine.values()),
        last=estimate(s.last for s in mine.values()),
        change=estimate(s.change for s in mine.values()),
        difference=difference,
        num_failed=len(method.failed),
    )


def _stream(config: dict[str, Any], groups: Mapping[str, Sequence[Record]]) -> Stream:
    methods = []
    for experiment_id, records in groups.items():
        ordered = sorted(records, key=lambda r: r.seed)
        methods.append(
            Method(
                label=_label(ordered[0]),
                experiment=ordered[0].experiment,
                experiment_id=experiment_id,
                complete=tuple(r for r in ordered if r.status == "complete"),
                failed=tuple(r for r in ordered if r.status != "complete"),
            )
        )
    labels = _distinct([m.label for m in methods], [flatten(m.experiment) for m in methods])
    methods = [replace(m, label=label) for m, label in zip(methods, labels, strict=True)]
    methods.sort(key=lambda m: (not m.is_baseline, m.is_reference, m.started, m.label))
    name = str(config.get("name", "stream"))
    about = next(iter(groups.values()))[0].meta.get("stream")
    about = about if isinstance(about, dict) else {}
    return Stream(
        name=name,
        title=str(about.get("title") or name.rpartition(":")[2].replace("_", " ").capitalize()),
        description=str(about.get("description") or ""),
        control=about.get("control") is True,
        config=config,
        methods=tuple(methods),
    )


def _label(record: Record) -> str:
    """What the run calls itself; else its method; else its folder."""
    return str(record.meta.get("label") or " + ".join(_names(record.experiment)) or "no protection")


def _names(experiment: Mapping[str, Any]) -> tuple[str, ...]:
    """The names under ``methods``, a list of tables with a name and options."""
    methods = experiment.get("methods")
    entries = methods if isinstance(methods, list) else []
    return tuple(str(entry.get("name") if isinstance(entry, dict) else entry) for entry in entries)


def _settings(experiment: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in experiment.items() if k != "methods"}


def _distinct(labels: list[str], settings: list[dict[str, str]]) -> list[str]:
    """The labels, those that occur twice told apart by the first settings in which their owners differ."""
    result = list(labels)
    for label, count in Counter(labels).items():
        if count == 1:
            continue
        owners = [i for i, other in enumerate(labels) if other == label]
        keys = dict.fromkeys(key for i in owners for key in settings[i])
        told: list[str] = []
        for key in keys:
            if len({settings[i].get(key) for i in owners}) > 1:
                told.append(key)
            if told and len({tuple(settings[i].get(k) for k in told) for i in owners}) == count:
                break
        for i in owners:
            values = ", ".join(f"{key.rsplit('.', 1)[-1]} {settings[i].get(key, 'unset')}" for key in told)
            result[i] = f"{label} ({values})" if values else f"{label} (#{owners.index(i) + 1})"
    return result
