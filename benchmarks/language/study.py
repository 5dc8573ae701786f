"""What a small language model loses over many drifts, and what each remedy keeps.

    python benchmarks/language/study.py run                 # what is missing; it goes on where it stopped
    python benchmarks/language/study.py run --max-minutes 5
    python benchmarks/language/study.py page                # page and figure, from the records
    python benchmarks/language/study.py page --check
    python benchmarks/language/study.py run --data-dir FOLDER --out results/language   # on texts of your own

Two parts. *text*: a GPT-2 with two blocks is trained on one text in ever other ciphers, a permutation of the letters
for each task. *adapters*: such a model is trained once, frozen, and LoRA adapters learn one language after another.

Every way of training has three settings. The best is chosen by the mean online loss on the tuning seeds, on a shorter
stream, and is reported on other seeds. Where a way has a method with an option, its step size is that chosen without
protection. ``expectations.json`` was written before the reported seeds were run.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from benchmarks.language.training import ADAPTERS, TEXT, Preset, run_adapters, run_text  # noqa: E402
from benchmarks.manifolds.common import Records, _environment  # noqa: E402

__all__ = ["PARTS", "RESULTS", "SEEDS", "TUNING", "Cell", "chosen", "main", "records_of"]

RESULTS = ROOT / "benchmarks" / "results" / "language"
PARTS = {"text": TEXT, "adapters": ADAPTERS}
TUNING: dict[str, tuple[int, ...]] = {"text": (100, 101), "adapters": (100,)}
SEEDS = range(5)
Cell = dict[str, Any]


def records_of(preset: Preset, out: Path | None = None) -> Records:
    """Where the records are."""
    return Records(out or RESULTS, dataclasses.asdict(preset))


def cell_of(part: str, way: str, setting: float | str, step_size: float, num_tasks: int) -> Cell:
    """One setting of one way of training."""
    return {"part": part, "way": way, "setting": setting, "step_size": step_size, "tasks": num_tasks}


def _file(part: str, seed: int) -> str:
    return f"{part}-{'tuning' if seed in TUNING[part] else 'reported'}"


def candidates(records: Records, preset: Preset, part: str, way: str) -> list[Cell] | None:
    """The settings of a way; ``None`` while the step size that they take over is not chosen."""
    item = PARTS[part][way]
    num_tasks = preset.num_tuning_tasks if part == "text" else preset.num_adapter_tuning_tasks
    if item.make is None:
        return [cell_of(part, way, size, float(size), num_tasks) for size in item.settings]
    plain = chosen(records, preset, part, "plain")
    if plain is None:
        return None
    return [cell_of(part, way, setting, plain["step_size"], num_tasks) for setting in item.settings]


def chosen(records: Records, preset: Preset, part: str, way: str) -> Cell | None:
    """The best setting on the tuning seeds, with the reported number of tasks; ``None`` before all were tried.

    A run that diverged, or was refused, counts as infinitely bad.
    """
    cells = candidates(records, preset, part, way)
    if cells is None:
        return None
    found = records.read(_file(part, TUNING[part][0]))
    scores = []
    for cell in cells:
        runs = [record for record in found if record["cell"] == cell]
        if {record["seed"] for record in runs} != set(TUNING[part]):
            return None
        scores.append(sum(_score(record) for record in runs) / len(runs))
    best = cells[scores.index(min(scores))]
    return {**best, "tasks": preset.num_tasks if part == "text" else preset.num_adapter_tasks}


def _score(record: Cell) -> float:
    values = record["online"]
    return sum(values) / len(values) if values and None not in values else math.inf


def missing(records: Records, preset: Preset) -> Iterator[tuple[Cell, int]]:
    """What is to be run: first what the settings are chosen by, then what is reported, part by part, seed by seed."""
    for part, ways in PARTS.items():
        for way in ways:
            cells = candidates(records, preset, part, way)
            for cell in cells or []:
                for seed in TUNING[part]:
                    if not _has(records, part, cell, seed):
                        yield cell, seed
    for part, ways in PARTS.items():
        for seed in SEEDS:
            for way in ways:
                cell = chosen(records, preset, part, way)
                if cell is not None and not _has(records, part, cell, seed):
                    yield cell, seed


def _has(records: Records, part: str, cell: Cell, seed: int) -> bool:
    return any(found["cell"] == cell and found["seed"] == seed for found in records.read(_file(part, seed)))


def run_one(preset: Preset, cell: Cell, seed: int, folder: Path) -> Cell:
    """One run."""
    if cell["part"] == "text":
        return run_text(preset, cell["way"], cell["setting"], cell["step_size"], cell["tasks"], seed)
    return run_adapters(preset, cell["way"], cell["step_size"], cell["tasks"], seed, folder)


def run(records: Records, preset: Preset, bases: Path, max_minutes: float) -> int:
    """Run what is missing."""
    torch.set_num_threads(1)
    began = time.perf_counter()
    for cell, seed in missing(records, preset):
        if time.perf_counter() - began > 60 * max_minutes:
            print("out of time; the same command goes on", flush=True)
            return 3
        start = time.process_time()
        result = run_one(preset, cell, seed, bases)
        seconds = round(time.process_time() - start, 1)
        record = {"cell": cell, "seed": seed, **result, "seconds": seconds, "environment": _environment()}
        records.add(_file(cell["part"], seed), record)
        print(f"{json.dumps(cell)} seed {seed}: {_score(record):.3f}, {seconds} s", flush=True)
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    runs = commands.add_parser("run", help="what is missing of the records; it goes on where it stopped")
    runs.add_argument("--max-minutes", type=float, default=math.inf, help="begin no run after so many")
    runs.add_argument("--bases", type=Path, default=Path("results") / "language_bases", help="where bases are kept")
    page = commands.add_parser("page", help="page and figure, from the records")
    page.add_argument("--check", action="store_true", help="write nothing; exit code 1 if something is out of date")
    for command in (runs, page):
        command.add_argument("--data-dir", default="", help="texts of your own instead of generated ones")
        command.add_argument("--out", type=Path, help="folder of the records")
    options = parser.parse_args(arguments)
    preset = Preset().with_texts(options.data_dir) if options.data_dir else Preset()
    if options.data_dir and options.out is None:
        raise SystemExit("texts of your own need a folder of records of their own: --out")
    records = records_of(preset, options.out)
    if options.command == "run":
        return run(records, preset, options.bases, options.max_minutes)
    from benchmarks.language.page import write_page

    return write_page(records, preset, check=options.check)


if __name__ == "__main__":
    raise SystemExit(main())
