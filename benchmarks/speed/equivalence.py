"""Does continual backprop learn as well with statistics and decisions now and then as with both at every step?

    python benchmarks/speed/equivalence.py            # runs what is missing (about 10 minutes), prints the table
    python benchmarks/speed/equivalence.py --table    # prints the table of the committed records

Three streams of the demo, 20 seeds each. The method's settings are those that were tuned for the demo; where the batch
size is one, the hardest case for rare samples, the step size is divided by ten and there are 15 tasks instead of 50.
Accuracies are means over all tasks, paired by seed, with 95 % intervals over seeds.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import numpy as np

from pliant.intervals import estimate
from pliant.records import read_records

RESULTS = Path(__file__).resolve().parents[1] / "results" / "equivalence"
SEEDS = "20:40"  # the cadence was chosen on seeds 0 to 19 of the first stream
STREAMS = {
    "random labels, batch 8": ["random_label_digits", "--lr", "0.1", "--set", "maturity_threshold=100"],
    "permuted pixels, batch 16": ["permuted_digits", "--lr", "0.1", "--set", "maturity_threshold=1000"],
    "permuted pixels, batch 1": [
        *(
            "permuted_digits",
            "--lr",
            "0.01",
            "--tasks",
            "15",
            "--set",
            "stream.batch_size=1",
            "maturity_threshold=1000",
        ),
    ],
}
VARIANTS = {"default": [], "every step": ["sample_every=1", "decide_every=1"]}


def run(only: str) -> None:
    """Run every stream in both variants; what has a record is not run again."""
    for name, (stream, *options) in STREAMS.items():
        for variant, settings in VARIANTS.items():
            if only in name:
                out = RESULTS / f"{name}, {variant}".replace(", ", "-").replace(" ", "_")
                command = ["run", stream, "--method", "continual_backprop", "--seeds", SEEDS, *options]
                command += ["replacement_rate=1e-3", *settings, "--out", str(out)]
                subprocess.run([sys.executable, "-m", "pliant.cli", *command], check=True)


def accuracies(name: str, variant: str) -> dict[int, float]:
    """Mean online accuracy over all tasks in per cent, by seed."""
    folder = RESULTS / f"{name}, {variant}".replace(", ", "-").replace(" ", "_")
    records = [record for record in read_records(folder) if record.status == "complete"]
    return {record.seed: 100 * float(np.mean(record.series["online_accuracy"])) for record in records}


def table() -> str:
    """Both variants and their difference."""
    lines = ["| stream | default | every step | difference, points | seeds |", "|---|---|---|---|---|"]
    for name in STREAMS:
        both = [accuracies(name, variant) for variant in VARIANTS]
        seeds = sorted(set(both[0]) & set(both[1]))
        columns = [[found[seed] for seed in seeds] for found in both]
        difference = [a - b for a, b in zip(*columns, strict=True)]
        cells = [f"{e.mean:.2f} ± {e.half_width:.2f}" for e in map(estimate, (*columns, difference))]
        lines.append(f"| {name} | {' | '.join(cells)} | {len(seeds)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true", help="print the table, run nothing")
    parser.add_argument("--only", default="", help="streams whose name contains this")
    options = parser.parse_args()
    if not options.table:
        run(options.only)
    print(table())


if __name__ == "__main__":
    main()
