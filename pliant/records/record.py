"""One record, the text that stands for its configuration, and the id that is made of it."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from pliant.errors import RecordError

__all__ = ["Record", "canonical_json", "check_id", "experiment_id", "plain_dict"]

STATUSES = ("complete", "failed")


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
        if self.status not in STATUSES:
            raise RecordError(f"status must be one of {', '.join(STATUSES)}, not {self.status!r}")
        if (self.status == "failed") != isinstance(self.error, str):
            raise RecordError(
                f"a {self.status} record has error {self.error!r}: a failed one needs its "
                "error as text, a complete one has none"
            )
        set_field = partial(object.__setattr__, self)
        set_field("seed", int(self.seed))
        set_field("experiment", plain_dict(self.experiment, "experiment"))
        set_field("series", _plain_series(self.series))
        set_field("meta", plain_dict(self.meta, "meta"))
        check_id(self.experiment_id, self.experiment)

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
    return json.dumps(plain_dict(config, "experiment"), sort_keys=True, separators=(",", ":"))


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


def plain_dict(data: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A mapping as plain JSON data, a copy that nobody else holds; ``where`` names it in errors."""
    if not isinstance(data, Mapping):
        raise RecordError(f"{where} must be a dict, not {type(data).__name__}")
    for key in data:
        if not isinstance(key, str):
            raise RecordError(f"{where} has the key {key!r}: JSON has only text as keys")
    return {key: _plain(value, f"{where}[{key!r}]") for key, value in data.items()}


def _plain(value: Any, where: str) -> Any:
    """The value as plain JSON data, a copy that nobody else holds."""
    if isinstance(value, Mapping):
        return plain_dict(value, where)
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


def check_id(name: str, experiment: Mapping[str, Any]) -> None:
    """Refuse a name that is not the id of this configuration."""
    expected = _hash(experiment)
    if not re.fullmatch(r"[a-z0-9_]+-[a-z0-9_]+-[0-9a-f]{12}", name):
        raise RecordError(f"{name!r} is no experiment id; make it with experiment_id()")
    if not name.endswith(f"-{expected}"):
        raise RecordError(f"the id {name} does not belong to this configuration, whose hash is {expected}")


def _hash(config: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical_json(config).encode()).hexdigest()[:12]


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")[:48] or "unnamed"
