"""Thresholds of the diagnosis, fitted on the first half of the networks: ``pliant/diagnosis/thresholds.json``.

The warning of a metric is where ten times the share of healthy networks above it, plus the share of planted ones below
it (each dose counts alike), is least; of several such gaps between scores the widest, three quarters of the way up,
since a false alarm costs more than a mild case missed. (Half-way for missing directions: units are exact combinations
of others for a reason, never by chance.) Where scores are ratios, it is at least one more halving (or
doubling) beyond the worst healthy network: networks of other kinds vary more than those that were seen. A note begins
half-way between healthy and the warning. A quarter of a layer's units is severe by definition; a ratio is severe from
half as much again. Metrics for which nothing was planted have stated floors, and near copies are never above a note.
"""

from __future__ import annotations

import json
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.diagnosis.planted import DOSES, MECHANISM_OF  # noqa: E402
from benchmarks.diagnosis.records import read  # noqa: E402
from pliant.diagnosis.evidence import KINDS  # noqa: E402
from pliant.mechanisms import MECHANISMS  # noqa: E402

TARGET = ROOT / "pliant" / "diagnosis" / "thresholds.json"
FLOORS = {"dormant_fraction": 0.1, "gradient_norm": 8.0, "output_deviation": 3.0}
"""Where nothing was planted: a tenth of a layer; a gradient that is 256 times too small; outputs that vary 8 times
less than those of an untrained network."""
ONLY_NOTES = {"cloned_fraction": 0.25}
"""Units that have learned the same classes correlate by more than 0.95, and are no fault."""
NEVER = 100.0


def worst(case: dict[str, Any], metric: str, layer: str | None = None) -> float | None:
    """The highest score of a metric in a case, in one layer or in all."""
    found = [row[3] for row in case["scores"] if row[1] == metric and (layer is None or _same(row[2], layer))]
    return max(found, default=None)


def _same(name: str, layer: str) -> bool:
    return name == "model" or name == layer or name.startswith(f"{layer}.")


def fitted(cases: list[dict[str, Any]], metric: str, mechanism: str) -> list[float]:
    """Note, warning and severe of one metric."""
    if metric in ONLY_NOTES:
        return [ONLY_NOTES[metric], NEVER, NEVER]
    healthy = [worst(case, metric) or 0.0 for case in cases if case["kind"] in ("fresh", "trained")]
    doses = [
        [
            worst(c, metric, c["layer"]) or 0.0
            for c in cases
            if c["dose"] == d and MECHANISM_OF.get(c["kind"]) == mechanism
        ]
        for d in DOSES
    ]
    is_count = KINDS[metric] == "count"
    if metric in FLOORS:
        warning = max(FLOORS[metric], 2 * max(healthy))
    else:
        warning = _best(
            healthy, doses, least=0.0 if is_count else max(healthy) + 1, exact=metric == "dependent_fraction"
        )
    typical = sorted(healthy)[int(0.9 * (len(healthy) - 1))]
    note = 0.5 * (min(typical, warning) + warning)
    severe = max(0.25, 1.5 * warning) if is_count else 1.5 * warning
    return [round(value, 4) for value in (note, warning, severe)]


def _best(healthy: list[float], doses: list[list[float]], *, least: float, exact: bool) -> float:
    """The threshold of the lowest cost; of several the one in the widest gap."""
    scores = sorted({*healthy, *(value for dose in doses for value in dose)})

    def cost(limit: float) -> float:
        alarms = sum(value >= limit for value in healthy) / len(healthy)
        return 10 * alarms + sum(sum(v < limit for v in dose) / len(dose) for dose in doses) / len(doses)

    share = 0.5 if exact else 0.75
    limits = [(low + share * (high - low), high - low) for low, high in pairwise(scores)]
    limits = [limit for limit in limits if limit[0] >= least]
    return min(limits, key=lambda limit: (round(cost(limit[0]), 6), -limit[1]))[0]


def main() -> None:
    """Fit and write."""
    config, cases = read("fit")
    where = {metric: mechanism for case in cases for mechanism, metric, *_ in case["scores"]}
    where["gradient_norm"] = "vanishing_gradients"
    order = [metric for metric in KINDS if metric in where]
    order.sort(key=lambda metric: list(MECHANISMS).index(where[metric]))
    metrics = {metric: fitted(cases, metric, where[metric]) for metric in order}
    TARGET.write_text(json.dumps({"fitted_on": config, "metrics": metrics}, indent=1) + "\n")
    for metric, limits in metrics.items():
        print(f"{metric:24s} note {limits[0]:<8} warning {limits[1]:<8} severe {limits[2]}")


if __name__ == "__main__":
    main()
