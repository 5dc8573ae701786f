"""Thresholds of the diagnosis, fitted on the first half of the networks: ``pliant/diagnosis/thresholds.json``.

A warning begins three quarters of the way from the worst healthy score to the mildest planted one, at the smallest dose
that stands out from all healthy networks: a false alarm costs more than a mild case missed. A note begins half-way
there, but above every healthy score in any case. A quarter of a layer's units is severe by definition; where scores are
ratios, severe begins half-way from the warning to the whole layer's score. Metrics for which nothing was planted warn
at twice the worst healthy score, and never below a stated floor.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.diagnosis.planted import DOSES, MECHANISM_OF  # noqa: E402
from pliant.diagnosis.evidence import KINDS  # noqa: E402
from pliant.mechanisms import MECHANISMS  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "diagnosis"
TARGET = ROOT / "pliant" / "diagnosis" / "thresholds.json"
FLOORS = {"dormant_fraction": 0.1, "gradient_norm": 8.0, "output_deviation": 3.0}
"""Where nothing was planted: a tenth of a layer; a gradient that is 250 times too small; outputs that vary 8 times
less than those of an untrained network."""


def worst(case: dict[str, Any], metric: str, layer: str | None = None) -> float | None:
    """The highest score of a metric in a case, in one layer or in all."""
    found = [row[3] for row in case["scores"] if row[1] == metric and (layer is None or _same(row[2], layer))]
    return max(found, default=None)


def _same(name: str, layer: str) -> bool:
    return name == "model" or name == layer or name.startswith(f"{layer}.")


def fitted(cases: list[dict[str, Any]], metric: str, mechanism: str) -> list[float]:
    """Note, warning and severe of one metric."""
    healthy = max(worst(case, metric) or 0.0 for case in cases if case["kind"] in ("fresh", "trained"))
    is_count = KINDS[metric] == "count"
    mildest = None
    for dose in DOSES:
        planted = [
            worst(case, metric, case["layer"])
            for case in cases
            if case["dose"] == dose and MECHANISM_OF.get(case["kind"]) == mechanism
        ]
        known = [value for value in planted if value is not None]
        if known and min(known) > 1.05 * healthy + 1e-3:
            mildest = min(known) if mildest is None else mildest
            largest = sorted(known)[len(known) // 2]
    if mildest is None or metric in FLOORS:
        warning = max(2 * healthy, FLOORS.get(metric, float("inf")))
        largest = 3 * warning
    else:
        warning = healthy + 0.75 * (mildest - healthy)
    note = max(0.5 * (healthy + warning), 1.02 * healthy)
    severe = max(0.25, 1.5 * warning) if is_count else warning + 0.5 * max(largest - warning, warning)
    return [round(value, 4) for value in (note, warning, severe)]


def main() -> None:
    """Fit and write."""
    data = json.loads((RESULTS / "fit.json").read_text())
    where = {metric: mechanism for case in data["cases"] for mechanism, metric, *_ in case["scores"]}
    where["gradient_norm"] = "vanishing_gradients"
    order = [metric for metric in KINDS if metric in where]
    order.sort(key=lambda metric: list(MECHANISMS).index(where[metric]))
    metrics = {metric: fitted(data["cases"], metric, where[metric]) for metric in order}
    TARGET.write_text(json.dumps({"fitted_on": data["config"], "metrics": metrics}, indent=1) + "\n")
    for metric, limits in metrics.items():
        print(f"{metric:24s} note {limits[0]:<8} warning {limits[1]:<8} severe {limits[2]}")


if __name__ == "__main__":
    main()
