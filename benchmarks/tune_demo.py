"""Choose the demo's settings: eight per method, plain training included, on tuning seeds that are never reported.

    python benchmarks/tune_demo.py --out results/tuning --workers 2

Every trial stays as a record under ``--out`` and the run resumes where it stopped. At the end the choice is written to
``pliant/bench/tuned/*.toml``, from which ``pliant demo`` reads it, and the list of all trials with their scores to
``benchmarks/results/tuning/*.json``. The stationary control is not tuned: it runs the settings of the permuted digits.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pliant.bench.experiment import Experiment
from pliant.bench.runner import Progress
from pliant.bench.tune import TUNING_SEEDS, grid, variations

ROOT = Path(__file__).resolve().parent.parent
LABELS = {
    "none": "no protection",
    "l2": "L2",
    "shrink_and_perturb": "shrink and perturb",
    "redo": "ReDo",
    "continual_backprop": "continual backprop",
    "fresh_start": "fresh network per task",
}

Grid = dict[str, tuple[Sequence[float], dict[str, Sequence[Any]]]]

GRIDS: dict[str, Grid] = {
    "random_label_digits": {  # 640 steps a task
        "none": ((0.003, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1), {}),
        "l2": ((0.01, 0.02, 0.05, 0.1), {"strength": (1e-3, 1e-2)}),
        "shrink_and_perturb": ((0.05, 0.1), {"shrink": (0.4, 0.8), "noise_scale": (0.1, 0.4)}),
        "redo": ((0.03, 0.1), {"tau": (0.025, 0.1), "every": (64, 640)}),
        "continual_backprop": ((0.03, 0.1), {"replacement_rate": (1e-4, 1e-3), "maturity_threshold": (100, 1000)}),
        "fresh_start": ((0.01, 0.02, 0.03, 0.05, 0.1, 0.15, 0.2, 0.3), {}),
    },
    "permuted_digits": {  # 160 steps a task
        "none": ((0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.3, 0.5), {}),
        "l2": ((0.03, 0.1, 0.2, 0.3), {"strength": (1e-4, 1e-3)}),
        "shrink_and_perturb": ((0.1, 0.2), {"shrink": (0.4, 0.8), "noise_scale": (0.1, 0.4)}),
        "redo": ((0.1, 0.2), {"tau": (0.025, 0.1), "every": (16, 160)}),
        "continual_backprop": ((0.1, 0.2), {"replacement_rate": (1e-4, 1e-3), "maturity_threshold": (100, 1000)}),
        "fresh_start": ((0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.3, 0.5), {}),
    },
}


def settings(stream: str) -> dict[str, list[Experiment]]:
    """The grid of every method on one stream."""
    found = {}
    for name, (rates, options) in GRIDS[stream].items():
        methods = [] if name == "none" else [(name, {key: values[0] for key, values in options.items()})]
        base = Experiment.from_preset(stream, "demo", methods, LABELS[name])
        found[name] = variations(base, {"lr": rates}, [options] if options else [])
    return found


def write_toml(stream: str, chosen: dict[str, Experiment], text: str) -> None:
    """Write the file that ``pliant demo`` reads."""
    lines = [f'stream = "{stream}"', 'preset = "demo"', "", "[tuning]", f'text = """\n{text}\n"""']
    for experiment in chosen.values():
        methods = [{"name": part.name, **part.options} for part in experiment.methods]
        inner = ", ".join(
            "{ " + ", ".join(f"{k} = {json.dumps(v)}" for k, v in m.items() if v is not None) + " }" for m in methods
        )
        lines += [
            "",
            "[[runs]]",
            f'label = "{experiment.label}"',
            f"optimizer = {{ lr = {experiment.optimizer.options['lr']} }}",
            f"methods = [{inner}]",
        ]
    (ROOT / "pliant" / "bench" / "tuned" / f"{stream}.toml").write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    """Tune both streams and write what was chosen."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("results/tuning"))
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()

    def show(progress: Progress) -> None:
        if progress.num_done == progress.num_tasks:
            print(f"{progress.label}  {progress.experiment_id}  {progress.mean_score:.3f}", flush=True)

    (ROOT / "benchmarks" / "results" / "tuning").mkdir(parents=True, exist_ok=True)
    for stream in GRIDS:
        tuning = grid(
            settings(stream), options.out / stream, last_fraction=1.0, num_workers=options.workers, on_progress=show
        )
        if tuning is None:
            raise SystemExit("interrupted; the same command resumes")
        length = next(iter(tuning.chosen.values())).num_tasks
        rule = tuning.rule.replace(f"the last {length} of {length}", f"all {length}")
        seeds = f"{TUNING_SEEDS[0]} to {TUNING_SEEDS[-1]}"
        text = (
            f"Every method, plain training included, had eight settings (step size and its own options) on the tuning "
            f"seeds {seeds}, which are not reported. Chosen: {rule}. "
            f"All trials: benchmarks/results/tuning/{stream}.json; command: python benchmarks/tune_demo.py."
        )
        shutil.copy(tuning.path, ROOT / "benchmarks" / "results" / "tuning" / f"{stream}.json")
        write_toml(stream, tuning.chosen, text)
        if stream == "permuted_digits":
            control = dict(tuning.chosen)
            write_toml(
                "stationary_digits",
                control,
                f"Not tuned on this stream: the settings are those chosen on the permuted digits. {text}",
            )


if __name__ == "__main__":
    main()
