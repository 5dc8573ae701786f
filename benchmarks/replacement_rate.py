"""How much of a network should continual backprop renew? The rate, tuned on one stream and judged on another.

    python benchmarks/replacement_rate.py                   # searches, then runs: whatever is missing
    python benchmarks/replacement_rate.py --write           # run nothing; only write the page, from the records

It is what a user would type (``docs/running.md``), once with the searches on random labels themselves, on the seeds
100 to 104, and once on permuted digits, a stream that is not reported: twenty trials for continual backprop (step size
and replacement rate) and as many for plain training (step size). The best of each runs on random labels, seeds 0 to 9.
Searches and records are under ``--out``; at the end they are copied to ``benchmarks/results/replacement_rate``, without
the records of the trials, and ``docs/results/replacement_rate.md`` is written from them.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.speed.methods import between_markers  # noqa: E402
from pliant import records  # noqa: E402
from pliant.bench.experiment import Experiment  # noqa: E402
from pliant.cli import main as pliant  # noqa: E402
from pliant.intervals import estimate, first_last, paired_difference  # noqa: E402
from pliant.report.metrics import METRICS, format_estimate  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "replacement_rate"
PAGE = ROOT / "docs" / "results" / "replacement_rate.md"
STREAM = "random_label_digits"
TUNED_ON = {STREAM: "random labels, other seeds", "permuted_digits": "permuted digits"}
SEARCHES: dict[str, list[str]] = {
    "none": [],
    "continual_backprop": ["--set", "maturity_threshold=100", "--search", "replacement_rate=log:1e-6:1e-2"],
}
LABELS = {"none": "no protection", "continual_backprop": "continual backprop"}
NUM_TRIALS, KS = 20, (1, 5, 20)


# ---- running ----
def run(out: Path, workers: int, trials: int, seeds: int) -> None:
    """Search and run, as on the command line; each goes on where it stopped."""
    shared = ["--workers", str(workers)]
    for where in TUNED_ON:
        other = [] if where == STREAM else ["--tune-on", where]
        for name, options in SEARCHES.items():
            command = ["tune", STREAM, "--method", name, "--trials", str(trials), *options, *other, *shared]
            _do([*command, "--out", str(out / where)])
        for path in searches(out / where):
            _do(["run", str(path), "--seeds", str(seeds), *shared, "--out", str(out / f"results_{where}")])


def _do(arguments: list[str]) -> None:
    code = pliant(arguments)
    if code:
        raise SystemExit(code)


def searches(folder: Path) -> list[Path]:
    """The searches in a folder; plain training first."""
    return sorted(folder.glob("*-*.json"), key=lambda path: "-none-" not in path.name)


# ---- reading and writing ----
def publish(out: Path, results: Path = RESULTS) -> None:
    """Copy searches and reported records."""
    for where in TUNED_ON:
        (results / where).mkdir(parents=True, exist_ok=True)
        for path in searches(out / where):
            shutil.copy(path, results / where)
        records.merge([out / f"results_{where}"], results / f"results_{where}")


def reported(path: Path, results: Path) -> dict[int, list[float]]:
    """By seed: the online accuracy of the chosen setting."""
    chosen = Experiment.from_dict(json.loads(path.read_text(encoding="utf-8"))["chosen"])
    found = records.read_records(results / f"results_{path.parent.name}" / chosen.id)
    return {record.seed: record.series["online_accuracy"] for record in found if record.status == "complete"}


def tables(results: Path = RESULTS) -> str:
    """What was chosen and what it is worth, then all trials."""
    accuracy = METRICS["online_accuracy"]
    heads = [
        "tuned on",
        "training",
        "step size",
        "replacement rate",
        f"best of {', '.join(map(str, KS))} trials, %",
        "whole stream, %",
    ]
    heads += ["first 10 tasks, %", "last 10 tasks, %", "against plain training, last 10, points", "seeds"]
    rows, plain = [], {}
    for where, title in TUNED_ON.items():
        for path in searches(results / where):
            data, series = json.loads(path.read_text(encoding="utf-8")), reported(path, results)
            ends = {seed: first_last(values) for seed, values in series.items()}
            last = {seed: end.last for seed, end in ends.items()}
            name = "none" if "-none-" in path.name else "continual_backprop"
            plain = last if name == "none" else plain
            values = data["trials"][data["best"]]["values"]
            best = ", ".join(f"{100 * data['best_of_k'][k - 1]:.1f}" for k in KS if k <= data["num_trials"])
            whole = estimate(sum(item) / len(item) for item in series.values())
            cells = [title, LABELS[name], *_values(values), best, format_estimate(whole, accuracy)]
            cells += [format_estimate(estimate(end.first for end in ends.values()), accuracy)]
            cells += [format_estimate(estimate(last.values()), accuracy)]
            gain = "baseline" if name == "none" else ""
            cells.append(gain or format_estimate(paired_difference(last, plain), accuracy, signed=True))
            rows.append([*cells, str(len(series))])
    text = _table(heads, rows, left=2)
    for where, title in TUNED_ON.items():
        for path in searches(results / where):
            if "-none-" in path.name:
                continue
            data = json.loads(path.read_text(encoding="utf-8"))
            trials = sorted(data["trials"], key=lambda trial: trial["values"]["continual_backprop.replacement_rate"])
            found = [
                [*reversed(_values(trial["values"])), f"{100 * trial['score']:.1f}", str(trial["number"])]
                for trial in trials
            ]
            text += f"\n\n### All trials of continual backprop on {title}, by rate\n\n"
            text += _table(["replacement rate", "step size", "accuracy while learning, %", "trial"], found, left=0)
    return text


def _values(values: dict[str, Any]) -> list[str]:
    rate = values.get("continual_backprop.replacement_rate")
    return [f"{values['optimizer.lr']:.3g}", "–" if rate is None else f"{rate:.2g}"]


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]], left: int) -> str:
    rule = "|" + ":--|" * left + "--:|" * (len(heads) - left)
    return "\n".join(["| " + " | ".join(heads) + " |", rule, *("| " + " | ".join(row) + " |" for row in rows)])


def write(results: Path = RESULTS, page: Path = PAGE) -> None:
    """Write the tables from the records."""
    text = between_markers(page.read_text(encoding="utf-8"), tables(results), "tables")
    page.write_text(text, encoding="utf-8")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("results") / "replacement_rate", help="searches and records")
    parser.add_argument("--workers", type=int, default=2, help="processes")
    parser.add_argument("--write", action="store_true", help="run nothing, write the page")
    parser.add_argument("--quick", action="store_true", help="two trials, two seeds; write only to --out")
    options = parser.parse_args(arguments)
    if not options.write:
        trials, seeds = (2, 2) if options.quick else (NUM_TRIALS, 10)
        out = options.out / "quick" if options.quick else options.out  # a search has one budget
        run(out, options.workers, trials, seeds)
    if not options.quick:
        if not options.write:
            publish(options.out)
        write()


if __name__ == "__main__":
    main()
