"""All methods at equal budget on two streams of the demo: tuned with equal effort, reported on other seeds.

    python benchmarks/comparison.py                             # everything; it goes on where it stopped
    python benchmarks/comparison.py --only l2 redo              # some of them
    python benchmarks/comparison.py --stream permuted_digits    # one stream
    python benchmarks/comparison.py --write                     # run nothing; only write what is there by now
    python benchmarks/comparison.py --quick --only l2           # a look: one task, nothing in the repository is written

What is run, and with which settings, stands in ``benchmarks/comparison_settings.py`` and was written down before. Of
the four settings of each way of training the best is chosen by the online accuracy over the whole stream, on the seeds
100 to 104, as for the demo (``pliant.bench.tune``); it is reported on the seeds 0 to 9. The number that counts is the
online accuracy over the last ten tasks, and its difference, seed by seed, to the same training without the method.

Everything is run under ``--out``, so that the repository stays as it is, of which the records name the commit. At the
end the reported records, and the lists of all trials with their scores, are copied to
``benchmarks/results/comparison``; from those are made the tables of ``docs/results/comparison.md`` and what stands
between the markers of each page in ``docs/methods``.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.comparison_settings import ENTRIES, NUM_TASKS, STREAMS, settings  # noqa: E402
from benchmarks.speed.methods import between_markers  # noqa: E402
from pliant.bench.runner import run_experiments  # noqa: E402
from pliant.bench.tune import REPORTED_SEEDS, SUMMARY, TUNING_SEEDS, grid  # noqa: E402
from pliant.intervals import Estimate, estimate, first_last, paired_difference  # noqa: E402
from pliant.records import Record, read_record  # noqa: E402
from pliant.report.metrics import METRICS, format_estimate  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "comparison"
PAGES = ROOT / "docs" / "methods"
TABLES = ROOT / "docs" / "results" / "comparison.md"
WINDOW = 10
TITLES = {"random_label_digits": "Random label digits", "permuted_digits": "Permuted digits"}
ACCURACY, HELD_OUT = METRICS["online_accuracy"], METRICS["test_accuracy"]


# ---- running ----
def run(stream: str, name: str, out: Path, *, quick: bool = False) -> bool:
    """Tune one entry on one stream, and run its best setting on the reported seeds; False: stopped."""
    tuning = grid(
        {name: settings(name, stream, 1 if quick else NUM_TASKS)},
        out / "tuning" / stream / name,
        tuning_seeds=TUNING_SEEDS[:1] if quick else TUNING_SEEDS,
        last_fraction=1.0,
        num_workers=0,
    )
    if tuning is None:
        return False
    seeds = REPORTED_SEEDS[:2] if quick else REPORTED_SEEDS
    chosen = tuning.chosen[name]
    report = run_experiments([chosen], seeds, out / stream, num_workers=0)
    if not report.interrupted:
        print(f"{stream}, {name}: {report.message}", flush=True)
    return not report.interrupted


def publish(out: Path, results: Path, num_seeds: int = len(REPORTED_SEEDS)) -> None:
    """Copy the lists of trials, and the reported records of what has all of them."""
    for stream, name in itertools.product(STREAMS, ENTRIES):
        tuning = out / "tuning" / stream / name / SUMMARY
        if not tuning.exists():
            continue
        chosen = json.loads(tuning.read_text(encoding="utf-8"))["methods"][name]["chosen"]
        files = sorted((out / stream / chosen).glob("[!.]*.json"))
        if len(files) == num_seeds + 1:  # and experiment.json
            (results / "tuning" / stream).mkdir(parents=True, exist_ok=True)
            shutil.copy(tuning, results / "tuning" / stream / f"{name}.json")
            shutil.rmtree(results / stream / chosen, ignore_errors=True)
            (results / stream / chosen).mkdir(parents=True)
            for file in files:
                shutil.copy(file, results / stream / chosen)


# ---- reading ----
@dataclass(frozen=True)
class Row:
    """What became of one entry on one stream: values by seed, those of failed seeds left out.

    Attributes:
        setting: The options that were tuned, as chosen.
        whole: Mean online accuracy over all tasks.
        last: The same over the last tasks.
        held_out: Held-out accuracy over the last tasks; empty if the stream has none.
        change: Last tasks minus first tasks.
        num_failed: Seeds that are in none of these.
    """

    setting: str
    whole: Mapping[int, float]
    last: Mapping[int, float]
    held_out: Mapping[int, float]
    change: Mapping[int, float]
    num_failed: int


def read(stream: str, name: str, results: Path) -> Row | None:
    """The reported records of one entry; None before there are any."""
    path = results / "tuning" / stream / f"{name}.json"
    if not path.exists():
        return None
    chosen = json.loads(path.read_text(encoding="utf-8"))["methods"][name]
    records = [read_record(file) for file in sorted((results / stream / chosen["chosen"]).glob("seed-*.json"))]
    complete = {record.seed: record for record in records if record.status == "complete"}
    return Row(
        _setting(name, chosen["experiment"]),
        _each(complete, "online_accuracy", lambda series: sum(series) / len(series)),
        _each(complete, "online_accuracy", lambda series: first_last(series, WINDOW).last),
        _each(complete, "test_accuracy", lambda series: first_last(series, WINDOW).last),
        _each(complete, "online_accuracy", lambda series: first_last(series, WINDOW).change),
        len(records) - len(complete),
    )


def _each(records: Mapping[int, Record], metric: str, value: Callable[[Any], float]) -> dict[int, float]:
    return {seed: value(record.series[metric]) for seed, record in records.items() if metric in record.series}


def _setting(name: str, experiment: Mapping[str, Any]) -> str:
    """Step size and the tuned option, as text."""
    found = [f"step size {experiment['optimizer']['lr']:g}"]
    tuned = ENTRIES[name].tuned
    if tuned is not None:
        where, option, _ = tuned
        part = experiment["methods"][-1] if where == "methods" else experiment[where]
        found.append(f"`{option}={part[option]}`")
    return ", ".join(found)


# ---- writing ----
def table(stream: str, rows: Mapping[str, Row]) -> str:
    """One stream's table in Markdown."""
    has_test = any(row.held_out for row in rows.values())
    heads = ["method", "chosen of four", "whole stream, %", f"last {WINDOW} tasks, %", "change, points"]
    heads += ["against its baseline, points", *(["held-out, last tasks, %"] if has_test else []), "seeds"]
    lines = ["| " + " | ".join(heads) + " |", "|:--|:--|" + "--:|" * (len(heads) - 3) + ":--|"]
    for name, row in rows.items():
        seeds = f"{len(row.last)}" + (f", {row.num_failed} failed" if row.num_failed else "")
        cells = [_label(name), row.setting, _text(row.whole), _text(row.last)]
        cells += [format_estimate(estimate(row.change.values()), ACCURACY, signed=True), _against(name, rows)]
        cells += [_text(row.held_out)] if has_test else []
        lines.append("| " + " | ".join([*cells, seeds]) + " |")
    missing = [ENTRIES[name].label for name in ENTRIES if name not in rows]
    note = f"\n\nNot run yet: {', '.join(missing)}." if missing else ""
    return f"### {TITLES[stream]}\n\n" + "\n".join(lines) + note


def _label(name: str) -> str:
    entry = ENTRIES[name]
    return f"[{entry.label}](../methods/{entry.page}.md)" if entry.page else entry.label


def _text(values: Mapping[int, float]) -> str:
    return format_estimate(estimate(values.values()), ACCURACY)


def difference(name: str, rows: Mapping[str, Row]) -> Estimate | None:
    """Over the last tasks, on the same seeds, to the entry's baseline; None if that is itself, or is not there."""
    baseline = ENTRIES[name].baseline
    if name == baseline or not ENTRIES[name].page or baseline not in rows:
        return None
    return paired_difference(rows[name].last, rows[baseline].last)


def _against(name: str, rows: Mapping[str, Row]) -> str:
    found = difference(name, rows)
    if found is None:
        return "–" if ENTRIES[name].page else "baseline"
    return format_estimate(found, ACCURACY, signed=True)


def sentence(name: str, rows: Mapping[str, Mapping[str, Row]]) -> str:
    """What a method's page says; ``rows`` by stream and entry."""
    parts = []
    for stream, there in rows.items():
        if name not in there:
            continue
        row, found = there[name], difference(name, there)
        text = f"{TITLES[stream]}: {_text(row.last)} % while learning the last {WINDOW} of {NUM_TASKS} tasks"
        if found is not None:
            against = ENTRIES[ENTRIES[name].baseline].label
            text += f", {format_estimate(found, ACCURACY, signed=True)} points against {against} on the same seeds"
        text += f"; {row.num_failed} of {row.num_failed + len(row.last)} seeds failed" if row.num_failed else ""
        parts.append(f"{text} ({row.setting}).")
    about = "each had four settings on tuning seeds, and ten other seeds are reported"
    return " ".join([f"In the [comparison of all methods](../results/comparison.md) ({about}).", *parts])


def write(results: Path = RESULTS, tables: Path = TABLES, pages: Path = PAGES) -> list[str]:
    """Write the tables and the pages from the records; returns the entries that are on both streams."""
    rows = {
        stream: {name: row for name in ENTRIES if (row := read(stream, name, results)) is not None}
        for stream in STREAMS
    }
    text = "\n\n".join(table(stream, found) for stream, found in rows.items() if found)
    if text:
        page = tables.read_text(encoding="utf-8")
        tables.write_text(between_markers(page, text, "tables"), encoding="utf-8")
    done = [name for name in ENTRIES if all(name in found for found in rows.values())]
    for name in done:
        page_path = pages / f"{ENTRIES[name].page or name}.md"
        if page_path.exists():
            page = page_path.read_text(encoding="utf-8")
            page_path.write_text(between_markers(page, sentence(name, rows), "results"), encoding="utf-8")
    return done


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=list(ENTRIES), choices=list(ENTRIES), metavar="METHOD")
    parser.add_argument("--stream", nargs="+", default=list(STREAMS), choices=list(STREAMS))
    parser.add_argument("--out", type=Path, default=Path("results") / "comparison", help="where trials stay")
    parser.add_argument("--write", action="store_true", help="run nothing, write the tables and the pages")
    parser.add_argument("--quick", action="store_true", help="one task, few seeds; write only to --out")
    options = parser.parse_args(arguments)
    for stream in [] if options.write else options.stream:
        for name in options.only:
            if not run(stream, name, options.out, quick=options.quick):
                raise SystemExit("interrupted; the same command goes on")
    if not options.quick:
        publish(options.out, RESULTS)
        print(f"in the pages: {', '.join(write()) or 'nothing'}")


if __name__ == "__main__":
    main()
