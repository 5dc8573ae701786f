"""How often 95 % intervals over few seeds hold the truth: Student's, and bootstrap intervals, plain and expanded.

python benchmarks/interval_coverage.py            # simulates (about a minute), writes the records and the page's table
python benchmarks/interval_coverage.py --write    # writes the table of docs/statistics.md from the records

Seeds' scores are drawn from distributions that benchmarks have: normal; uniform; skewed (one minus an exponential,
where most runs are near the best that is possible); and bimodal (three seeds in ten collapse). 2,000 data sets for each
distribution and number of seeds, generator seed 0; each interval of a share has half a width of at most 0.022.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from pliant.bench.environment import run_meta  # noqa: E402
from pliant.intervals import estimate  # noqa: E402
from pliant.statistics import bootstrap, interquartile_mean, iqm  # noqa: E402

RECORDS = ROOT / "benchmarks" / "results" / "statistics" / "coverage.json"
PAGE = ROOT / "docs" / "statistics.md"
MARKERS = ("<!-- coverage: begin -->", "<!-- coverage: end -->")
NUM_DATA_SETS, NUM_RESAMPLES, NUM_SEEDS = 2000, 2000, (3, 5, 10, 30)

Draw = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]
DISTRIBUTIONS: dict[str, Draw] = {
    "normal": lambda g, size: g.normal(size=size),
    "uniform": lambda g, size: g.uniform(size=size),
    "skewed": lambda g, size: 1 - g.exponential(size=size),
    "bimodal": lambda g, size: np.where(g.uniform(size=size) < 0.7, 0.8, 0.3) + g.normal(0, 0.02, size=size),
}


def plain(values: np.ndarray, seed: int) -> tuple[float, float]:
    """The percentile interval as published: the quantiles at 2.5 and 97.5 %."""
    generator = np.random.default_rng(seed)
    means = values[generator.integers(len(values), size=(NUM_RESAMPLES, len(values)))].mean(-1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def simulate() -> dict[str, dict[str, dict[str, float]]]:
    """Distribution, seeds and kind of interval to the share of data sets whose interval holds the true value."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for name, draw in DISTRIBUTIONS.items():
        generator = np.random.default_rng(0)
        large = draw(generator, (1_000_000,))
        truth, middle = float(large.mean()), float(interquartile_mean(draw(generator, (2_000_000,))))
        found[name] = {}
        for num in NUM_SEEDS:
            hits = dict.fromkeys(("Student", "percentile", "expanded", "IQM of 3 streams, expanded"), 0)
            for seed in range(NUM_DATA_SETS):
                values = draw(generator, (num,))
                student = estimate(values.tolist())
                low, high = plain(values, seed)
                wide = bootstrap([values], lambda s: s[0].mean(-1), num_resamples=NUM_RESAMPLES, seed=seed)
                three = iqm(list(draw(generator, (3, num))), num_resamples=NUM_RESAMPLES, seed=seed)
                hits["Student"] += student.low <= truth <= student.high
                hits["percentile"] += low <= truth <= high
                hits["expanded"] += wide.low <= truth <= wide.high
                hits["IQM of 3 streams, expanded"] += three.low <= middle <= three.high
            found[name][str(num)] = {kind: hit / NUM_DATA_SETS for kind, hit in hits.items()}
            print(name, num, found[name][str(num)], flush=True)
    return found


def table(coverage: dict[str, dict[str, dict[str, float]]]) -> str:
    """The shares in percent, as Markdown."""
    kinds = list(next(iter(next(iter(coverage.values())).values())))
    lines = [f"| distribution | seeds | {' | '.join(kinds)} |", "|:--|--:|" + "--:|" * len(kinds)]
    for name, rows in coverage.items():
        lines += [
            f"| {name} | {num} | " + " | ".join(f"{100 * row[k]:.1f}" for k in kinds) + " |"
            for num, row in rows.items()
        ]
    return "\n".join(lines)


def write() -> None:
    """Put the table between the markers of the page."""
    record = json.loads(RECORDS.read_text(encoding="utf-8"))
    page = PAGE.read_text(encoding="utf-8")
    before, _, rest = page.partition(MARKERS[0])
    _, _, after = rest.partition(MARKERS[1])
    text = f"{before}{MARKERS[0]}\n\n{table(record['coverage'])}\n\n{MARKERS[1]}{after}"
    PAGE.write_text(text, encoding="utf-8", newline="\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="simulate nothing, write the table")
    if not parser.parse_args().write:
        settings = {"data_sets": NUM_DATA_SETS, "resamples": NUM_RESAMPLES, "generator_seed": 0}
        record = {"coverage": simulate(), "settings": settings, "meta": run_meta()}
        RECORDS.parent.mkdir(parents=True, exist_ok=True)
        RECORDS.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8", newline="\n")
    write()


if __name__ == "__main__":
    main()
