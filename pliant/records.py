"""What one run leaves behind: the record of one experiment with one seed, its writer and its reader.

A results folder holds one folder per experiment and in it one file per seed::

    RESULTS/
      permuted_digits-continual_backprop-1f0c9a2b7d3e/    the experiment's id
        experiment.json                                   the whole configuration, once
        seed-0000.json  seed-0001.json  ...               what each seed measured, complete or failed
        .checkpoint/                                      a runner's business; never read here

The id ends in a hash of the configuration, so two experiments that differ in anything never share a folder.
Files appear whole or not at all: they are written beside their place, flushed to the disk and then moved.
A failed seed is a record like any other, with its error; nothing in this module drops one.

This module needs the standard library and numpy only, so that reports can be made where PyTorch is not.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import UnionType
from typing import Any, TypeAlias

import numpy as np

from pliant.errors import RecordError

__all__ = [
    "SCHEMA_VERSION",
    "Record",
    "canonical_json",
    "experiment_id",
    "prepare_folder",
    "read_record",
    "read_records",
    "record_path",
    "write_record",
]

SCHEMA_VERSION = 1
"""The version of the file format; a reader refuses every other."""

StrPath: TypeAlias = str | os.PathLike[str]

_EXPERIMENT = "experiment.json"
_STATUSES = ("complete", "failed")
_SEED_FILE = re.compile(r"seed-(\d{4,})\.json")


@dataclass(frozen=True, kw_only=True)
class Record:
    """One experiment run with one seed; everything in it is plain JSON data, copied from what was given.

    Args:
        experiment: The whole configuration: whatever changes the outcome is in it, and nothing else is.
        experiment_id: The name of its folder, from :func:`experiment_id` on that configuration.
        seed: The seed, ``>= 0``.
        status: ``"complete"`` or ``"failed"``; a failed record holds the series up to its failure.
        error: Why it failed, in words; ``None`` exactly for a complete record.
        series: Name to one value per task, all equally long. NaN and infinities are kept.
        meta: What does not change the outcome: versions, commit, platform, threads, start, seconds, label.

    Raises:
        RecordError: If the pieces do not fit together or are no JSON data; the message names the piece.

    Example:
        >>> config = {"stream": {"name": "digits"}, "method": []}
        >>> name = experiment_id(config, "digits", "none")
        >>> record = Record(experiment=config, experiment_id=name, seed=0, series={"loss": [0.5, 0.25]})
        >>> record.status, record.num_tasks
        ('complete', 2)
        >>> Record(experiment=config | {"method": ["L2()"]}, experiment_id=name, seed=0)
        Traceback (most recent call last):
        pliant.errors.RecordError: ...
    """

    experiment: dict[str, Any]
    experiment_id: str
    seed: int
    status: str = "complete"
    error: str | None = None
    series: dict[str, list[float]] = field(default_factory=dict)
    meta: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check the pieces against each other, and replace them by plain copies."""
        if isinstance(self.seed, bool) or not isinstance(self.seed, (int, np.integer)) or self.seed < 0:
            raise RecordError(f"seed must be an integer >= 0, not {self.seed!r}")
        if self.status not in _STATUSES:
            raise RecordError(f"status must be one of {', '.join(_STATUSES)}, not {self.status!r}")
        if (self.status == "failed") != isinstance(self.error, str):
            raise RecordError(
                f"a {self.status} record has error {self.error!r}: a failed one needs its "
                "error as text, a complete one has none"
            )
        set_field = partial(object.__setattr__, self)
        set_field("seed", int(self.seed))
        set_field("experiment", _plain_dict(self.experiment, "experiment"))
        set_field("series", _plain_series(self.series))
        set_field("meta", _plain_dict(self.meta, "meta"))
        _check_id(self.experiment_id, self.experiment)

    @property
    def num_tasks(self) -> int:
        """How many tasks the series cover; fewer than the stream has where the run failed."""
        return len(next(iter(self.series.values()), []))


def canonical_json(config: Mapping[str, Any]) -> str:
    """The one text that stands for a configuration: sorted keys, no spaces, ASCII, floats to the last bit.

    Tuples read as lists and numpy numbers as Python's; ``1`` and ``1.0`` are different.

    Raises:
        RecordError: If something is not JSON data, or is a NaN or an infinity; the message names where.

    Example:
        >>> canonical_json({"b": (1, 2.0), "a": None})
        '{"a":null,"b":[1,2.0]}'
        >>> canonical_json({"lr": float("nan")})
        Traceback (most recent call last):
        pliant.errors.RecordError: experiment['lr'] is nan, which has no place in a configuration; ...
    """
    return json.dumps(_plain_dict(config, "experiment"), sort_keys=True, separators=(",", ":"))


def experiment_id(config: Mapping[str, Any], stream: str, method: str) -> str:
    """The name of an experiment: ``<stream>-<method>-<12 hex digits>`` of its configuration's SHA-256.

    Args:
        config: The whole configuration.
        stream: Short name of the stream; what does not suit a file name becomes ``_``.
        method: Short name of the method, likewise.

    Returns:
        A name that is safe as a folder on every system, and that differs whenever the configuration does.

    Raises:
        RecordError: If the configuration is not JSON data.

    Example:
        >>> experiment_id({"lr": 0.1}, "permuted_digits", "Shrink & perturb")
        'permuted_digits-shrink_perturb-9c9ba942d8bb'
        >>> a, b = ({"x": 1, "y": 2}, {"y": 2, "x": 1})          # the order of the keys is no matter
        >>> assert experiment_id(a, "s", "m") == experiment_id(b, "s", "m")
    """
    return f"{_slug(stream)}-{_slug(method)}-{_hash(config)}"


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
    """
    experiment = _plain_dict(experiment, "experiment")
    _check_id(experiment_id, experiment)
    folder = Path(results) / experiment_id
    path = folder / _EXPERIMENT
    if path.exists():
        _, found = _read_experiment(folder)
        if canonical_json(found) != canonical_json(experiment):
            what = f"this folder holds a different experiment: {_first_difference(found, experiment)}"
            raise _refuse(folder, what, "Choose another results folder, or move this one away")
        return folder
    orphans = folder.exists() and any(_SEED_FILE.fullmatch(p.name) for p in folder.iterdir())
    if orphans and not path.exists():  # asked again: another process may have made the folder meanwhile
        what = f"there are records here but no {_EXPERIMENT}, so nobody knows what they belong to"
        raise _refuse(folder, what, f"Bring {_EXPERIMENT} back, or move this folder away")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _refuse(folder, f"cannot be made ({error})", "Choose another results folder") from error
    head = {"schema_version": SCHEMA_VERSION, "experiment_id": experiment_id, "experiment": experiment}
    _write_atomically(path, json.dumps(head, indent=2) + "\n")
    _sync_folder(folder.parent)
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
            if record.status == "complete" and _series_text(found.series) == _series_text(record.series):
                return path
            what = f"holds a complete record of this seed, and the new one ({record.status}) differs"
            raise _refuse(path, what, "Move the old one away, choose another folder, or overwrite on purpose")
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
    text += f',\n  "series": {_series_text(record.series)}\n}}\n'
    _write_atomically(path, text)
    return path


def read_record(path: StrPath) -> Record:
    """Read one record together with the ``experiment.json`` beside it, and check all of it.

    Args:
        path: A ``seed-*.json``.

    Returns:
        The record, equal to the one that was written.

    Raises:
        RecordError: If a file is missing or damaged, of another format version, lacks a field, holds what its
            name denies, or belongs to another experiment than its folder. The message says what to do.
    """
    path = Path(path)
    return _parse_record(path, *_read_experiment(path.parent))


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
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise _refuse(folder, "there is no such folder", "Give the results folder of a run")
    experiments: dict[Path, tuple[str, dict[str, Any]]] = {}
    found: dict[tuple[str, int], tuple[Path, Record]] = {}
    for path in sorted(folder.rglob("seed-*.json")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if hidden or not _SEED_FILE.fullmatch(path.name):
            continue
        if path.parent not in experiments:
            experiments[path.parent] = _read_experiment(path.parent)
        record = _parse_record(path, *experiments[path.parent])
        key = (record.experiment_id, record.seed)
        if key in found:
            what = f"the same experiment and seed is also in {found[key][0]}, and would be counted twice"
            raise _refuse(path, what, "Move one of the two away, or name the folder of one of them")
        found[key] = (path, record)
    return [found[key][1] for key in sorted(found)]


def _load(path: Path, remedy: str) -> dict[str, Any]:
    """The JSON object of a file of this format version."""
    try:
        data = json.loads(path.read_bytes().decode("utf-8"))
    except FileNotFoundError as error:
        raise _refuse(path, "this file is missing", remedy) from error
    except OSError as error:
        raise _refuse(path, f"cannot be read ({error})", "Check its permissions and the disk") from error
    except (ValueError, RecursionError) as error:
        raise _refuse(path, f"damaged, this is not whole JSON ({error})", remedy) from error
    if not isinstance(data, dict) or "schema_version" not in data:
        raise _refuse(path, "damaged, the field 'schema_version' is missing", remedy)
    if data["schema_version"] != SCHEMA_VERSION:
        what = f"written in format version {data['schema_version']!r}, but this pliant reads {SCHEMA_VERSION}"
        raise _refuse(path, what, "Read it with the version of pliant that wrote it, or run it again")
    return data


def _refuse(path: Path, what: str, remedy: str) -> RecordError:
    """The error that says where, what is wrong, and what to do."""
    return RecordError(f"{path}: {what}. {remedy}")


def _get(data: dict[str, Any], name: str, kind: type | UnionType, path: Path, remedy: str) -> Any:
    if name not in data:
        raise _refuse(path, f"damaged, the field {name!r} is missing", remedy)
    if not isinstance(data[name], kind):
        raise _refuse(path, f"damaged, the field {name!r} holds {data[name]!r:.40}", remedy)
    return data[name]


def _read_experiment(folder: Path) -> tuple[str, dict[str, Any]]:
    path = folder / _EXPERIMENT
    remedy = "Bring the file back from a copy, or move this folder away and run the experiment again"
    data = _load(path, remedy)
    experiment: dict[str, Any] = _get(data, "experiment", dict, path, remedy)
    name: str = _get(data, "experiment_id", str, path, remedy)
    try:
        _check_id(name, experiment)
    except RecordError as error:
        raise _refuse(path, f"changed since it was written: {error}", remedy) from error
    return name, experiment


def _parse_record(path: Path, folder_id: str, experiment: dict[str, Any]) -> Record:
    remedy = "Delete this file and start the run again: only this seed is repeated"
    data = _load(path, remedy)
    name = _get(data, "experiment_id", str, path, remedy)
    if name != folder_id:
        what = f"belongs to the experiment {name}, but its folder holds {folder_id}"
        raise _refuse(path, what, "Move the file back to the folder it came from")
    seed = _get(data, "seed", int, path, remedy)
    match = _SEED_FILE.fullmatch(path.name)
    if match is not None and int(match[1]) != seed:
        raise _refuse(path, f"its name says seed {int(match[1])}, its content {seed!r}", "Rename the file")
    series = {}
    for key, values in _get(data, "series", dict, path, remedy).items():
        if not isinstance(values, list) or not all(_is_value(value) for value in values):
            raise _refuse(path, f"damaged, the series {key!r} is not a list of numbers", remedy)
        series[key] = [float("nan") if value is None else float(value) for value in values]
    rest = {
        "status": _get(data, "status", str, path, remedy),
        "error": _get(data, "error", str | None, path, remedy),
        "meta": _get(data, "meta", dict, path, remedy),
    }
    try:
        return Record(experiment=experiment, experiment_id=name, seed=seed, series=series, **rest)
    except RecordError as error:
        raise _refuse(path, f"damaged, {error}", remedy) from error


def _is_value(value: object) -> bool:
    return value is None or value in ("inf", "-inf") or type(value) in (int, float)


def _write_atomically(path: Path, text: str) -> None:
    """The file appears whole under its name, or not at all, even if the power fails."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("x", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise _refuse(path, f"cannot be written ({error})", "Free space or choose another folder") from error
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Flush a folder's own entries, so that a rename survives a power failure; a no-op where unsupported."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some network file systems cannot; the file itself is flushed
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _series_text(series: Mapping[str, list[float]]) -> str:
    """The series as a JSON object, one per line; NaN as null and infinities as text, which JSON lacks."""
    texts = {name: json.dumps([_jsonable(v) for v in values]) for name, values in series.items()}
    rows = [f"    {json.dumps(name)}: {text}" for name, text in texts.items()]
    return "{\n" + ",\n".join(rows) + "\n  }" if rows else "{}"


def _jsonable(value: float) -> float | str | None:
    return value if math.isfinite(value) else None if math.isnan(value) else str(value)


def _plain_dict(data: Mapping[str, Any], where: str) -> dict[str, Any]:
    if not isinstance(data, Mapping):
        raise RecordError(f"{where} must be a dict, not {type(data).__name__}")
    for key in data:
        if not isinstance(key, str):
            raise RecordError(f"{where} has the key {key!r}: JSON has only text as keys")
    return {key: _plain(value, f"{where}[{key!r}]") for key, value in data.items()}


def _plain(value: Any, where: str) -> Any:
    """The value as plain JSON data, a copy that nobody else holds."""
    if isinstance(value, Mapping):
        return _plain_dict(value, where)
    if isinstance(value, (list, tuple)):
        return [_plain(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        raise RecordError(f"{where} is {value}, which has no place in a configuration; use None or text")
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise RecordError(f"{where} is a {type(value).__name__}, which is no JSON data; use numbers or text")


def _plain_series(series: Mapping[str, Any]) -> dict[str, list[float]]:
    plain: dict[str, list[float]] = {}
    for name, values in series.items():
        try:
            array = np.asarray(values, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise RecordError(f"the series {name!r} is not a list of numbers ({error})") from error
        if not isinstance(name, str) or array.ndim != 1:
            raise RecordError(f"series {name!r} must be one value per task, but has shape {array.shape}")
        plain[name] = array.tolist()
    lengths = {name: len(values) for name, values in plain.items()}
    if len(set(lengths.values())) > 1:
        raise RecordError(f"the series are not equally long: {lengths}; use NaN where a task has no value")
    return dict(sorted(plain.items()))


def _check_id(name: str, experiment: Mapping[str, Any]) -> None:
    expected = _hash(experiment)
    if not re.fullmatch(r"[a-z0-9_]+-[a-z0-9_]+-[0-9a-f]{12}", name):
        raise RecordError(f"{name!r} is no experiment id; make it with experiment_id()")
    if not name.endswith(f"-{expected}"):
        raise RecordError(f"the id {name} does not belong to this configuration, whose hash is {expected}")


def _hash(config: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical_json(config).encode()).hexdigest()[:12]


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")[:48] or "unnamed"


def _first_difference(found: Any, wanted: Any, where: str = "") -> str:
    """Where two configurations differ first, in words: the reader wants to know which setting it is."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        for key in sorted(found.keys() | wanted.keys()):
            if key not in found or key not in wanted:
                return f"{where}[{key!r}] is only in {'the folder' if key in found else 'the new one'}"
            if found[key] != wanted[key] or type(found[key]) is not type(wanted[key]):
                return _first_difference(found[key], wanted[key], f"{where}[{key!r}]")
    return f"{where or 'it'} is {found!r} there and {wanted!r} here"
