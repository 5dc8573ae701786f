"""The lists of tuning trials that lie among the records, and how good the best of k of them is."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pliant.errors import RecordError
from pliant.report.metrics import Metric, metric_info
from pliant.statistics import BestOf, best_of_k

__all__ = ["Trials", "read_trials"]


@dataclass(frozen=True)
class Trials:
    """All settings that were tried on one stream, for each method, and what they scored.

    Args:
        title: The stream.
        path: The file; the first of several.
        rule: How a setting was scored and chosen, in words.
        metric: The score.
        scores: Method to one score per setting, in the order in which they were tried; a failed one has the worst score
            that occurs.
        num_failed: Method to the settings without a score.
        seeds: The tuning seeds of each setting.
        ids: The experiments that were tried.
        commit: Of the program that ran them.
        sampler: What proposed the settings, where it is said.

    Example:
        >>> from pliant.report import Trials, read_trials
        >>> all(isinstance(found, Trials) for found in read_trials("."))  # of `pliant tune`, anywhere under this folder
        True
    """

    title: str
    path: Path
    rule: str
    metric: Metric
    scores: Mapping[str, Sequence[float]]
    num_failed: Mapping[str, int]
    seeds: tuple[int, ...]
    ids: frozenset[str]
    commit: str
    sampler: str = ""

    @property
    def budget(self) -> int | None:
        """How many settings each method had, where all had the same number."""
        sizes = {len(scores) for scores in self.scores.values()}
        return sizes.pop() if len(sizes) == 1 else None

    def curve(self, method: str) -> list[BestOf]:
        """The score of the best of k settings, for every k, in the score's own sign."""
        sign = self.metric.sign
        found = best_of_k([sign * score for score in self.scores[method]])
        bounds = [sorted((sign * best.low, sign * best.high)) for best in found]
        return [BestOf(best.k, sign * best.mean, low, high) for best, (low, high) in zip(found, bounds, strict=True)]


@dataclass(frozen=True)
class _Search:
    """What one file says of one method; ``about`` is the same for all that are compared."""

    name: str
    scores: list[float | None]
    ids: list[str]
    about: Trials


def read_trials(folder: str | os.PathLike[str]) -> list[Trials]:
    """Read every list of trials under a folder: those of grids, with all methods in one file, and studies of one each.

    Studies belong together if stream, rule, seeds and sampler agree. Other files are not looked at closer, and hidden
    ones not at all.

    Args:
        folder: A results folder.

    Returns:
        The lists that have a trial, in the order of their paths.

    Raises:
        RecordError: If such a file is damaged; it names the place.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     read_trials(folder)
        []
    """
    groups: dict[tuple[Any, ...], list[_Search]] = {}
    for path in sorted(Path(folder).rglob("*.json")):
        inside = path.relative_to(folder).parts
        if any(part.startswith(".") for part in inside) or path.name.startswith(("seed-", "experiment.")):
            continue
        try:
            data = json.loads(path.read_bytes())
        except (OSError, ValueError, RecursionError):
            continue  # not ours: a list of trials is written whole or not at all
        if not isinstance(data, dict):
            continue
        setting = data.get("setting")
        if "tuning_seeds" in data and isinstance(data.get("methods"), dict):
            found = [_search(path, name, entry, data, path.name) for name, entry in data["methods"].items()]
            key: tuple[Any, ...] = (path,)
        elif isinstance(setting, dict) and "tuning_seeds" in setting and "trials" in data:
            found = [_search(path, str(data.get("label") or path.stem), data, data | setting, path.stem)]
            about = found[0].about
            key = (about.title, about.rule, about.seeds, about.sampler, about.metric)
        else:
            continue
        groups.setdefault(key, []).extend(search for search in found if search.scores)
    return [_together(searches) for searches in groups.values() if searches]


def _search(path: Path, name: str, entry: Any, data: Mapping[str, Any], stem: str) -> _Search:
    """One method's trials; ``data`` has what the file says of all of them."""
    trials = entry.get("trials") if isinstance(entry, dict) else None
    if not isinstance(trials, list) or not all(isinstance(trial, dict) for trial in trials):
        raise _damaged(path, f"{name!r} has no list of trials")
    experiment = entry.get("experiment")
    stream = experiment.get("stream") if isinstance(experiment, dict) else None
    title = str(stream.get("name") if isinstance(stream, dict) else "") or stem.removesuffix(".json")
    seeds, meta, rule = data["tuning_seeds"], data.get("meta"), str(data.get("rule") or "")
    lower = data.get("lower_is_better") is True
    metric = metric_info(str(data.get("metric") or ("online_accuracy" if not lower else "")))
    if not metric.better or (lower and metric.better != "lower"):
        metric = Metric("score", "Score", better="lower" if lower else "higher")
    about = Trials(
        title=title.rpartition(":")[2].replace("_", " ").capitalize(),
        path=path,
        rule=rule,
        metric=metric,
        scores={},
        num_failed={},
        seeds=tuple(seed for seed in seeds if isinstance(seed, int)) if isinstance(seeds, list) else (),
        ids=frozenset(),
        commit=str(meta.get("git_commit") or "") if isinstance(meta, dict) else "",
        sampler=str(data.get("sampler") or ""),
    )
    ids = [str(trial.get("experiment_id") or trial.get("id") or "") for trial in trials]
    return _Search(name, [_score(trial.get("score"), path, name) for trial in trials], ids, about)


def _together(searches: Sequence[_Search]) -> Trials:
    about = searches[0].about
    sign = about.metric.sign
    numbers = [score for search in searches for score in search.scores if score is not None]
    worst = sign * min((sign * score for score in numbers), default=0.0)
    scores: dict[str, list[float]] = {}
    failed: dict[str, int] = {}
    for search in searches:
        name, count = search.name, 2
        while name in scores:  # the same method with other settings fixed
            name, count = f"{search.name} ({count})", count + 1
        scores[name] = [worst if score is None else score for score in search.scores]
        failed[name] = sum(score is None for score in search.scores)
    ids = frozenset(name for search in searches for name in search.ids if name)
    return replace(about, scores=scores, num_failed=failed, ids=ids)


def _score(value: Any, path: Path, name: str) -> float | None:
    """A finite number, or nothing where the trial failed."""
    if value is None or isinstance(value, str):
        return None  # NaN and infinities are written as null and text
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise _damaged(path, f"a trial of {name!r} has the score {value!r:.40}")
    return float(value) if math.isfinite(value) else None


def _damaged(path: Path, what: str) -> RecordError:
    return RecordError(f"{path}: damaged, {what}. Bring the file back from a copy, or move it away")
