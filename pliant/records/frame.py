"""Records as one table: a row for each task of each seed, for pandas or polars."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterable, Mapping
from typing import Any

from pliant.errors import NotYetSupported
from pliant.records.folder import StrPath, read_records
from pliant.records.record import Record

__all__ = ["to_columns", "to_frame"]

_LIBRARIES = ("pandas", "polars")
_FIRST = ("experiment_id", "stream", "method", "label", "seed", "status", "error", "task")


def to_columns(records: StrPath | Iterable[Record]) -> dict[str, list[Any]]:
    """Records as columns of equal length, one row for each task of each seed.

    Args:
        records: A results folder, or records.

    Returns:
        ``experiment_id``, ``stream``, ``method`` (the names of the methods with ``+`` between, or ``none``), ``label``,
        ``seed``, ``status``, ``error`` and ``task`` (counted from 0); then one column for each series; then the
        configuration, ``stream.num_examples``, ``optimizer.lr``, ``continual_backprop.replacement_rate``; then
        ``meta.seconds``, ``meta.torch``, ``meta.git_commit`` and so on. ``None`` stands where a record has no such
        thing. A seed that failed before the end of its first task has one row without a task, so that none is lost.

    Raises:
        RecordError: A record cannot be read.

    >>> from pliant.records import experiment_id
    >>> config = {"stream": {"name": "digits", "size": 8}, "methods": [{"name": "l2", "strength": 0.1}]}
    >>> record = Record(experiment=config, experiment_id=experiment_id(config, "digits", "l2"), seed=3,
    ...                 series={"loss": [0.5, 0.25]})
    >>> columns = to_columns([record])
    >>> columns["task"], columns["loss"], columns["l2.strength"], columns["stream.size"]
    ([0, 1], [0.5, 0.25], [0.1, 0.1], [8, 8])
    """
    found = list(records) if not isinstance(records, str) and isinstance(records, Iterable) else read_records(records)
    rows = [(_head(record), record) for record in found]
    series = sorted({name for record in found for name in record.series})
    others: dict[str, None] = {}  # in the order in which they appear
    for head, _ in rows:
        others.update(dict.fromkeys(name for name in head if name not in _FIRST))
    columns: dict[str, list[Any]] = {name: [] for name in (*_FIRST, *series, *others)}
    for head, record in rows:
        tasks: list[int | None] = list(range(record.num_tasks)) or [None]
        for task in tasks:
            columns["task"].append(task)
            for name in (*_FIRST[:-1], *others):
                columns[name].append(head.get(name))
            for name in series:
                known = task is not None and name in record.series
                columns[name].append(record.series[name][task] if known and task is not None else None)
    return columns


def to_frame(records: StrPath | Iterable[Record], library: str | None = None) -> Any:
    """Records as a data frame; the columns are those of :func:`to_columns`.

    Args:
        records: A results folder, or records.
        library: ``"pandas"`` or ``"polars"``; ``None``: the first of them that is installed.

    Returns:
        A ``pandas.DataFrame`` or a ``polars.DataFrame``.

    Raises:
        NotYetSupported: The library is not installed, or it is another one.
        RecordError: A record cannot be read.

    Example:
        ``to_frame("results").groupby(["label", "seed"])["online_accuracy"].mean()``

    Example:
        >>> from pliant.records import Record, experiment_id, to_frame
        >>> config = {"stream": {"name": "digits"}, "num_tasks": 2}
        >>> name = experiment_id(config, "digits", "none")
        >>> record = Record(experiment=config, experiment_id=name, seed=0, series={"online_accuracy": [0.5, 0.25]})
        >>> frame = to_frame([record], library="pandas")  # doctest: +SKIP
        >>> frame["online_accuracy"].mean()  # doctest: +SKIP
        0.375
    """
    wanted = _LIBRARIES if library is None else (library,)
    name = next((name for name in wanted if name in _LIBRARIES and importlib.util.find_spec(name) is not None), None)
    if name is None:
        raise NotYetSupported(
            f"to_frame: a data frame needs {' or '.join(_LIBRARIES)}, and {' and '.join(wanted)} cannot be imported; "
            "install one of the two, or take the plain lists of to_columns()"
        )
    columns = to_columns(records)
    if name == "polars":
        return importlib.import_module(name).DataFrame(columns, strict=False)
    pandas = importlib.import_module(name)
    frame = pandas.DataFrame({key: pandas.Series(values, dtype=object) for key, values in columns.items()})
    return frame.infer_objects().astype({"task": "Int64"})


def _head(record: Record) -> dict[str, Any]:
    """What all rows of a record share."""
    config = record.experiment
    methods = config.get("methods", [])
    head = {
        "experiment_id": record.experiment_id,
        "stream": _name(config.get("stream")),
        "method": "+".join(_name(method) for method in methods) or "none",
        "label": record.meta.get("label", ""),
        "seed": record.seed,
        "status": record.status,
        "error": record.error,
    }
    for key, part in config.items():
        if key == "methods":
            for method in methods:
                head |= _leaves(_name(method), {name: value for name, value in method.items() if name != "name"})
        elif isinstance(part, Mapping):
            head |= _leaves(key, {name: value for name, value in part.items() if (key, name) != ("stream", "name")})
        else:
            head[f"experiment.{key}"] = part
    return head | _leaves("meta", {key: value for key, value in record.meta.items() if key != "label"})


def _name(part: Any) -> str:
    """The name of a part of a configuration; of a class from elsewhere, the class's."""
    name = part.get("name", "") if isinstance(part, Mapping) else str(part or "")
    return str(name).rpartition(":")[2]


def _leaves(prefix: str, value: Mapping[str, Any]) -> dict[str, Any]:
    """Nested options by dotted name; a list stays one value, as text."""
    found: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(item, Mapping):
            found |= _leaves(f"{prefix}.{key}", item)
        else:
            found[f"{prefix}.{key}"] = str(item) if isinstance(item, list) else item
    return found
