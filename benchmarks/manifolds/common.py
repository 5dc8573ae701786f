"""What the studies of this folder share: presets, records that can be continued, and the command line."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import math
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from benchmarks.prediction.study import environment, rounded  # noqa: E402
from pliant.bench.streams.base import generator  # noqa: E402

__all__ = [
    "EXPECTATIONS",
    "RESULTS",
    "ROOT",
    "Records",
    "Study",
    "changed",
    "drawn",
    "expected",
    "main",
    "rounded",
    "seeded",
    "usable",
]

EXPECTATIONS = ROOT / "benchmarks" / "manifolds" / "expectations.json"
RESULTS = ROOT / "benchmarks" / "results" / "manifolds"
SCHEMA = 1
Record = dict[str, Any]


@functools.cache
def _environment() -> Record:
    """As it was when the code was loaded: a commit made during a run is not what runs. Records are not code."""
    command = ["git", "-C", str(ROOT), "status", "--porcelain", "--untracked-files=no", "pliant", "benchmarks"]
    done = subprocess.run([*command, ":!benchmarks/results"], capture_output=True, text=True, check=False)
    return {**environment(), "uncommitted": bool(done.stdout.strip())}


def expected(study: str) -> dict[str, Any]:
    """What was written down before the runs of a study."""
    found: dict[str, Any] = json.loads(EXPECTATIONS.read_text(encoding="utf-8"))[study]
    return found


def seeded(purpose: str, *key: int) -> None:
    """Seed PyTorch for one purpose: two purposes, or two keys, never share a state.

    Not by shifting one into the upper half of a seed: PyTorch's generator on a CPU drops that half.
    """
    torch.manual_seed(drawn(purpose, *key))


def drawn(purpose: str, *key: int) -> int:
    """A seed for one purpose."""
    return int(generator(purpose, *key).integers(2**32))


def changed(preset: Any, changes: Sequence[str]) -> Any:
    """A preset with other settings, each ``name=value`` with a value of JSON or a word."""
    found: dict[str, Any] = {}
    for text in changes:
        name, mark, value = text.partition("=")
        if not mark or name not in {item.name for item in dataclasses.fields(preset)}:
            known = ", ".join(item.name for item in dataclasses.fields(preset))
            raise SystemExit(f"--set {text}: give name=value, of {known}")
        try:
            found[name] = json.loads(value)
        except json.JSONDecodeError:
            found[name] = value
    return dataclasses.replace(preset, **found)


class Records:
    """Runs as lines of JSON, one file for each group of cells; a line is whole, or it is not there.

    Args:
        folder: Where they are; made when the first is written.
        settings: Everything but cells and seeds that decides the numbers. Records of other settings are refused.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self.folder = folder
        self.settings = json.loads(json.dumps({"schema": SCHEMA, **settings}))
        note = folder / "settings.json"
        if note.exists():
            found = json.loads(note.read_text(encoding="utf-8"))
            differing = [k for k in {*found, *self.settings} if found.get(k) != self.settings.get(k)]
            if differing:
                raise SystemExit(
                    f"{folder} has records of other settings ({', '.join(sorted(differing))}): choose another --out, "
                    "or remove it"
                )

    def read(self, name: str) -> list[Record]:
        """All whole lines of a file, in the order of cell and seed."""
        path = self.folder / f"{name}.jsonl"
        if not path.exists():
            return []
        lines = path.read_text(encoding="utf-8").split("\n")[:-1]  # what follows the last line break is torn
        return sorted((json.loads(line) for line in lines), key=lambda r: (json.dumps(r["cell"]), r["seed"]))

    def all(self) -> list[Record]:
        """The records of all files."""
        return [record for path in sorted(self.folder.glob("*.jsonl")) for record in self.read(path.stem)]

    def add(self, name: str, record: Record) -> None:
        """Append a line; a torn one that a killed run left is cut off first."""
        self.folder.mkdir(parents=True, exist_ok=True)
        note = self.folder / "settings.json"
        if not note.exists():
            note.write_text(json.dumps(self.settings, indent=1) + "\n", encoding="utf-8")
        path = self.folder / f"{name}.jsonl"
        line = json.dumps(record, separators=(",", ":"), allow_nan=False) + "\n"
        with path.open("a+b") as file:
            file.seek(0)
            text = file.read()
            file.truncate(text.rfind(b"\n") + 1)
            file.seek(0, os.SEEK_END)
            file.write(line.encode())
            file.flush()
            os.fsync(file.fileno())


@dataclass(frozen=True)
class Study:
    """One experiment.

    Attributes:
        name: Its folder of records, and its section of the expectations.
        doc: What the command says of itself.
        presets: Name to a frozen dataclass with all settings.
        cells: The cells of a preset.
        file_of: The file that a cell's records are in.
        run: From preset, cell, seeds and device to a result for each seed.
        texts: From the records of a preset to the texts of page and figures, by path.
        seeds: Seeds of the preset ``mini``; others take the first five.
        stacked: Whether all missing seeds of a cell are run at once.
    """

    name: str
    doc: str
    presets: Mapping[str, Any]
    cells: Callable[[Any], list[dict[str, Any]]]
    file_of: Callable[[Mapping[str, Any]], str]
    run: Callable[[Any, Mapping[str, Any], Sequence[int], torch.device], Iterator[tuple[int, Record]]]
    texts: Callable[[list[Record], Any], dict[Path, str]]
    seeds: range = range(5)
    stacked: bool = False

    def records(
        self, preset: str, out: Path | None = None, *, changes: Sequence[str] = (), device: str = "cpu"
    ) -> Records:
        """The records of a preset; those of an accelerator are others, because it rounds in other ways."""
        settings = dataclasses.asdict(changed(self.presets[preset], changes))
        kind = {} if device == "cpu" else {"device": torch.device(device).type}
        return Records(out or RESULTS / self.name / preset, {**settings, **kind})

    def missing(self, records: Records, preset: Any, seeds: Sequence[int], only: Sequence[str]) -> Iterator[Any]:
        """Cells and the seeds that they lack, seed by seed, so that what is cut short has whole seeds."""
        cells = [cell for cell in self.cells(preset) if not only or self.file_of(cell) in only]
        have = {
            (json.dumps(record["cell"]), record["seed"])
            for name in {self.file_of(cell) for cell in cells}
            for record in records.read(name)
        }
        for group in [list(seeds)] if self.stacked else [[seed] for seed in seeds]:
            for cell in cells:
                lacking = [seed for seed in group if (json.dumps(cell), seed) not in have]
                if lacking:
                    yield cell, lacking


def main(study: Study, arguments: Sequence[str] | None = None) -> int:
    """Run what is missing, or write the page."""
    parser = argparse.ArgumentParser(description=study.doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="what is missing of the records; it goes on where it stopped")
    run.add_argument("--seeds", nargs="+", type=int)
    run.add_argument("--only", nargs="+", default=[], help="files of records, such as networks")
    run.add_argument("--max-minutes", type=float, default=math.inf, help="begin no run after so many")
    page = commands.add_parser("page", help="page and figures, from the records")
    page.add_argument("--check", action="store_true", help="write nothing; exit code 1 if something is out of date")
    page.add_argument("--show", action="store_true", help="print the page and write nothing")
    for command in (run, page):
        command.add_argument("--preset", choices=list(study.presets), default="mini")
        command.add_argument("--out", type=Path, help="folder of the records")
        command.add_argument(
            "--set", nargs="+", default=[], metavar="NAME=VALUE", help="other settings than the preset's; needs --out"
        )
        command.add_argument("--device", default="cpu", help="where tensors are: cpu, cuda, cuda:1, mps")
    options = parser.parse_args(arguments)
    if options.set and options.out is None:
        parser.error("--set makes other records than those of the preset: say with --out where they are")
    preset = changed(study.presets[options.preset], options.set)
    records = study.records(options.preset, options.out, changes=options.set, device=options.device)
    return _run(study, records, preset, options) if options.command == "run" else _page(study, records, preset, options)


def _run(study: Study, records: Records, preset: Any, options: argparse.Namespace) -> int:
    seeds = options.seeds or list(study.seeds if options.preset == "mini" else study.seeds[:5])
    device = usable(options.device)
    todo = list(study.missing(records, preset, seeds, options.only))
    print(f"{sum(len(lacking) for _, lacking in todo)} runs to do", flush=True)
    torch.set_num_threads(1)
    began = time.perf_counter()
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    for cell, lacking in todo:
        if time.perf_counter() - began > 60 * options.max_minutes:
            print("out of time; the same command goes on", flush=True)
            return 3
        start = clock()
        for seed, result in study.run(preset, cell, lacking, device):
            seconds = (clock() - start) / (len(lacking) if study.stacked else 1)
            place = _environment() if device.type == "cpu" else {**_environment(), "device": device_name(device)}
            record = {"cell": cell, "seed": seed, **result, "seconds": round(seconds, 1), "environment": place}
            records.add(study.file_of(cell), record)
            print(f"{study.name} {json.dumps(cell)} seed {seed}: {seconds:.1f} s", flush=True)
            start = start if study.stacked else clock()
    return 0


def usable(name: str) -> torch.device:
    """The device of a name, if something can be computed on it."""
    try:
        device = torch.device(name)
        torch.ones(2, device=device).sum().item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise SystemExit(f"--device {name} cannot be used here: {str(error).splitlines()[0]}") from error
    return device


def device_name(device: torch.device) -> str:
    """As its driver calls it."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _page(study: Study, records: Records, preset: Any, options: argparse.Namespace) -> int:
    found = records.all()
    if not found:
        raise SystemExit(f"no records in {records.folder}: run first")
    texts = study.texts(found, preset)
    if options.show:
        print(next(iter(texts.values())))
        return 0
    if options.preset != "mini" and not options.check:
        raise SystemExit("the committed page is that of the preset mini: --show prints that of another")
    late = [path for path, text in texts.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    if options.check:
        late = [path for path in late if not path.exists() or _bare(path.read_text("utf-8")) != _bare(texts[path])]
        for path in late:
            print(f"{path.relative_to(ROOT)} is not what the records say: run this command's `page`")
        return 1 if late else 0
    for path in late:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(texts[path], encoding="utf-8")
    return 0


def _bare(text: str) -> str:
    """Without the style of a figure, which all figures of the package share: what is drawn says what records say."""
    return re.sub(r"<style>.*?</style>", "", text, flags=re.DOTALL)
