"""A model that learns a little every day for a year: protected, watched, killed now and then, and never started anew.

    python examples/daily_job.py year --data clicks --days 365 --kills 0.3 --folder job
    python examples/daily_job.py day --data clicks --folder job         # one more day, as cron would start it

Every day is a process of its own. It finds what the day before has left in ``checkpoint.pt``, grows the model where the
data has new words, trains on the day's data, is quiet before the export, writes ``export.pt`` and a line about the day.
Whenever it is killed, the next process goes on from the last checkpoint of the same day with the same bits.

Three kinds of data, all generated: ``clicks`` (a table whose vocabulary grows every day), ``series`` (a forecast under
regimes that switch), ``text`` (characters whose code changes every day).
"""

from __future__ import annotations

import argparse
import functools
import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import pliant
from pliant.bench.streams.base import Stream, Task
from pliant.bench.streams.character_drift import CharacterDrift
from pliant.bench.streams.click_through import ClickThrough
from pliant.bench.streams.regime_switching import RegimeSwitching
from pliant.records.atomic import write_atomically

CHECKPOINT_EVERY = 24  # steps
QUIET = 16  # steps before an export without an edit
LEARNING_RATE = 3e-3
RATES = {"clicks": 1e-4, "series": 1e-3, "text": 1e-3}
MAX_CHANGE = 0.2  # of the outputs, by one edit


# ---- what is learnt, and by which network: yours go here ----
class Clicks(nn.Module):
    """A table of categories: an embedding for each field, which grows with its vocabulary."""

    def __init__(self, vocabulary: int, num_fields: int) -> None:
        super().__init__()
        self.fields = nn.ModuleList(nn.Embedding(vocabulary, 8) for _ in range(num_fields))
        self.body = nn.Sequential(nn.Linear(8 * num_fields, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
        self.head = nn.Linear(64, 1)

    def forward(self, ids: Tensor) -> Tensor:
        """Logits ``[B, 1]`` of ids ``[B, fields]``."""
        found = [table(ids[:, index]) for index, table in enumerate(self.fields)]
        return self.head(self.body(torch.cat(found, -1)))


class Forecast(nn.Module):
    """The next values of a series, from a window of it."""

    def __init__(self, num_inputs: int, num_outputs: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(num_inputs, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
        self.head = nn.Linear(64, num_outputs)

    def forward(self, windows: Tensor) -> Tensor:
        """Values ``[B, channels]`` of windows ``[B, inputs]``."""
        return self.head(self.body(windows))


class NextCharacter(nn.Module):
    """The next character at every place of a passage, from the eight before it."""

    def __init__(self, num_symbols: int) -> None:
        super().__init__()
        self.symbols = nn.Embedding(num_symbols, 16)
        self.body = nn.Sequential(nn.Linear(8 * 16, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
        self.head = nn.Linear(64, num_symbols)

    def forward(self, ids: Tensor) -> Tensor:
        """Logits ``[B, T, symbols]`` of ids ``[B, T]``."""
        seen = nn.functional.pad(self.symbols(ids), (0, 0, 7, 0)).unfold(1, 8, 1)
        return self.head(self.body(seen.flatten(2)))


@dataclass(frozen=True)
class Data:
    """One kind of data: the days, the network for a day, and how wrong it is."""

    stream: Stream

    def day(self, number: int, seed: int) -> Task:
        """The data of a day: the same bytes whenever it is asked for."""
        task = self.stream.task(number, seed)
        if not isinstance(self.stream, ClickThrough):
            return task
        capacity = self.stream.capacity  # ids of a field: here each has a table of its own
        test = None if task.test_inputs is None else task.test_inputs % capacity
        return replace(task, inputs=task.inputs % capacity, test_inputs=test)

    def model(self, number: int, seed: int) -> nn.Module:
        """A new network for a day, as large as its vocabulary."""
        torch.manual_seed(1000 * seed + number)
        if isinstance(self.stream, ClickThrough):
            return Clicks(self.stream.num_entries(number), self.stream.num_fields)
        if isinstance(self.stream, RegimeSwitching):
            return Forecast(self.stream.num_inputs, self.stream.num_classes)
        return NextCharacter(self.stream.num_classes)

    def words(self, number: int) -> int:
        """Entries of all vocabularies on a day; 0 where there is none."""
        if isinstance(self.stream, ClickThrough):
            return self.stream.num_entries(number) * self.stream.num_fields
        return self.stream.num_classes if isinstance(self.stream, CharacterDrift) else 0

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Of a batch, ``[]``."""
        if isinstance(self.stream, ClickThrough):
            return nn.functional.binary_cross_entropy_with_logits(outputs, targets)
        if isinstance(self.stream, RegimeSwitching):
            return nn.functional.mse_loss(outputs, targets)
        return nn.functional.cross_entropy(outputs.flatten(0, -2), targets.flatten())


DATA = {
    "clicks": Data(ClickThrough(capacity=800, num_test=512)),
    "series": Data(RegimeSwitching(num_regimes=0, flat=True, num_epochs=2, num_test=256)),
    "text": Data(CharacterDrift(num_examples=128, num_epochs=4, batch_size=8, num_test=64)),
}


@functools.cache
def units_of(kind: str) -> pliant.UnitGraph:
    """The hidden units; their names and places stay when the vocabulary grows. A process of one day finds them once."""
    data = DATA[kind]
    return pliant.find_units(data.model(0, 0), (data.day(0, 0).inputs[:4],))


def protection(kind: str) -> pliant.ContinualBackprop:
    """What keeps the network able to learn."""
    return pliant.ContinualBackprop(replacement_rate=RATES[kind], maturity_threshold=100)


# ---- one day ----
class Day:
    """Everything that lives as long as the process; made anew each day, filled from the checkpoint."""

    def __init__(self, kind: str, folder: Path, seed: int, *, protected: bool = True, watched: bool = True) -> None:
        self.kind, self.folder, self.data, self.seed = kind, folder, DATA[kind], seed
        saved = self._saved()
        self.number, self.step = (saved["day"], saved["step"]) if saved else (0, 0)
        self.task = self.data.day(self.number, seed)
        self.model = self.data.model(self.number, seed)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=LEARNING_RATE, fused=True)
        sample = (self.task.inputs[:64],)
        self.handle = pliant.attach(
            self.model,
            self.optimizer,
            protection(kind) if protected else (),
            units=units_of(kind),
            seed=seed,
            where="body",  # not the embeddings: their rows are words, and words come back
            measure_change=sample if protected else None,
            max_change=MAX_CHANGE if protected else None,
        )
        self.monitor = self.live = None
        if watched:
            self.monitor = pliant.monitor(
                self.model,
                self.optimizer,
                units=units_of(kind),
                example_inputs=sample,
                every=64,
                budget=None,
                history=100,
            )
            self.live = pliant.live_twin(
                self.model,
                self.optimizer,
                loss=self.data.loss,
                start="boundary",
                every=200,  # a race every fourth day
                window=40,
                seed=seed,
                make_model=lambda: self.data.model(self.number, seed + 500),
            )
        self.records: list[dict[str, Any]] = []
        self.losses: list[float] = []
        if saved:
            self._go_on(saved)
        self.handle.log_to(folder / "edits.jsonl", max_bytes=1_000_000, backups=3)
        if not saved:
            self.save()

    def _saved(self) -> dict[str, Any] | None:
        path = self.folder / "checkpoint.pt"
        return torch.load(path, weights_only=True) if path.exists() else None

    def _go_on(self, saved: dict[str, Any]) -> None:
        """Old words keep their rows and moments, new ones begin; units keep their ages."""
        report = self.handle.load_grown(saved["model"], saved["optimizer"], saved["handle"])
        if lost := [line for line in report.differences if line.outcome != "extended"]:
            raise SystemExit(f"the checkpoint does not fit the model: {lost[0]}")
        torch.set_rng_state(saved["random"])
        self.records, self.losses = saved["records"], saved["losses"]
        if self.monitor is not None and self.live is not None:
            self.monitor.load_state_dict(saved["monitor"])
            self.live.load_state_dict(saved["live"])

    def save(self) -> None:
        """The whole of it, whole or not at all."""
        state = {
            "day": self.number,
            "step": self.step,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "handle": self.handle.state_dict(),
            "monitor": self.monitor and self.monitor.state_dict(),
            "live": self.live and self.live.state_dict(),
            "random": torch.get_rng_state(),
            "records": self.records,
            "losses": self.losses,
        }
        buffer = io.BytesIO()
        torch.save(state, buffer)
        write_atomically(self.folder / "checkpoint.pt", buffer.getbuffer())

    def run(self, kill_at: int | None = None) -> dict[str, Any]:
        """Train to the end of the day, and leave a checkpoint for the next.

        Args:
            kill_at: The step after which the process is killed, to show that it does not matter.
        """
        batches = list(self._batches())
        if not self.step and self.live is not None:
            self.live.task_boundary()
        before = evaluate(self.data, self.model, self.task, test=False) if not self.step else None
        for step in range(self.step, len(batches)):
            if step == len(batches) - QUIET:
                self.handle.pause()
            batch = self.task.inputs[batches[step]], self.task.targets[batches[step]]
            self.optimizer.zero_grad()
            loss = self.data.loss(self.model(batch[0]), batch[1])
            loss.backward()
            self.optimizer.step()
            if self.live is not None:
                self.live.step(batch)
            if before is not None:  # yesterday's export on today's data: what its users have got
                self.losses, before = [before], None
            self.losses.append(float(loss.detach()))
            self.step = step + 1
            if self.step % CHECKPOINT_EVERY == 0 and self.step < len(batches):
                self.save()
            if kill_at == self.step:
                os.kill(os.getpid(), signal.SIGKILL)
        return self._export()

    def _batches(self) -> Iterator[Tensor]:
        for epoch in range(self.task.num_epochs):
            yield from self.task.order(epoch).split(self.task.batch_size)

    def _export(self) -> dict[str, Any]:
        """Hand the model over, note how the day was, and save for tomorrow."""
        units = sum(group.size for group in self.handle.units if group.name.startswith("body"))
        record = {
            "day": self.number,
            "yesterday_on_today": self.losses[0],
            "training": sum(self.losses[1:]) / len(self.losses[1:]),
            "test": evaluate(self.data, self.model, self.task, test=True),
            "resets": sum(int(count) for count in self.handle.num_resets.values()),
            "words": self.data.words(self.number),
            "immature": sum(int(count) for count in self.handle.immature(QUIET).values()),
            "young": sum(int(count) for count in self.handle.immature().values()),
            "units": units,
            "alarms": [str(alarm) for alarm in self.monitor.alarms] if self.monitor else [],
            "verdict": self.live.outcome if self.live else "",
        }
        buffer = io.BytesIO()
        torch.save(self.model.state_dict(), buffer)
        write_atomically(self.folder / "export.pt", buffer.getbuffer())
        self.handle.resume()
        self.records.append(record)
        self.losses, self.number, self.step = [], self.number + 1, 0
        self.save()
        write_atomically(self.folder / "days.json", json.dumps(self.records, indent=1))
        return record


@torch.no_grad()
def evaluate(data: Data, model: nn.Module, task: Task, *, test: bool) -> float:
    """The loss on a day's test examples, or on its training examples before they were trained on."""
    model.eval()
    inputs, targets = (task.test_inputs, task.test_targets) if test else (task.inputs, task.targets)
    assert inputs is not None
    assert targets is not None
    loss = float(data.loss(model(inputs), targets))
    model.train()
    return loss


# ---- the year: what cron and the cluster do to the job ----
def kill_plan(days: int, share: float, seed: int, num_steps: int = 64) -> list[list[int]]:
    """At which steps each day's processes are killed, one after the other; the last process of a day survives."""
    dice = random.Random(seed)
    plan = []
    for _ in range(days):
        kills = []
        while dice.random() < share and len(kills) < 5:
            kills.append(dice.randint(1, num_steps))
        plan.append(kills)
    return plan


def run_day(kind: str, folder: Path, seed: int, kill_at: int | None, **arm: bool) -> None:
    """One process of a day."""
    torch.set_num_threads(1)
    Day(kind, folder, seed, **arm).run(kill_at)


def year(
    kind: str, folder: Path, days: int, *, seed: int, kills: float, start: str = "new", quiet: bool = False, **arm: bool
) -> list[dict[str, Any]]:
    """Start a process for each day, and another one whenever one is killed.

    Args:
        kind: The kind of data.
        folder: Where the job keeps its files; a year that was interrupted goes on.
        days: How many.
        seed: Of the data and the network.
        kills: The probability that a day's process is killed (and its successor again).
        start: ``"new"``: a new Python for each process; ``"fork"``: a fork of this one, which costs less; ``"here"``:
            in this process, where nothing can be killed.
        quiet: Whether no line is printed for a day.
        arm: Options of :class:`Day`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    plan = kill_plan(days, 0.0 if start == "here" else kills, seed)
    units_of(kind)
    path = folder / "days.json"
    done = len(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else 0
    for number in range(done, days):
        began = time.perf_counter()
        for kill_at in (*plan[number], None):
            if (status := _start(kind, folder, seed, kill_at, start, arm)) not in (0, -signal.SIGKILL):
                raise SystemExit(f"day {number} failed with status {status}")
            if status == 0:
                break
        record = json.loads(path.read_text(encoding="utf-8"))[-1]
        if not quiet:
            seconds = time.perf_counter() - began
            print(f"day {record['day']}: test {record['test']:.3f}, {record['verdict']}, {seconds:.1f} s", flush=True)
    return json.loads(path.read_text(encoding="utf-8"))


def _start(kind: str, folder: Path, seed: int, kill_at: int | None, start: str, arm: dict[str, bool]) -> int:
    """One process; returns how it ended."""
    if start == "here":
        run_day(kind, folder, seed, kill_at, **arm)
        return 0
    if start == "new":
        command = [sys.executable, __file__, "day", "--data", kind, "--folder", str(folder), "--seed", str(seed)]
        command += [] if kill_at is None else ["--kill-at", str(kill_at)]
        command += [f"--no-{name}" for name, on in arm.items() if not on]
        return subprocess.run(command, check=False).returncode
    process = os.fork()
    if process:
        return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    try:
        run_day(kind, folder, seed, kill_at, **arm)
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        os._exit(1)
    os._exit(0)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["year", "day"])
    parser.add_argument("--data", choices=list(DATA), default="clicks")
    parser.add_argument("--folder", type=Path, default=Path("daily_job"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--days", type=int, default=365)
    parser.add_argument("--kills", type=float, default=0.3, help="probability that a day's process is killed")
    parser.add_argument("--start", choices=["new", "fork", "here"], default="new")
    parser.add_argument("--kill-at", type=int, help="kill the process after this step of the day")
    parser.add_argument("--no-protected", action="store_true", help="without the intervention")
    parser.add_argument("--no-watched", action="store_true", help="without monitor and live twin")
    args = parser.parse_args()
    arm = {"protected": not args.no_protected, "watched": not args.no_watched}
    if args.what == "day":
        args.folder.mkdir(parents=True, exist_ok=True)
        run_day(args.data, args.folder, args.seed, args.kill_at, **arm)
    else:
        year(args.data, args.folder, args.days, seed=args.seed, kills=args.kills, start=args.start, **arm)


if __name__ == "__main__":
    main()
