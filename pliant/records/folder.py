"""The folder that records live in: what is written there, and what is believed of what lies there."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from types import UnionType
from typing import Any, TypeAlias

from pliant.errors import RecordError
from pliant.records.atomic import StorageError, sync_folder, write_atomically
from pliant.records.record import Record, canonical_json, check_id, plain_dict

__all__ = [
    "EXPERIMENT",
    "SCHEMA_VERSION",
    "SEED_FILE",
    "StrPath",
    "prepare_folder",
    "read_experiment",
    "read_record",
    "read_records",
    "record_path",
    "record_text",
    "refuse",
    "same_series",
    "write_record",
]

SCHEMA_VERSION = 1
"""The version of the file format; a reader refuses every other."""

StrPath: TypeAlias = str | os.PathLike[str]

EXPERIMENT = "experiment.json"
SEED_FILE = re.compile(r"seed-(\d{4,})\.json")


def record_path(results: StrPath, experiment_id: str, seed: int) -> Path:
    """Where the record of one seed lives: ``RESULTS/<experiment_id>/seed-0003.json``.

    Example:
        >>> record_path("results", "digits-none-0123456789ab", 3).as_posix()
        'results/digits-none-0123456789ab/seed-0003.json'
    """
    return Path(results) / experiment_id / f"seed-{seed:04d}.json"


def prepare_folder(results: StrPath, experiment: Mapping[str, Any], experiment_id: str) -> Path:
    """Make the folder of an experiment, with its ``experiment.json``, or make sure that it is the right one.

    Safe to call from several processes at once, and again for a run that resumes.

    Args:
        results: The results folder; made if it does not exist.
        experiment: The whole configuration.
        experiment_id: Its name, from :func:`experiment_id`.

    Returns:
        ``RESULTS/<experiment_id>``.

    Raises:
        RecordError: If the folder holds a different experiment, or records of an unknown one, or cannot be
            made.

    Example:
        >>> import tempfile
        >>> from pliant.records import experiment_id, prepare_folder
        >>> config = {"stream": {"name": "digits"}, "num_tasks": 2}
        >>> name = experiment_id(config, "digits", "none")
        >>> with tempfile.TemporaryDirectory() as results:
        ...     folder = prepare_folder(results, config, name)
        ...     again = prepare_folder(results, config, name)
        ...     print(folder == again, (folder / "experiment.json").exists())
        True True
    """
    experiment = plain_dict(experiment, "experiment")
    check_id(experiment_id, experiment)
    folder = Path(results) / experiment_id
    path = folder / EXPERIMENT
    if path.exists():
        _, found = read_experiment(folder)
        if canonical_json(found) != canonical_json(experiment):
            what = f"this folder holds a different experiment: {_first_difference(found, experiment)}"
            raise refuse(folder, what, "Choose another results folder, or move this one away")
        return folder
    orphans = folder.exists() and any(SEED_FILE.fullmatch(p.name) for p in folder.iterdir())
    if orphans and not path.exists():  # asked again: another process may have made the folder meanwhile
        what = f"there are records here but no {EXPERIMENT}, so nobody knows what they belong to"
        raise refuse(folder, what, f"Bring {EXPERIMENT} back, or move this folder away")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"{folder}: cannot be made ({error}). Choose another results folder") from error
    head = {"schema_version": SCHEMA_VERSION, "experiment_id": experiment_id, "experiment": experiment}
    write_atomically(path, json.dumps(head, indent=2) + "\n")
    sync_folder(folder.parent)
    return folder


def write_record(record: Record, results: StrPath, *, overwrite: bool = False) -> Path:
    """Write one record so that it is there whole or not at all, whenever the process or the machine stops.

    The text goes to a hidden file in the same folder, is flushed to the disk and then moved into place. What
    a killed writer leaves behind is such a hidden file, which no reader looks at.

    A failed record gives way to a new one. A complete record is never replaced by something else: written
    again with the same series, it stays as it is; anything else is an error.

    Args:
        record: What to write.
        results: The results folder; made if it does not exist.
        overwrite: Replace a complete or damaged record of this seed whatever it holds.

    Returns:
        The path of the record.

    Raises:
        RecordError: If the folder holds a different experiment, or this seed has a complete record with other
            values, or one that is damaged. Nothing is written then.

    Example:
        >>> import tempfile
        >>> from pliant.records import experiment_id
        >>> config = {"stream": {"name": "digits"}, "method": []}
        >>> name = experiment_id(config, "digits", "none")
        >>> series = {"loss": [0.5, float("nan")]}
        >>> record = Record(experiment=config, experiment_id=name, seed=3, series=series)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = write_record(record, folder)
        ...     again = read_record(path)
        >>> path.name, again.seed, again.series
        ('seed-0003.json', 3, {'loss': [0.5, nan]})
    """
    path = record_path(results, record.experiment_id, record.seed)
    prepare_folder(results, record.experiment, record.experiment_id)
    if path.exists() and not overwrite:
        found = read_record(path)
        if found.status == "complete":
            if record.status == "complete" and same_series(found, record):
                return path
            what = f"holds a complete record of this seed, and the new one ({record.status}) differs"
            raise refuse(path, what, "Move the old one away, choose another folder, or overwrite on purpose")
    write_atomically(path, record_text(record))
    return path


def record_text(record: Record) -> str:
    """The text of a record's file.

    Example:
        >>> import json
        >>> from pliant.records import Record, experiment_id, record_text
        >>> config = {"stream": {"name": "digits"}, "num_tasks": 2}
        >>> name = experiment_id(config, "digits", "none")
        >>> record = Record(experiment=config, experiment_id=name, seed=0, series={"online_accuracy": [0.5, 0.25]})
        >>> json.loads(record_text(record))["series"]
        {'online_accuracy': [0.5, 0.25]}
    """
    head = {
        "schema_version": SCHEMA_VERSION,
        "experiment_id": record.experiment_id,
        "seed": record.seed,
        "status": record.status,
        "error": record.error,
        "meta": record.meta,
    }
    # One line per series: a person can read the file, and a line of a difference is one series.
    text = json.dumps(head, indent=2).removesuffix("\n}")
    return text + f',\n  "series": {_series_text(record.series)}\n}}\n'


def same_series(one: Record, other: Record) -> bool:
    """Whether both measured the same, to the last bit; NaN equals NaN."""
    return _series_text(one.series) == _series_text(other.series)


def read_record(path: StrPath) -> Record:
    """Read one record together with the ``experiment.json`` beside it, and check all of it.

    Args:
        path: A ``seed-*.json``.

    Returns:
        The record, equal to the one that was written.

    Raises:
        RecordError: If a file is missing or damaged, of another format version, lacks a field, holds what its
            name denies, or belongs to another experiment than its folder. The message says what to do.

    Example:
        >>> import tempfile
        >>> from pliant.records import Record, experiment_id, read_record, write_record
        >>> config = {"stream": {"name": "digits"}, "num_tasks": 2}
        >>> name = experiment_id(config, "digits", "none")
        >>> record = Record(experiment=config, experiment_id=name, seed=0, series={"online_accuracy": [0.5, 0.25]})
        >>> with tempfile.TemporaryDirectory() as results:
        ...     read_record(write_record(record, results)) == record
        True
    """
    path = Path(path)
    return _parse_record(path, *read_experiment(path.parent))


def read_records(folder: StrPath) -> list[Record]:
    """Read every record under a folder, failed ones included, sorted by experiment and seed.

    Hidden files and folders are not looked at: temporary files of a writer, checkpoints of a run under way.

    Args:
        folder: A results folder, or any folder above or below one.

    Returns:
        The records; none where the folder holds none.

    Raises:
        RecordError: If the folder does not exist, a record in it cannot be read (:func:`read_record`), or the
            same experiment and seed is there twice: it would be counted twice, and intervals would lie.

    Example:
        >>> import tempfile
        >>> from pliant.records import Record, experiment_id, read_records, write_record
        >>> config = {"stream": {"name": "digits"}, "num_tasks": 2}
        >>> name = experiment_id(config, "digits", "none")
        >>> record = Record(experiment=config, experiment_id=name, seed=0, series={"online_accuracy": [0.5, 0.25]})
        >>> with tempfile.TemporaryDirectory() as results:
        ...     _ = write_record(record, results)
        ...     [found.seed for found in read_records(results)]
        [0]
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise refuse(folder, "there is no such folder", "Give the results folder of a run")
    experiments: dict[Path, tuple[str, dict[str, Any]]] = {}
    found: dict[tuple[str, int], tuple[Path, Record]] = {}
    for path in sorted(folder.rglob("seed-*.json")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if hidden or not SEED_FILE.fullmatch(path.name):
            continue
        if path.parent not in experiments:
            experiments[path.parent] = read_experiment(path.parent)
        record = _parse_record(path, *experiments[path.parent])
        key = (record.experiment_id, record.seed)
        if key in found:
            what = f"the same experiment and seed is also in {found[key][0]}, and would be counted twice"
            raise refuse(path, what, "Move one of the two away, or name the folder of one of them")
        found[key] = (path, record)
    return [found[key][1] for key in sorted(found)]


def _load(path: Path, remedy: str) -> dict[str, Any]:
    """The JSON object of a file of this format version."""
    try:
        data = json.loads(path.read_bytes().decode("utf-8"))
    except FileNotFoundError as error:
        raise refuse(path, "this file is missing", remedy) from error
    except OSError as error:
        raise refuse(path, f"cannot be read ({error})", "Check its permissions and the disk") from error
    except (ValueError, RecursionError) as error:
        raise refuse(path, f"damaged, this is not whole JSON ({error})", remedy) from error
    if not isinstance(data, dict) or "schema_version" not in data:
        raise refuse(path, "damaged, the field 'schema_version' is missing", remedy)
    if data["schema_version"] != SCHEMA_VERSION:
        what = f"written in format version {data['schema_version']!r}, but this pliant reads {SCHEMA_VERSION}"
        raise refuse(path, what, "Read it with the version of pliant that wrote it, or run it again")
    return data


def refuse(path: Path, what: str, remedy: str) -> RecordError:
    """The error that says where, what is wrong, and what to do."""
    return RecordError(f"{path}: {what}. {remedy}")


def _get(data: dict[str, Any], name: str, kind: type | UnionType, path: Path, remedy: str) -> Any:
    if name not in data:
        raise refuse(path, f"damaged, the field {name!r} is missing", remedy)
    if not isinstance(data[name], kind):
        raise refuse(path, f"damaged, the field {name!r} holds {data[name]!r:.40}", remedy)
    return data[name]


def read_experiment(folder: Path) -> tuple[str, dict[str, Any]]:
    """The id and the configuration of an experiment's folder."""
    path = folder / EXPERIMENT
    remedy = "Bring the file back from a copy, or move this folder away and run the experiment again"
    data = _load(path, remedy)
    experiment: dict[str, Any] = _get(data, "experiment", dict, path, remedy)
    name: str = _get(data, "experiment_id", str, path, remedy)
    try:
        check_id(name, experiment)
    except RecordError as error:
        raise refuse(path, f"changed since it was written: {error}", remedy) from error
    return name, experiment


def _parse_record(path: Path, folder_id: str, experiment: dict[str, Any]) -> Record:
    remedy = "Delete this file and start the run again: only this seed is repeated"
    data = _load(path, remedy)
    name = _get(data, "experiment_id", str, path, remedy)
    if name != folder_id:
        what = f"belongs to the experiment {name}, but its folder holds {folder_id}"
        raise refuse(path, what, "Move the file back to the folder it came from")
    seed = _get(data, "seed", int, path, remedy)
    match = SEED_FILE.fullmatch(path.name)
    if match is not None and int(match[1]) != seed:
        raise refuse(path, f"its name says seed {int(match[1])}, its content {seed!r}", "Rename the file")
    series = {}
    for key, values in _get(data, "series", dict, path, remedy).items():
        if not isinstance(values, list) or not all(_is_value(value) for value in values):
            raise refuse(path, f"damaged, the series {key!r} is not a list of numbers", remedy)
        series[key] = [float("nan") if value is None else float(value) for value in values]
    rest = {
        "status": _get(data, "status", str, path, remedy),
        "error": _get(data, "error", str | None, path, remedy),
        "meta": _get(data, "meta", dict, path, remedy),
    }
    try:
        return Record(experiment=experiment, experiment_id=name, seed=seed, series=series, **rest)
    except RecordError as error:
        raise refuse(path, f"damaged, {error}", remedy) from error


def _is_value(value: object) -> bool:
    return value is None or value in ("inf", "-inf") or type(value) in (int, float)


def _series_text(series: Mapping[str, list[float]]) -> str:
    """The series as a JSON object, one per line; NaN as null and infinities as text, which JSON lacks."""
    texts = {name: json.dumps([_jsonable(v) for v in values]) for name, values in series.items()}
    rows = [f"    {json.dumps(name)}: {text}" for name, text in texts.items()]
    return "{\n" + ",\n".join(rows) + "\n  }" if rows else "{}"


def _jsonable(value: float) -> float | str | None:
    return value if math.isfinite(value) else None if math.isnan(value) else str(value)


def _first_difference(found: Any, wanted: Any, where: str = "") -> str:
    """Where two configurations differ first, in words: the reader wants to know which setting it is."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        for key in sorted(found.keys() | wanted.keys()):
            if key not in found or key not in wanted:
                return f"{where}[{key!r}] is only in {'the folder' if key in found else 'the new one'}"
            if found[key] != wanted[key] or type(found[key]) is not type(wanted[key]):
                return _first_difference(found[key], wanted[key], f"{where}[{key!r}]")
    return f"{where or 'it'} is {found!r} there and {wanted!r} here"
