"""Does an agent lose its plasticity in a thousand changes, and what helps? The runs; ``page.py`` reads their records.

    python benchmarks/rl/study.py --out results/rl              # settings, then runs: whatever is missing
    python benchmarks/rl/study.py --out results/rl --seeds 2:6 --max-hours 2
    python benchmarks/rl/study.py --out results/rl --only tune  # settings alone, on seeds 100 and 101
    python benchmarks/rl/study.py --out results/rl --only thin  # runs nothing: writes what is committed of it

Nine ways to train PPO (``ways.py``) on the mini preset of ``changing_control``: the preset as it stands, and eight that
get the best of six settings, on two tuning seeds and the first 150 changes. Then seeds 2 to 9 run over all 1,000. Seeds
come in rounds, all ways with seed 2 first, so that what is there is a fair comparison at any time. Interrupted or
killed, the same command goes on to the bit. What was expected stands in ``expectations.json``, committed before
anything was tuned.

Seeds 0 and 1 are not reported. They were run with a smaller grid, in which only the ways without a method searched
their step size; when that was seen in their results, all got six settings, and what had been looked at was left out.
The ways without a method have six step sizes, those with one two step sizes times three settings of the method.

What is committed (``benchmarks/results/rl/``) has every series as means over 20 changes, to five digits.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402

from benchmarks.rl.ways import GRID, WAYS, mini  # noqa: E402
from pliant import records  # noqa: E402
from pliant.bench.experiment import Experiment  # noqa: E402
from pliant.bench.runner import run_experiments  # noqa: E402
from pliant.bench.tune import grid  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "rl"
TUNING = "tuning.json"
TUNING_SEEDS, TUNING_TASKS = (100, 101), 150
REPORTED_SEEDS = range(2, 10)
BIN = 20


def tune(out: Path) -> dict[str, Any] | None:
    """The best setting of each way; None after Ctrl-C. What was chosen once stays chosen."""
    for folder in (out, RESULTS):
        if (folder / TUNING).exists():
            found: dict[str, Any] = json.loads((folder / TUNING).read_text(encoding="utf-8"))
            tried = {name: way["settings"] for name, way in found["ways"].items()}
            if tried != {name: list(settings) for name, settings in GRID.items()}:
                raise SystemExit(f"{folder / TUNING} is of another grid than ways.py has: give another --out")
            return found
    settings = {name: [mini(name, each, TUNING_TASKS) for each in grid_of] for name, grid_of in GRID.items()}
    tuning = grid(
        settings, out / "tuning", tuning_seeds=TUNING_SEEDS, last_fraction=1.0, num_workers=0, checkpoint_every=60.0
    )
    if tuning is None:
        return None
    chosen = {
        name: {
            "setting": GRID[name][int(np.argmax([trial.merit for trial in trials]))],
            "scores": [round(trial.score, 5) if np.isfinite(trial.score) else None for trial in trials],
            "settings": list(GRID[name]),
        }
        for name, trials in tuning.trials.items()
    }
    found = {"rule": tuning.rule, "tuning_seeds": list(TUNING_SEEDS), "ways": chosen}
    records.write_atomically(out / TUNING, json.dumps(found, indent=1) + "\n")
    return found


def experiments(tuning: dict[str, Any]) -> dict[str, Experiment]:
    """Every way with its setting, over the whole stream."""
    return {name: mini(name, tuning["ways"][name]["setting"] if name in GRID else None) for name in WAYS}


def thin(out: Path) -> dict[str, int]:
    """Write what is committed of the records that are there; returns how many each way has."""
    counts: dict[str, int] = {}
    tuning = tune(out)
    if tuning is None:
        return counts
    RESULTS.mkdir(parents=True, exist_ok=True)
    records.write_atomically(RESULTS / TUNING, json.dumps(tuning, indent=1) + "\n")
    for name, experiment in experiments(tuning).items():
        folder = out / experiment.id
        found = list(records.read_records(folder)) if folder.is_dir() else []
        counts[name] = sum(record.seed in REPORTED_SEEDS for record in found)
        if not counts[name]:
            continue
        data = {
            "way": name,
            "label": WAYS[name].label,
            "bin": BIN,
            "experiment": experiment.to_dict(),
            "id": experiment.id,
            "seeds": [
                {
                    "seed": record.seed,
                    "status": record.status,
                    "error": record.error,
                    "seconds": record.meta.get("seconds"),
                    "commit": record.meta.get("git_commit"),
                    "series": {key: _binned(values) for key, values in record.series.items()},
                }
                for record in sorted(found, key=lambda record: record.seed)
                if record.seed in REPORTED_SEEDS
            ],
        }
        records.write_atomically(RESULTS / f"{name}.json", json.dumps(data) + "\n")
    return counts


def _binned(values: Any) -> list[float]:
    series = np.asarray(values, dtype=float)
    parts = np.array_split(series, -(-len(series) // BIN)) if len(series) else []
    return [float(f"{part.mean():.5g}") for part in parts]


def _seeds(text: str) -> range:
    first, _, end = text.partition(":")
    if not (first.isdigit() and end.isdigit()):
        raise argparse.ArgumentTypeError(f"give A:B, such as 2:10, not {text!r}")
    return range(int(first), int(end))


def main() -> int:
    """Run what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="results folder, outside of the repository")
    parser.add_argument("--seeds", type=_seeds, default=REPORTED_SEEDS, metavar="A:B", help="seeds A to B-1")
    parser.add_argument(
        "--max-hours", type=float, help="stop at a task boundary after so long; the same command goes on"
    )
    parser.add_argument("--only", choices=["tune", "thin"], help="one part")
    options = parser.parse_args()
    if options.only == "thin":
        print(thin(options.out))
        return 0
    tuning = tune(options.out)
    if tuning is None:
        return 130
    if options.only == "tune":
        return 0
    until = None if options.max_hours is None else time.monotonic() + 3600 * options.max_hours
    for seed in options.seeds:
        for experiment in experiments(tuning).values():
            left = None if until is None else max(1e-3, until - time.monotonic())
            report = run_experiments([experiment], [seed], options.out, num_workers=0, max_seconds=left)
            print(f"seed {seed}, {experiment.label}: {report.message}", flush=True)
            if report.interrupted or report.out_of_time:
                return 130 if report.interrupted else 124
    return 0


if __name__ == "__main__":
    sys.exit(main())
