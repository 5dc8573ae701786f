"""Hold the records of the narrow permuted-MNIST study against its expectation, and print tables for the page.

    python benchmarks/permuted_mnist_verdict.py benchmarks/results/permuted_mnist

Accuracies in %, per task, mean over seeds; differences in points, paired by seed, with 95 % t intervals.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from pliant.intervals import estimate
from pliant.records import read_records

EARLY, LATE = slice(1, 4), slice(-3, None)  # tasks 2 to 4, and the last three


def main(folder: Path) -> None:
    """Print accuracy per task, and both expectations per step size."""
    runs: dict[tuple[float, bool], dict[int, list[float]]] = {}
    for record in read_records(folder):
        if record.status == "complete":
            key = (record.experiment["optimizer"]["lr"], bool(record.experiment["methods"]))
            runs.setdefault(key, {})[record.seed] = [100 * value for value in record.series["online_accuracy"]]
    most = max(len(series) for seeds in runs.values() for series in seeds.values())
    print("| step size | method | seeds | " + " | ".join(f"task {i + 1}" for i in range(most)) + " |")
    print("|--:|:--|--:|" + "--:|" * most)
    for (rate, protected), seeds in sorted(runs.items(), key=lambda item: (-item[0][0], item[0][1])):
        means = np.mean(list(seeds.values()), axis=0)
        cells = [f"{mean:.2f}" for mean in means] + [""] * (most - len(means))
        name = "continual backprop" if protected else "backprop"
        print(f"| {rate:g} | {name} | {len(seeds)} | " + " | ".join(cells) + " |")
    print()
    print("| step size | backprop: last three minus tasks 2 to 4 | continual backprop: same | difference, last three |")
    print("|--:|--:|--:|--:|")
    for rate in sorted({rate for rate, _ in runs}, reverse=True):
        plain, cbp = runs.get((rate, False), {}), runs.get((rate, True), {})
        both = sorted(set(plain) & set(cbp))
        if not both or len(plain[both[0]]) < 7:  # too short for windows that do not overlap
            continue
        columns = [
            [np.mean(plain[seed][LATE]) - np.mean(plain[seed][EARLY]) for seed in both],
            [np.mean(cbp[seed][LATE]) - np.mean(cbp[seed][EARLY]) for seed in both],
            [np.mean(cbp[seed][LATE]) - np.mean(plain[seed][LATE]) for seed in both],
        ]
        cells = []
        for values in columns:
            found = estimate(values)
            cells.append(f"{found.mean:+.2f} ± {found.half_width:.2f}")
        print(f"| {rate:g} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
