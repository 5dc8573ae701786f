"""What the prediction study says each metric is worth, and the thresholds that were fitted on planted pathologies."""

from __future__ import annotations

import json
from functools import cache
from importlib import resources
from typing import NamedTuple

from pliant.diagnosis.findings import Weight

__all__ = ["Thresholds", "thresholds", "weight_of"]


class Thresholds(NamedTuple):
    """From which score on a reading is a note, a warning, severe."""

    note: float
    warning: float
    severe: float


@cache
def thresholds() -> dict[str, Thresholds]:
    """Metric to thresholds on its score, from ``thresholds.json``, which ``benchmarks/diagnosis/fit.py`` writes."""
    data = json.loads(_read("thresholds.json") or "{}")
    return {name: Thresholds(*values) for name, values in data["metrics"].items()}


@cache
def weight_of(metric: str) -> Weight | None:
    """What the study says of a metric, from ``evidence.json``; ``None`` where it has not been studied."""
    text = _read("evidence.json")
    entry = json.loads(text).get(metric) if text else None
    if entry is None:
        return None
    low, high = entry["interval"]
    return Weight(entry["auroc"], low, high, tuple(entry["streams"]), int(entry["seeds"]), entry["commit"])


def _read(name: str) -> str | None:
    file = resources.files("pliant.diagnosis").joinpath(name)
    return file.read_text(encoding="utf-8") if file.is_file() else None
