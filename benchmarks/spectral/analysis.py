"""What the records of the study say: numbers, which expectations came true, page and figures.

python benchmarks/spectral/analysis.py    # writes docs/results/spectral_collapse.md and docs/images/spectral_*.svg
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.prediction.scores import (  # noqa: E402
    Interval,
    Lead,
    auroc_over_seeds,
    lead_times,
    mean_over_seeds,
    partial_rank_correlation,
    rank_correlation,
)
from benchmarks.spectral.measures import FACTORS  # noqa: E402
from benchmarks.spectral.problems import METHODS, STREAMS  # noqa: E402

__all__ = ["MEASURES", "Found", "Records", "claims", "found_of", "load", "write"]

RESULTS = ROOT / "benchmarks" / "results" / "spectral_collapse"
EXPECTATIONS = Path(__file__).with_name("expectations.json")
FIRST, EARLY, LATE = slice(0, 3), slice(1, 4), slice(-5, None)
HORIZON, BEHIND = 3, 0.1
OTHERS = tuple(name for name in METHODS if name != "fresh_start")

Series = np.ndarray[Any, np.dtype[np.float64]]

MEASURES: Mapping[str, str] = {
    "share": "GGN, share above eps*",
    "share_small": "GGN, share above eps*/100",
    "relative_share": "GGN, share above a thousandth of the largest",
    "ggn_rank": "GGN, effective rank",
    "largest": "GGN, largest eigenvalue",
    "kernel": "kernel, share above eps*",
    "kernel_rank": "kernel, effective rank",
    "kernel_condition": "kernel, condition number",
    "gain": "expected gain of a step",
    "gradient": "norm of the gradient",
    "feature_rank": "features, effective rank",
    "alive": "units that are not dead",
    "previous": "*accuracy on the task before*",
    "clock": "*the task's number*",
}
"""Low values are taken for bad ones, but for the condition number and the task's number."""

SPECTRAL = (*list(MEASURES)[:8], "gain")
"""Those that come from spectra."""


@dataclass(frozen=True)
class Records:
    """All records of one stream: by method, of the tuning, of the estimators."""

    runs: Mapping[str, Mapping[str, Any]]
    tuning: Mapping[str, Mapping[str, Any]]
    estimators: Mapping[str, Any]

    def of(self, method: str) -> list[Mapping[str, Any]]:
        """The runs of one method, by seed."""
        return list(self.runs[method]["runs"])


@dataclass(frozen=True)
class Found:
    """What one measure says on one stream.

    Attributes:
        within: Rank correlation with the accuracy on the task to come, over the tasks of a run of plain training.
        beyond: The same, given the task's number.
        failing: AUROC for tasks that fail, within a run, mean over the runs of all methods that have both kinds.
        now: AUROC for the first failure, over the tasks until then, of the runs of all methods together.
        soon: The same for one of this and the next three tasks.
        between: Rank correlation between methods, both in the mean of the last five tasks.
        lead: Tasks from collapse to failure in plain training, and in how many runs there are both.
        behind: AUROC for tasks that are behind a fresh network, over all tasks of all methods together.
        behind_within: The same within a run, mean over the runs that have both kinds.
        alarms: Lead over the first of two tasks in a row that are behind, of alarms whose level comes from other runs.
    """

    within: Interval
    beyond: Interval
    failing: Interval
    now: Interval
    soon: Interval
    between: Interval
    lead: Interval
    num_leads: int
    behind: Interval
    behind_within: Interval
    alarms: Lead


def load(folder: Path = RESULTS) -> dict[str, Records]:
    """Records by stream; streams that lack some are left out."""

    def read(name: str) -> Any:
        return json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))

    found = {}
    for stream in STREAMS:
        tuned = [name for name, method in METHODS.items() if len(method.settings) > 1]
        names = [f"{stream}_{name}" for name in METHODS] + [f"tuning_{stream}_{name}" for name in tuned]
        if all((folder / f"{name}.json").exists() for name in [*names, f"estimators_{stream}"]):
            found[stream] = Records(
                {name: read(f"{stream}_{name}") for name in METHODS},
                {name: read(f"tuning_{stream}_{name}") for name in tuned},
                read(f"estimators_{stream}"),
            )
    return found


def series(run: Mapping[str, Any], key: str) -> Series:
    """One measure before each task of a run, higher is better; NaN where there is none."""
    tasks = run["tasks"]
    if key == "clock":
        return -np.arange(len(tasks), dtype=float)
    if key == "previous":
        return np.array([math.nan] + [task["accuracy"] for task in tasks[:-1]])
    listed = {"share": ("shares", 1.0), "share_small": ("shares", 1e-2), "kernel": ("kernel_shares", 1.0)}
    if key in listed:
        name, factor = listed[key]
        return eps_series(run, name, factor)
    values = np.array([math.nan if task.get(key) is None else task[key] for task in tasks], dtype=float)
    return -values if key == "kernel_condition" else values


def eps_series(run: Mapping[str, Any], name: str, factor: float) -> Series:
    """The share above a multiple of eps* before each task."""
    place = FACTORS.index(factor)
    found = [task[name][place] if task.get(name) is not None else None for task in run["tasks"]]
    return np.array([math.nan if value is None else value for value in found], dtype=float)


def accuracy(run: Mapping[str, Any], key: str = "accuracy") -> Series:
    """After each task."""
    return np.array([task[key] for task in run["tasks"]], dtype=float)


def failing(run: Mapping[str, Any]) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Which tasks fail."""
    found = accuracy(run)
    below = found < found[FIRST].mean() / 2
    below[FIRST] = False
    return below


def first(condition: np.ndarray[Any, np.dtype[np.bool_]]) -> int | None:
    """The first place where it holds."""
    places = np.flatnonzero(condition)
    return int(places[0]) if len(places) else None


def lead(run: Mapping[str, Any], key: str) -> float:
    """Tasks from the collapse of a measure to the first failure; NaN without one of them."""
    values = series(run, key)
    early = values[EARLY].mean()
    below = values < early / 2 if early > 0 else values < 2 * early  # a negative one is worse when it is larger
    below[: EARLY.stop] = False
    fails, falls = first(failing(run)), first(below)
    return math.nan if fails is None or falls is None else float(fails - falls)


def at_risk(run: Mapping[str, Any], key: str, horizon: int) -> tuple[list[float], list[bool]]:
    """Before each task up to the first failure: how bad the measure is, and whether that comes within the horizon."""
    fails, values = first(failing(run)), -series(run, key)
    last = len(values) - 1 - horizon if fails is None else fails
    cases = [t for t in range(FIRST.stop, last + 1) if math.isfinite(values[t])]
    return [float(values[t]) for t in cases], [fails is not None and fails <= t + horizon for t in cases]


def found_of(records: Records, key: str) -> Found:
    """Everything about one measure on one stream."""
    plain = records.of("backprop")
    num_seeds = len(plain)
    pairs = [clean(series(run, key)[1:], accuracy(run)[1:]) for run in plain]
    risks = {}
    for horizon in (0, HORIZON):
        cases = [[at_risk(records.of(name)[s], key, horizon) for name in METHODS] for s in range(num_seeds)]
        scores = [[score for part in seed for score in part[0]] for seed in cases]
        events = [[event for part in seed for event in part[1]] for seed in cases]
        risks[horizon] = auroc_over_seeds(scores, events)
    late = [[behind_of(records, name, s, key) for name in OTHERS] for s in range(num_seeds)]
    leads = [value for run in plain if math.isfinite(value := lead(run, key))]
    gaps = [shortfall(records, "backprop", s).tolist() for s in range(num_seeds)]
    worse = [filled(-series(run, key)).tolist() for run in plain]
    return Found(
        within=over([rank_correlation(*pair[:2]) for pair in pairs]),
        beyond=over([partial_rank_correlation(*pair) for pair in pairs]) if key != "clock" else over([]),
        failing=over([within_runs([fails_of(records.of(name)[s], key) for name in METHODS]) for s in range(num_seeds)]),
        now=risks[0],
        soon=risks[HORIZON],
        between=over([between(records, key, s) for s in range(num_seeds)]),
        lead=over(leads),
        num_leads=len(leads),
        behind=auroc_over_seeds(
            [[score for part in seed for score in part[0]] for seed in late],
            [[event for part in seed for event in part[1]] for seed in late],
        ),
        behind_within=over([within_runs(seed) for seed in late]),
        alarms=lead_times(worse, gaps, BEHIND, 5),
    )


def filled(worse: Series) -> Series:
    """With the best value there is where there is none: what is not known raises no alarm."""
    known = worse[np.isfinite(worse)]
    return np.where(np.isfinite(worse), worse, known.min() if len(known) else 0.0)


def clean(a: Series, b: Series) -> tuple[list[float], list[float], list[float]]:
    """Both where both are numbers, and the places."""
    kept = np.isfinite(a) & np.isfinite(b)
    return a[kept].tolist(), b[kept].tolist(), np.flatnonzero(kept).astype(float).tolist()


def over(values: Sequence[float]) -> Interval:
    """Mean and interval of those that are numbers; NaN for none."""
    finite = [value for value in values if math.isfinite(value)]
    return mean_over_seeds(finite) if finite else Interval(math.nan, math.nan, math.nan)


Cases = tuple[list[float], list[bool]]


def cases(values: Series, bad: np.ndarray[Any, np.dtype[np.bool_]]) -> Cases:
    """How bad a measure was before each task but the first, and which of them were bad."""
    kept = np.isfinite(values)
    kept[0] = False
    return (-values[kept]).tolist(), bad[kept].tolist()


def fails_of(run: Mapping[str, Any], key: str) -> Cases:
    """A measure and the tasks that fail."""
    return cases(series(run, key), failing(run))


def shortfall(records: Records, method: str, seed: int) -> Series:
    """By what share the online accuracy is below that of the fresh start, after each task."""
    mine, fresh = (accuracy(records.of(name)[seed], "online") for name in (method, "fresh_start"))
    return 1 - mine / fresh


def behind_of(records: Records, method: str, seed: int, key: str) -> Cases:
    """A measure and the tasks that are behind."""
    return cases(series(records.of(method)[seed], key), shortfall(records, method, seed) > BEHIND)


def within_runs(runs: Sequence[Cases]) -> float:
    """AUROC inside each run, mean over the runs that have both kinds; NaN without any."""
    found = [auroc_over_seeds([scores], [events]).mean for scores, events in runs]
    finite = [value for value in found if math.isfinite(value)]
    return float(np.mean(finite)) if finite else math.nan


def between(records: Records, key: str, seed: int) -> float:
    """Rank correlation over the methods of one seed."""
    pairs = [
        (np.mean(series(run, key)[LATE]), accuracy(run)[LATE].mean()) for run in (records.of(n)[seed] for n in METHODS)
    ]
    kept = [(a, b) for a, b in pairs if math.isfinite(a)]
    return rank_correlation([a for a, _ in kept], [b for _, b in kept]) if len(kept) > 2 else math.nan


def fit(records: Records, name: str, factor: float) -> Interval:
    """R squared of a line from the share above an eps to the accuracy, over all methods and tasks of a seed."""
    values = []
    for s in range(len(records.of("backprop"))):
        runs = [records.of(method)[s] for method in METHODS]
        a = np.concatenate([eps_series(run, name, factor)[1:] for run in runs])
        b = np.concatenate([accuracy(run)[1:] for run in runs])
        kept = np.isfinite(a)
        varies = kept.sum() > 2 and a[kept].std() > 0
        values.append(float(np.corrcoef(a[kept], b[kept])[0, 1]) ** 2 if varies else 0.0)
    return over(values)


def late(records: Records, method: str, key: str = "accuracy") -> Interval:
    """Mean over the last five tasks."""
    return over([float(accuracy(run, key)[LATE].mean()) for run in records.of(method)])


def recipe(records: Records, matrix: str, task: int, place: int) -> tuple[float, float, float, float, int]:
    """Mean shares above one of the published epsilons: exact and published; of the cases in which it had a number the
    quadrature's and the exact one; and how many these are.
    """
    cases = [case[matrix] for seed in records.estimators["cases"] for case in seed if case["task"] == task]
    told = [case for case in cases if case["quadrature"][place] is not None]
    return (
        float(np.mean([case["exact"][place] for case in cases])),
        float(np.mean([case["published"][place] for case in cases])),
        *(float(np.mean([case[key][place] for case in told])) if told else math.nan for key in ("quadrature", "exact")),
        len(told),
    )


def claims(streams: Mapping[str, Records], found: Mapping[str, Mapping[str, Found]]) -> dict[str, bool]:
    """Which expectations came true."""
    records = list(streams.values())
    fits = [{factor: fit(r, "shares", factor).mean for factor in FACTORS} for r in records]
    small = [recipe(r, "hessian", case["task"], 0) for r in records for case in r.estimators["cases"][0]]
    unresolved = [
        case["hessian"]["quadrature"][0] is None for r in records for s in r.estimators["cases"] for case in s
    ]
    others = [name for name in METHODS if name not in ("spectral_regularisation", "fresh_start")]
    ends = [{name: late(r, name).mean for name in METHODS} for r in records]
    return {
        "collapse": all(mean_share(r, LATE) < mean_share(r, EARLY) for r in records),
        "not_first": all(not item["share"].lead.mean > 0 for item in found.values()),
        "no_better": all(item["share"].now.mean <= item["alive"].now.mean + 0.05 for item in found.values()),
        "clock": any(item["clock"].now.mean > item["share"].now.mean for item in found.values()),
        "between": any(item["share"].between.mean < 0.8 for item in found.values()),
        "fit": any(max(item.values()) >= item[1.0] + 0.1 for item in fits),
        "recipe": any(max(b / a, a / b) >= 1.5 for a, b, *_ in small if a > 0 and b > 0),
        "resolution": 2 * sum(unresolved) >= len(unresolved),
        "behind": all(item["share"].behind.mean <= item["alive"].behind.mean + 0.05 for item in found.values()),
        "behind_clock": any(
            max(item[key].behind.mean for key in ("alive", "feature_rank"))
            > max(item[key].behind.mean for key in SPECTRAL)
            for item in found.values()
        ),
        "rest": all(hessian_of(r, "backprop", 1, "rest").mean >= 0.25 for r in records),
        "spectral": all(item["spectral_regularisation"] > max(item[name] for name in others) for item in ends),
        "l2er": any(item["l2_effective_rank"] >= item["l2"] + 0.05 for item in ends),
        "rank_alone": all(item["effective_rank"] < item["backprop"] + 0.1 for item in ends),
    }


def mean_share(records: Records, part: slice, method: str = "backprop") -> float:
    """The share above eps*, in the mean over some tasks and all seeds."""
    return float(np.mean([series(run, "share")[part].mean() for run in records.of(method)]))


def hessian_of(records: Records, method: str, task: int, key: str) -> Interval:
    """One number of the Hessian before a task."""
    found = [run["tasks"][task].get("hessian", {}).get(key) for run in records.of(method)]
    return over([value for value in found if value is not None])


def write(folder: Path = RESULTS) -> None:
    """Page and figures, of the streams whose records are complete."""
    from benchmarks.spectral import figures, page

    streams = load(folder)
    if not streams:
        raise SystemExit(f"no stream has all its records in {folder}; run python benchmarks/spectral/study.py")
    found = {stream: {key: found_of(records, key) for key in MEASURES} for stream, records in streams.items()}
    expected = json.loads(EXPECTATIONS.read_text(encoding="utf-8"))
    came_true = claims(streams, found)
    assert set(came_true) == {claim["id"] for claim in expected["claims"]}
    for name, text in figures.all_of(streams, found).items():
        (ROOT / "docs" / "images" / f"spectral_{name}.svg").write_text(text, encoding="utf-8")
    text = page.page(streams, found, expected, came_true)
    (ROOT / "docs" / "results" / "spectral_collapse.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write()
