"""In which small changing control problem does plain PPO lose its plasticity? All that was tried, on tuning seeds.

    python benchmarks/rl/search.py --out ../rl_results/search            # whatever is missing of it
    python benchmarks/rl/search.py --out ../rl_results/search --only screen

Each candidate is a setting of the stream ``changing_control``. It is run without protection, and with a fresh start at
each change, which says what can be learnt between two changes. ``screen`` runs all candidates with seed 100;
``confirm`` runs those that are named in ``CONFIRMED`` at full length with seeds 100 and 101. Interrupted, it goes on
where it was. The table is ``benchmarks/results/rl/search.json``; reported seeds (0 to 9) never take part.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402

from pliant import records  # noqa: E402
from pliant.bench.environment import run_meta  # noqa: E402
from pliant.bench.experiment import Experiment  # noqa: E402
from pliant.bench.runner import run_experiments  # noqa: E402

TABLE = ROOT / "benchmarks" / "results" / "rl" / "search.json"
SCREENED, FRESH, CONFIRMED_TASKS = 100, 12, 1000
SCREEN_SEEDS, CONFIRM_SEEDS = (100,), (100, 101)
WINDOWS = 10
"""The peak is the best tenth of a run, and its end is the last."""

_SHORT = {"num_envs": 32, "rollout_length": 8, "phase_steps": 1024, "num_epochs": 5, "batch_size": 128}

CANDIDATES: dict[str, dict[str, Any]] = {
    # name: options of the stream, and the step size
    "goal 9": {"changes": ["goal"], "entropy_weight": 0.02, "lr": 3e-3},
    "goal 5": {"changes": ["goal"], "size": 5, "entropy_weight": 0.02, "lr": 3e-3},
    "all 5": {"size": 5, "entropy_weight": 0.05, "lr": 3e-3},
    "all 5 fast": {"size": 5, "entropy_weight": 0.05, "lr": 1e-2},
    "sensors 5": {"changes": ["sensors"], "size": 5, "entropy_weight": 0.02, "lr": 3e-3},
    "actions 5": {"changes": ["actions"], "size": 5, "entropy_weight": 0.05, "lr": 3e-3},
    "sensors 5 fast": {"changes": ["sensors"], "size": 5, "entropy_weight": 0.05, "lr": 1e-2},
    "sensors 5 big": {
        "changes": ["sensors"],
        "size": 5,
        "entropy_weight": 0.05,
        "batch_size": 256,
        "num_epochs": 6,
        "lr": 1e-2,
    },
    "sensors 5 mid": {"changes": ["sensors"], "size": 5, "entropy_weight": 0.02, "lr": 5e-3},
    "goal 5 fast": {"changes": ["goal"], "size": 5, "entropy_weight": 0.05, "lr": 1e-2},
    "goal 5 narrow": {"changes": ["goal"], "size": 5, "width": 0.15, "entropy_weight": 0.05, "lr": 3e-3},
}
CONFIRMED: tuple[str, ...] = ("sensors 5 big",)


def experiment(candidate: str, method: str, num_tasks: int) -> Experiment:
    """A candidate, without protection (``none``) or with a method."""
    options = {**_SHORT, **CANDIDATES[candidate]}
    lr = options.pop("lr")
    methods = [] if method == "none" else [method]
    label = f"{candidate}, {method}"
    return Experiment(
        ("changing_control", options),
        methods,
        ("adam", {"lr": lr, "fused": True}),
        ("actor_critic", {"hidden": [32, 32]}),
        num_tasks,
        label,
    )


def wanted(stage: str) -> list[tuple[Experiment, tuple[int, ...], str, str]]:
    """What a stage runs: experiment, seeds, candidate, method."""
    if stage == "screen":
        pairs = [(name, method) for name in CANDIDATES for method in ("none", "fresh_start")]
        lengths = {"none": SCREENED, "fresh_start": FRESH}
        return [(experiment(name, method, lengths[method]), SCREEN_SEEDS, name, method) for name, method in pairs]
    return [
        (experiment(name, method, CONFIRMED_TASKS if method == "none" else 10 * FRESH), CONFIRM_SEEDS, name, method)
        for name in CONFIRMED
        for method in ("none", "fresh_start")
    ]


def windows(values: Sequence[float]) -> list[float]:
    """Means over the tenths of a run."""
    return [float(np.mean(part)) for part in np.array_split(np.asarray(values), min(WINDOWS, len(values)))]


def summary(results: Path) -> dict[str, Any]:
    """The table of all that has been run, from its records."""
    rows = []
    for stage in ("screen", "confirm"):
        for tried, seeds, name, method in wanted(stage):
            for seed in seeds:
                path = records.record_path(results, tried.id, seed)
                if path.exists():
                    rows.append({"stage": stage, "candidate": name, "method": method, **_row(path)})
    return {"command": "python benchmarks/rl/search.py", "rows": rows, "meta": run_meta()}


def _row(path: Path) -> dict[str, Any]:
    record = records.read_record(path)
    row: dict[str, Any] = {
        "experiment": record.experiment,
        "seed": record.seed,
        "status": record.status,
        "seconds": record.meta.get("seconds"),
        "commit": record.meta.get("commit"),
    }
    for name in ("online_return", "end_return", "policy_entropy", "dormant_fraction", "weight_magnitude"):
        if name in record.series and len(record.series[name]):
            row[name] = [round(value, 4) for value in windows(record.series[name])]
    if row.get("online_return"):
        peak, last = max(row["online_return"]), row["online_return"][-1]
        row |= {"peak": peak, "last": last, "lost": round((peak - last) / peak, 3) if peak > 0 else None}
    return row


def show(table: Mapping[str, Any]) -> None:
    """One line for each run."""
    for row in table["rows"]:
        returns = " ".join(f"{value:6.3f}" for value in row.get("online_return", []))
        print(f"{row['stage']:8}{row['candidate']:15}{row['method']:12}{row['seed']:4} {row['seconds']:7} s  {returns}")


def main() -> int:
    """Run what is missing, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out", type=Path, required=True, help="results folder of the trials, outside of the repository"
    )
    parser.add_argument("--only", choices=["screen", "confirm", "table"], help="one stage; table runs nothing")
    options = parser.parse_args()
    for stage in ("screen", "confirm"):
        if options.only in (None, stage):
            for tried, seeds, _, _ in wanted(stage):
                report = run_experiments([tried], seeds, options.out, num_workers=0)
                if report.interrupted:
                    return 130
                TABLE.parent.mkdir(parents=True, exist_ok=True)
                TABLE.write_text(json.dumps(summary(options.out), indent=1) + "\n", encoding="utf-8")
    table = summary(options.out)
    TABLE.parent.mkdir(parents=True, exist_ok=True)
    TABLE.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    show(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
