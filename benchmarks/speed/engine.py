"""How many seed-steps a second the ensemble engine trains, beside the published learner and a plain PyTorch loop.

    python benchmarks/speed/engine.py                        # everything, half an hour on a quiet machine
    python benchmarks/speed/engine.py --only mlp-3x100       # cells and curves whose name contains this
    python benchmarks/speed/engine.py --kind cell --fixed-allocator     # the cells once more, kept beside the others
    python benchmarks/speed/engine.py --table                # the tables of the last run, in Markdown

Each cell runs in a process of its own, on one thread. The published learner makes new tensors at every step, so the
allocator is a part of its cost: it is left as it is, unless ``--fixed-allocator`` keeps large buffers in the heap,
which spares it the mapping of fresh pages and changes nothing for the engine. All arms train with continual backprop
(at the published rate for the network of the paper) on the same kind of batches, a block of steps each, in rotating
order; a round gives one ratio of times per step of one seed, and the cell reports the medians over rounds:

``published``
    what the published learner does in a step, one network (``published.py``);
``published_again``
    a second copy of it: what it reads is the error of the measurement. A cell counts only if that is within five per
    cent, and is otherwise measured again;
``plain``
    a plain PyTorch loop, one network, protected by ``pliant.attach``;
``autograd``
    the engine, all seeds stacked, steps through autograd and ``optimizer.step()``;
``engine``
    the engine as it runs, steps by hand. Gathering batches and measuring loss and accuracy are part of it.

Of the cell with one seed the script also measures how fast memory is read, and read and written, in arrays of the
network's size, and says how long the weights alone would take: read once forward, once backward (but for the first
layer), read and written once in the update. The curves show the engine's cost with the number of seeds, and over the
tasks of a long run together with the memory of its process.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.speed.engine_cells import CELLS, Cell  # noqa: E402
from benchmarks.speed.overhead import ENVIRONMENT, in_turn  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "speed" / "engine.json"
STREAMS = "benchmarks.speed.engine_streams"
BLOCK_SECONDS, MAX_SECONDS, ROUNDS, TRIES = 0.25, 3.0, 9, 4
TOLERANCE = 0.05
WARM_UP = 150  # steps: units are mature, and all buffers are there


SEED_COUNTS = {"mlp-3x100": (1, 2, 5, 10, 20, 30, 60, 90), "regression": (1, 10, 30, 100, 300, 1000)}
TASKS = {"mlp-3x100": (40, 400), "random-labels": (60, 2000)}
"""Curves over tasks: how many tasks, and steps of each."""


def experiment(cell: Cell, num_steps: int, num_tasks: int = 1) -> Any:
    """What the engine runs: tasks of so many steps."""
    from pliant.bench.experiment import Experiment

    stream = {"num_examples": num_steps * cell.batch, "batch_size": cell.batch}
    return Experiment(
        (f"{STREAMS}:{cell.stream}", stream),
        [("continual_backprop", {"replacement_rate": cell.rate})],
        ("sgd", {"lr": cell.lr}),
        ("mlp", {"hidden": cell.widths[1:-1]}),
        num_tasks=num_tasks,
    )


class Engine:
    """All seeds in one stack.

    Args:
        cell: what is trained.
        seeds: how many.
        by_hand: None as it runs; False through autograd.
    """

    def __init__(self, cell: Cell, seeds: int, by_hand: bool | None = None) -> None:
        from pliant.bench.engine import Members

        self.cell, self.seeds = cell, seeds
        self.task = 0
        self.members = Members(experiment(cell, 1), range(seeds), None, stacked=True, by_hand=by_hand)
        self.data: Any = None

    def prepare(self, steps: int) -> None:
        """Make the data of the next block, which is not timed."""
        self.members.stream = experiment(self.cell, steps).build_stream()
        self.data = self.members._data(self.task)
        self.task += 1

    def run(self, steps: int) -> tuple[float, float]:
        """Train; wall and processor seconds of one seed."""
        self.prepare(steps)
        wall, cpu = time.perf_counter(), time.process_time()
        self.members._train(self.data)
        return (time.perf_counter() - wall) / self.seeds, (time.process_time() - cpu) / self.seeds

    @property
    def period(self) -> int:
        """Steps between decisions on which units are replaced."""
        return period_of(self.members.handle)

    @property
    def num_resets(self) -> float:
        """Units replaced, per seed."""
        return float(self.members._count_resets().mean())


class Published:
    """The published learner, one network."""

    def __init__(self, cell: Cell) -> None:
        from benchmarks.speed.published import PublishedLearner

        self.learner = PublishedLearner(cell.widths, cell.loss, cell.lr, cell.rate)
        self.batches = batches_of(cell)
        self.done = 0

    def run(self, steps: int) -> tuple[float, float]:
        """Train; wall and processor seconds."""
        learn, batches = self.learner.learn, self.batches
        start = self.done
        wall, cpu = time.perf_counter(), time.process_time()
        for step in range(start, start + steps):
            x, y = batches[step % len(batches)]
            learn(x, y)
        self.done += steps
        return time.perf_counter() - wall, time.process_time() - cpu

    @property
    def num_resets(self) -> float:
        """Units replaced."""
        return float(self.learner.num_replaced)


class Plain:
    """A PyTorch loop as anybody writes it, one network, protected by ``pliant.attach``."""

    def __init__(self, cell: Cell) -> None:
        import torch
        from torch.nn import functional as F

        import pliant
        from pliant.bench.models import MLP

        torch.manual_seed(0)
        self.model = MLP(cell.widths[0], cell.widths[-1], cell.widths[1:-1])
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=cell.lr)
        self.batches = batches_of(cell)
        self.handle = pliant.attach(
            self.model,
            self.optimizer,
            pliant.ContinualBackprop(cell.rate),
            example_inputs=self.batches[0][0],
            init="kaiming_uniform",
        )
        self.loss = {"cross_entropy": F.cross_entropy, "mse": F.mse_loss}[cell.loss]
        self.done = 0

    def run(self, steps: int) -> tuple[float, float]:
        """Train; wall and processor seconds."""
        model, optimizer, batches, loss = self.model, self.optimizer, self.batches, self.loss
        start = self.done
        wall, cpu = time.perf_counter(), time.process_time()
        for step in range(start, start + steps):
            x, y = batches[step % len(batches)]
            optimizer.zero_grad()
            loss(model(x), y).backward()
            optimizer.step()
        self.done += steps
        return time.perf_counter() - wall, time.process_time() - cpu

    @property
    def period(self) -> int:
        """Steps between decisions on which units are replaced."""
        return period_of(self.handle)

    @property
    def num_resets(self) -> float:
        """Units replaced."""
        return float(sum(int(count) for count in self.handle.num_resets.values()))


def period_of(handle: Any) -> int:
    """Steps between the decisions of continual backprop on the group that it looks at least often."""
    return max(int(handle.methods[0].period(group)) for group in handle.units)


def batches_of(cell: Cell, count: int = 256) -> list[tuple[Any, Any]]:
    """The first batches of the stream's task, as single networks see them."""
    task = experiment(cell, count).build_stream().task(0, 0)
    return list(zip(task.inputs.split(cell.batch), task.targets.split(cell.batch), strict=True))


class Turns:
    """An arm whose blocks are as long as they should be: other arms need other numbers of steps for a block.

    Args:
        arm: what is timed.
    """

    def __init__(self, arm: Any) -> None:
        self.arm = arm
        arm.run(WARM_UP)
        seconds = arm.run(40)[0] / 40 * getattr(arm, "seeds", 1)
        self.steps = max(20, round(BLOCK_SECONDS / seconds))
        period = getattr(arm, "period", 1)
        if period * seconds <= MAX_SECONDS:  # whole periods, so that every block has its share of replacements
            self.steps = period * max(1, round(self.steps / period))

    def run(self, _: int) -> tuple[float, float]:
        """Wall and processor seconds of one step of one seed."""
        wall, cpu = self.arm.run(self.steps)
        return wall / self.steps, cpu / self.steps


def measure(cell: Cell, rounds: int) -> dict[str, Any]:
    """One cell, in this process."""
    arms = {
        "published": Turns(Published(cell)),
        "published_again": Turns(Published(cell)),
        "plain": Turns(Plain(cell)),
        "autograd": Turns(Engine(cell, cell.seeds, by_hand=False)),
        "engine": Turns(Engine(cell, cell.seeds)),
    }
    before = {name: turns.arm.num_resets for name, turns in arms.items()}
    times = in_turn(arms, rounds, 0)
    result: dict[str, Any] = {**asdict(cell), "rounds": rounds, "steps": {n: t.steps for n, t in arms.items()}}
    for number, clock in enumerate(("wall", "cpu")):
        per_step = {name: [t[number] for t in own] for name, own in times.items()}
        result[clock] = {
            "microseconds": {name: 1e6 * statistics.median(own) for name, own in per_step.items()},
            "over_engine": {
                name: statistics.median(a / b for a, b in zip(own, per_step["engine"], strict=True))
                for name, own in per_step.items()
            },
            "again": statistics.median(
                a / b for a, b in zip(per_step["published_again"], per_step["published"], strict=True)
            ),
        }
    result["replaced"] = {name: turns.arm.num_resets - before[name] for name, turns in arms.items()}
    if cell.seeds == 1:
        result["memory"] = memory_bound(cell)
    return result


def memory_bound(cell: Cell) -> dict[str, float]:
    """How long the weights alone take to come and go, with the speeds of memory measured here, in microseconds.

    Reading is timed by sums and by scalar products, of which the faster counts, reading and writing by a scaling in
    place: each over matrices of the network's sizes, in its order, so that what stays in a cache does here as well.
    """
    import torch

    weights = [torch.rand(b, a) for a, b in zip(cell.widths, cell.widths[1:], strict=False)]

    def add_up() -> None:
        for weight in weights:
            weight.sum()

    def multiply() -> None:
        for weight in weights:
            torch.dot(weight.view(-1), weight.view(-1))

    def change() -> None:
        for weight in weights:
            weight.mul_(0.999999)

    nbytes = sum(weight.numel() * 4 for weight in weights)
    behind = sum(weight.numel() * 4 for weight in weights[1:])
    reading, changing = min(best_of(add_up), best_of(multiply)), best_of(change)
    return {
        "megabytes": nbytes / 1e6,
        "read_gigabytes_per_second": nbytes / reading / 1e9,
        "change_gigabytes_per_second": 2 * nbytes / changing / 1e9,
        "bound_microseconds": 1e6 * (reading + reading * behind / nbytes + changing),
    }


def best_of(work: Callable[[], None], times: int = 25, repeats: int = 8) -> float:
    """Seconds, the least over several repeats of their mean."""
    found = []
    for _ in range(repeats):
        start = time.perf_counter()
        for _ in range(times):
            work()
        found.append((time.perf_counter() - start) / times)
    return min(found)


def over_seeds(cell: Cell, rounds: int) -> list[dict[str, float]]:
    """Microseconds of a seed-step for growing numbers of seeds, and the megabytes of their weights."""
    arms = {str(count): Turns(Engine(cell, count)) for count in SEED_COUNTS[cell.name]}
    times = in_turn(arms, rounds, 0)
    per_seed = sum((a + 1) * b * 4 for a, b in zip(cell.widths, cell.widths[1:], strict=False)) / 1e6
    return [
        {
            "seeds": int(name),
            "megabytes": int(name) * per_seed,
            "microseconds": 1e6 * statistics.median(t[0] for t in own),
        }
        for name, own in times.items()
    ]


def over_tasks(cell: Cell) -> dict[str, Any]:
    """Seconds of each task of a long run, evaluation included, and the memory of the process after it."""
    from pliant.bench.engine import Members

    count, steps = TASKS[cell.name]
    members = Members(experiment(cell, steps, count), range(cell.seeds), None, stacked=True)
    seconds, megabytes = [], []
    last = 0.0

    def note(state: Any) -> None:
        nonlocal last
        seconds.append(state.seconds - last)
        last = state.seconds
        megabytes.append(resident_megabytes())

    members.run(note)
    half = count // 2
    first, second = statistics.median(seconds[2:half]), statistics.median(seconds[half:])
    return {
        "tasks": count,
        "steps": steps,
        "seeds": cell.seeds,
        "seconds": [round(value, 4) for value in seconds],
        "second_half_over_first": second / first,
        "megabytes": [round(value, 1) for value in megabytes],
        "growth_megabytes": megabytes[-1] - megabytes[half],
    }


def resident_megabytes() -> float:
    """What this process holds in memory now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


JOBS: dict[str, Callable[[Cell, int], Any]] = {
    "cell": measure,
    "seeds": over_seeds,
    "tasks": lambda cell, rounds: over_tasks(cell),
}


def jobs() -> list[tuple[str, Cell]]:
    """Everything that is measured, in order."""
    curves = [("seeds", c) for c in CELLS if c.name in SEED_COUNTS] + [("tasks", c) for c in CELLS if c.name in TASKS]
    return [("cell", cell) for cell in CELLS] + curves


def in_process(kind: str, cell: Cell, rounds: int, fixed_allocator: bool) -> Any:
    """Measure in a process of its own; a cell whose two equal arms disagree is measured again."""
    command = [sys.executable, __file__, "--job", kind, cell.name, "--rounds", str(rounds)]
    chosen = {name: text for name, text in ENVIRONMENT.items() if fixed_allocator or not name.startswith("MALLOC")}
    environment = {**os.environ, **chosen, "PYTHONPATH": str(ROOT)}
    for attempt in range(1, TRIES + 1):
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{kind} {cell.name} failed:\n{done.stderr}")
        result = json.loads(done.stdout.splitlines()[-1])
        if kind != "cell":
            return result
        result["attempts"], result["clock"] = attempt, trusted(result)
        if result["clock"] is not None:
            break
    return result


def trusted(result: Mapping[str, Any]) -> str | None:
    """The clock by which two equal arms agree; None if neither."""
    return next((clock for clock in ("wall", "cpu") if abs(result[clock]["again"] - 1) <= TOLERANCE), None)


def table(results: Mapping[str, Any]) -> str:
    """The results in Markdown."""
    lines = [
        "| cell | seeds | published | plain loop | autograd | engine | published / engine | asked | again | by |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for cell in results.get("cell", {}).values():
        clock = cell["clock"] or "wall"
        micro, ratio = cell[clock]["microseconds"], cell[clock]["over_engine"]
        shown = " | ".join(f"{micro[name]:.3g}" for name in ("published", "plain", "autograd", "engine"))
        by = {"wall": "wall clock", "cpu": "processor time", None: "not counted"}[cell["clock"]]
        where = f"{cell['name']}, batch {cell['batch']}" + ", fixed allocator" * cell["fixed_allocator"]
        lines.append(
            f"| {where} | {cell['seeds']} | {shown} | **{ratio['published']:.1f}** | "
            f"{cell['at_least']:g} | {cell[clock]['again']:.3f} | {by} |"
        )
    lines.append("\nMicroseconds of one step of one seed.\n")
    for name, cell in results.get("cell", {}).items():
        if "memory" in cell:
            memory = cell["memory"]
            engine = cell[cell["clock"] or "wall"]["microseconds"]["engine"]
            lines.append(
                f"{name}: the weights ({memory['megabytes']:.0f} MB) alone take {memory['bound_microseconds']:.0f} us "
                f"(read at {memory['read_gigabytes_per_second']:.1f} GB/s, read and written at "
                f"{memory['change_gigabytes_per_second']:.1f} GB/s); the engine's step is "
                f"{engine / memory['bound_microseconds']:.2f} of that.\n"
            )
    for name, curve in results.get("seeds", {}).items():
        lines += [f"\n{name}, seeds: us per seed-step (MB of weights)\n", _row(curve)]
    for name, curve in results.get("tasks", {}).items():
        lines.append(
            f"\n{name}: {curve['tasks']} tasks of {curve['steps']} steps, {curve['seeds']} seeds: a task of the second "
            f"half takes {curve['second_half_over_first']:.3f} times one of the first; memory grows by "
            f"{curve['growth_megabytes']:.1f} MB over the second half, at {curve['megabytes'][-1]:.0f} MB."
        )
    return "\n".join(lines)


def _row(curve: Sequence[Mapping[str, float]]) -> str:
    return ", ".join(f"{p['seeds']:.0f}: {p['microseconds']:.3g} ({p['megabytes']:.3g})" for p in curve)


def main() -> None:
    """Measure what was asked for, each in its own process, and write it after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="cells and curves whose name contains this")
    parser.add_argument("--kind", default="", choices=["", *JOBS], help="cells alone, or one of the curves")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--fixed-allocator", action="store_true", help="keep large buffers in the heap")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="print the tables of the results, measure nothing")
    parser.add_argument("--job", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job:
        import torch

        torch.set_num_threads(1)
        kind, name = options.job
        print(json.dumps(JOBS[kind](next(cell for cell in CELLS if cell.name == name), options.rounds)))
        return
    if options.table:
        print(table(json.loads(options.out.read_text())))
        return
    from pliant.bench.environment import run_meta

    meta = run_meta()
    results: dict[str, Any] = {"meta": meta}
    if options.out.exists() and (
        options.only or options.kind or options.fixed_allocator
    ):  # what is not measured again stays
        results = {**json.loads(options.out.read_text()), "meta": meta}
    for kind, cell in jobs():
        if options.only not in cell.name or options.kind not in ("", kind):
            continue
        found = in_process(kind, cell, options.rounds, options.fixed_allocator)
        if kind == "cell":
            found |= {"commit": meta["git_commit"], "fixed_allocator": options.fixed_allocator}
            clock = found["clock"] or "wall"
            print(
                cell.name, found["clock"], {n: round(v, 2) for n, v in found[clock]["over_engine"].items()}, flush=True
            )
        key = cell.name + "-fixed-allocator" * (options.fixed_allocator and kind == "cell")
        results.setdefault(kind, {})[key] = found
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(results, indent=1) + "\n")
    print(table(results))


if __name__ == "__main__":
    main()
