"""The mini leaderboard: six streams, eighteen ways of training, tuned at equal budgets, ten reported seeds.

    python benchmarks/leaderboard.py                        # tune, run and page; it goes on where it stopped
    python benchmarks/leaderboard.py tune run --only l2     # some ways of training; likewise --stream
    python benchmarks/leaderboard.py --dry-run              # how long it will take; runs nothing
    python benchmarks/leaderboard.py --max-time 3h          # stop at a task boundary after so long
    python benchmarks/leaderboard.py --part convolutional   # the convolutional streams, an hour and a half of a core
    python benchmarks/leaderboard.py page                   # the page, from the committed records
    python benchmarks/leaderboard.py --quick --only l2      # a look: two tasks, two settings, written to --out only

What is run stands in ``benchmarks/leaderboard_settings.py``, what is expected in ``benchmarks/leaderboard_claims.py``;
both were committed before a reported seed was run. Of the settings of each way of training the best on the tuning seeds
by the online score over the whole stream is reported on other seeds. All settings of a way that can be are trained as
one model. Everything is run under ``--out``; ``page`` copies the reported records (some series, six digits) and the
lists of all trials to ``benchmarks/results/leaderboard`` and writes ``docs/results/leaderboard.md`` from these.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.leaderboard_settings import PARTS, REPORTED, TUNING, WAYS, settings, streams, ways  # noqa: E402
from pliant.bench.experiment import Experiment  # noqa: E402
from pliant.bench.runner import run_experiments  # noqa: E402
from pliant.bench.tune import SUMMARY, Tuning, grid  # noqa: E402
from pliant.commands.values import parse_duration  # noqa: E402
from pliant.records import Record, read_record, record_path, write_atomically, write_record  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "leaderboard"
KEPT = (
    "loss", "dormant_fraction", "dead_fraction", "effective_rank_fraction", "weight_magnitude", "num_resets",
    "backward_transfer",
)  # fmt: skip
"""Series of the committed records, with all that are scores."""
STEPS = ("tune", "run", "page")


class OutOfTime(Exception):
    """The time is up, or somebody has interrupted; the same command goes on."""


class Clock:
    """What is left of a time."""

    def __init__(self, seconds: float | None) -> None:
        self.end = None if seconds is None else time.monotonic() + seconds

    def left(self) -> float | None:
        """Seconds, at least a moment; None: no limit.

        Raises:
            OutOfTime: Nothing is left.
        """
        if self.end is None:
            return None
        left = self.end - time.monotonic()
        if left <= 0:
            raise OutOfTime
        return left


# ---- running ----
def tune(stream: str, way: str, out: Path, clock: Clock, *, quick: bool = False) -> Tuning:
    """Run all settings of a way of training on a stream with the tuning seeds; what is there is not run again.

    Raises:
        OutOfTime: Before the end.
    """
    trials = settings(stream, way, 2 if quick else None, 2 if quick else None)
    found = grid(
        {way: trials},
        out / "tuning" / stream / way,
        tuning_seeds=TUNING[:1] if quick else TUNING,
        reported_seeds=REPORTED,
        last_fraction=1.0,
        num_workers=0,
        max_settings=len(trials),
        max_seconds=clock.left(),
    )
    if found is None:
        raise OutOfTime
    return found


def run(chosen: Experiment, out: Path, clock: Clock, *, quick: bool = False) -> None:
    """Run a setting on the reported seeds.

    Raises:
        OutOfTime: Before the end.
    """
    seeds = REPORTED[:2] if quick else REPORTED
    report = run_experiments([chosen], seeds, out / chosen.stream.short_name, num_workers=0, max_seconds=clock.left())
    if report.interrupted or report.out_of_time:
        raise OutOfTime
    print(f"{chosen.stream.short_name}, {chosen.label}: {report.message}", flush=True)


def chosen_of(stream: str, way: str, out: Path) -> Experiment:
    """What tuning has chosen.

    Raises:
        SystemExit: It has not been tuned.
    """
    path = out / "tuning" / stream / way / SUMMARY
    if not path.exists():
        raise SystemExit(f"{WAYS[way].label} has not been tuned on {stream}: python benchmarks/leaderboard.py tune run")
    entry = json.loads(path.read_text(encoding="utf-8"))["methods"][way]
    return Experiment.from_dict(entry["experiment"], WAYS[way].label)


def forecast(part: str, only: Sequence[str], some_streams: Sequence[str], out: Path) -> float:
    """Print how long each way of training will take on each stream, and return the seconds of everything.

    Every way is begun with the members that it will have, on tasks that are cut short.
    """
    from pliant.bench.calibrate import calibrate
    from pliant.bench.engine import can_stack, can_stack_together
    from pliant.commands.progress import duration

    total = 0.0
    for way in only:
        for stream in some_streams:
            trials = settings(stream, way)
            together = can_stack_together(trials)
            stacked = together or can_stack(trials[0])
            seeds = TUNING if stacked else TUNING[:1]
            tuning = calibrate(trials if together else trials[0], seeds, stacked=stacked)
            reported = calibrate(trials[0], REPORTED if stacked else REPORTED[:1], stacked=stacked)
            num_tasks = trials[0].num_tasks
            first = num_tasks * tuning.task_seconds * (1 if together else len(trials))
            first *= 1 if stacked else len(TUNING)
            second = num_tasks * reported.task_seconds * (1 if stacked else len(REPORTED))
            how = "all settings in one stack" if together else "seeds stacked" if stacked else "one by one"
            print(f"{WAYS[way].label} on {stream}: {duration(first)} + {duration(second)} ({how})", flush=True)
            total += first + second
    print(f"in all: {duration(total)} in one process")
    return total


# ---- committed records ----
def publish(part: str, out: Path, results: Path, num_seeds: int = len(REPORTED)) -> None:
    """Copy the lists of trials, one file for each stream, and the reported records of what has all of them."""
    for stream in streams(part):
        tuned: dict[str, Any] = {}
        for way in ways(part):
            path = out / "tuning" / stream / way / SUMMARY
            if not path.exists():
                continue
            chosen = chosen_of(stream, way, out)
            paths = [record_path(out / stream, chosen.id, seed) for seed in range(num_seeds)]
            if not all(found.exists() for found in paths):
                continue
            data = json.loads(path.read_text(encoding="utf-8"))
            tuned = {**data, "methods": {**tuned.get("methods", {}), **data["methods"]}}
            for found in paths:
                write_record(_thinned(read_record(found)), results / stream, overwrite=True)
        if tuned:
            (results / "tuning").mkdir(parents=True, exist_ok=True)
            write_atomically(results / "tuning" / f"{stream}.json", json.dumps(tuned, indent=1) + "\n")


def _thinned(record: Record) -> Record:
    """The record with the series that the page needs, in six digits."""
    kept = {
        name: [float(f"{value:.6g}") if math.isfinite(value) else value for value in values]
        for name, values in record.series.items()
        if name in KEPT or name.startswith(("online_", "test_", "past_"))
    }
    return replace(record, series=kept, meta={**record.meta, "published": "some of the series, in six digits"})


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("steps", nargs="*", metavar="STEP", help="tune, run, page; default: all")
    parser.add_argument("--part", default="stacked", choices=list(PARTS))
    parser.add_argument("--only", nargs="+", choices=list(WAYS), metavar="WAY")
    parser.add_argument("--stream", nargs="+", metavar="STREAM")
    parser.add_argument("--out", type=Path, default=Path("results") / "leaderboard", help="where everything is run")
    parser.add_argument("--max-time", help="stop after this time, such as 90m or 1.5h")
    parser.add_argument("--dry-run", action="store_true", help="say how long it will take, and run nothing")
    parser.add_argument("--quick", action="store_true", help="two tasks, settings and seeds; write only to --out")
    options = parser.parse_args(arguments)
    steps = options.steps or list(STEPS)
    some_streams = options.stream or streams(options.part)
    only = options.only or ways(options.part)
    for kind, given, known in (
        ("step", steps, STEPS),
        ("stream", some_streams, streams(options.part)),
        ("way", only, ways(options.part)),
    ):
        if wrong := [name for name in given if name not in known]:
            parser.error(f"the part {options.part} has no {kind} {wrong[0]}; there is {', '.join(known)}")
    if options.dry_run:
        forecast(options.part, only, some_streams, options.out)
        return
    clock = Clock(None if options.max_time is None else parse_duration("--max-time", options.max_time))
    try:
        for way in only:
            for stream in some_streams:
                if "tune" in steps:
                    tune(stream, way, options.out, clock, quick=options.quick)
                if "run" in steps:
                    run(chosen_of(stream, way, options.out), options.out, clock, quick=options.quick)
    except OutOfTime:
        raise SystemExit("stopped before the end; the same command goes on") from None
    if "page" in steps and not options.quick:
        from benchmarks.leaderboard_page import write

        publish(options.part, options.out, RESULTS)
        write(RESULTS)


if __name__ == "__main__":
    main()
