"""The lists of tuning trials that lie among the records, and how good the best of k of them is."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pliant.errors import RecordError
from pliant.report.metrics import METRICS, Metric, metric_info
from pliant.statistics import BestOf, best_of_k

__all__ = ["Trials", "read_trials"]


@dataclass(frozen=True)
class Trials:
    """One list of trials: all settings that were tried for each method, and what they scored.

    Args:
        title: The stream.
        path: The file.
        rule: How a setting was scored and chosen, in words.
        metric: The score.
        scores: Method to one score per setting, in the order in which they were tried; a failed one has the worst score
            that occurs.
        num_failed: Method to the settings without a score.
        num_seeds: Tuning seeds of each setting.
        commit: Of the program that ran them.
    """

    title: str
    path: Path
    rule: str
    metric: Metric
    scores: Mapping[str, Sequence[float]]
    num_failed: Mapping[str, int]
    num_seeds: int
    commit: str

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


def read_trials(folder: str | os.PathLike[str]) -> list[Trials]:
    """Read every list of trials under a folder: JSON files with ``tuning_seeds`` and ``methods``.

    Other files are not looked at closer, and hidden ones not at all.

    Args:
        folder: A results folder.

    Returns:
        The lists that have a trial, in the order of their paths.

    Raises:
        RecordError: If such a file is damaged; it names the place.
    """
    found = []
    for path in sorted(Path(folder).rglob("*.json")):
        inside = path.relative_to(folder).parts
        if any(part.startswith(".") for part in inside) or path.name.startswith(("seed-", "experiment.")):
            continue
        try:
            data = json.loads(path.read_bytes())
        except (OSError, ValueError, RecursionError):
            continue  # not ours: a list of trials is written whole or not at all
        if isinstance(data, dict) and "tuning_seeds" in data and isinstance(data.get("methods"), dict):
            trials = _parse(data, path)
            found += [trials] if trials.scores else []
    return found


def _parse(data: Mapping[str, Any], path: Path) -> Trials:
    raw: dict[str, list[float | None]] = {}
    title = ""
    for name, entry in data["methods"].items():
        trials = entry.get("trials") if isinstance(entry, dict) else None
        if not isinstance(trials, list) or not all(isinstance(trial, dict) for trial in trials):
            raise _damaged(path, f"methods[{name!r}] has no list of trials")
        raw[name] = [_score(trial.get("score"), path, name) for trial in trials]
        experiment = entry.get("experiment")
        stream = experiment.get("stream") if isinstance(experiment, dict) else None
        title = title or str(stream.get("name") if isinstance(stream, dict) else "")
    metric = metric_info(str(data.get("metric") or "online_accuracy"))
    metric = METRICS["online_accuracy"] if not metric.better else metric
    numbers = [score for scores in raw.values() for score in scores if score is not None]
    worst = metric.sign * min((metric.sign * score for score in numbers), default=0.0)
    meta, seeds = data.get("meta"), data["tuning_seeds"]
    return Trials(
        title=(title or path.stem).rpartition(":")[2].replace("_", " ").capitalize(),
        path=path,
        rule=str(data.get("rule") or ""),
        metric=metric,
        scores={name: [worst if s is None else s for s in scores] for name, scores in raw.items() if scores},
        num_failed={name: sum(s is None for s in scores) for name, scores in raw.items() if scores},
        num_seeds=len(seeds) if isinstance(seeds, list) else 0,
        commit=str(meta.get("git_commit") or "") if isinstance(meta, dict) else "",
    )


def _score(value: Any, path: Path, name: str) -> float | None:
    """A finite number, or nothing where the trial failed."""
    if value is None or isinstance(value, str):
        return None  # NaN and infinities are written as null and text
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise _damaged(path, f"a trial of {name!r} has the score {value!r:.40}")
    return float(value) if math.isfinite(value) else None


def _damaged(path: Path, what: str) -> RecordError:
    return RecordError(f"{path}: damaged, {what}. Bring the file back from a copy, or move it away")
