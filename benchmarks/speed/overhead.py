"""What a protected training step costs over the plain one, with continual backprop replacing units as it goes.

    python benchmarks/speed/overhead.py                      # all cells, about half an hour on a quiet machine
    python benchmarks/speed/overhead.py --only mlp-100       # cells whose name contains this
    python benchmarks/speed/overhead.py --table              # the table of the last run, in Markdown

Each cell runs in a process of its own, on one thread, with fixed thresholds of the allocator. Four copies of one
network are trained in turn on the same batches, a block of steps each, in rotating order: plain, plain again,
protected with the default cadence, and protected with statistics at every step. A round gives one ratio of times per
copy against the first; the cell reports their medians, and the ratio of the totals beside them. What the second plain
copy reads is the error of the measurement: a cell counts only if that is within one per cent, by the wall clock or
else by processor time, and is otherwise measured again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parents[1] / "results" / "speed" / "overhead.json"
ARMS = ("plain", "plain_again", "default", "every_step")
REPLACEMENT_RATE = 1e-4
WARM_UP = {"mlp": 130, "convnet": 400}  # steps; the narrow layers of the latter decide every 630 steps
PERIOD = 40  # whole periods of samples, and of decisions on the widest layers
BLOCK_SECONDS, ROUNDS, TRIES = 0.12, 11, 4
TOLERANCE = 0.01
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    # buffers of many megabytes stay in the heap: otherwise each step maps and clears its pages anew
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 32),
    "MALLOC_ARENA_MAX": "1",
}


@dataclass(frozen=True)
class Cell:
    """One network, batch size and optimizer."""

    network: str
    batch: int
    optimizer: str

    @property
    def name(self) -> str:
        """As on the command line and in the results."""
        return f"{self.network}-batch{self.batch}-{self.optimizer}"


CELLS = [
    *(
        Cell(f"mlp-{width}", batch, kind)
        for width in (100, 512, 2000)
        for batch in (1, 16, 128)
        for kind in ("sgd", "adam")
    ),
    *(Cell("convnet", 100, kind) for kind in ("sgd", "adam")),
]


def build(network: str) -> tuple[Any, Callable[[int], Any], int]:
    """The network, its inputs, and the number of classes."""
    import torch
    from torch import nn

    if network == "convnet":  # Continual ImageNet: 32 x 32 pixels, two classes at a time
        layers: list[nn.Module] = []
        for inputs, outputs, kernel in ((3, 32, 5), (32, 64, 3), (64, 128, 3)):
            layers += [nn.Conv2d(inputs, outputs, kernel), nn.ReLU(), nn.MaxPool2d(2)]
        layers += [nn.Flatten(), nn.Linear(512, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 2)]
        return nn.Sequential(*layers), lambda batch: torch.rand(batch, 3, 32, 32), 2
    width = int(network.removeprefix("mlp-"))
    sizes = (784, width, width, width, 10)
    layers = []
    for inputs, outputs in itertools.pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1]), lambda batch: torch.rand(batch, 784), 10


class Arm:
    """One copy of the network and its loop."""

    def __init__(self, kind: str, cell: Cell) -> None:
        import torch

        import pliant

        torch.manual_seed(0)
        self.model, inputs, classes = build(cell.network)
        parameters = self.model.parameters()
        self.optimizer = (
            torch.optim.Adam(parameters, lr=1e-4) if cell.optimizer == "adam" else torch.optim.SGD(parameters, lr=3e-3)
        )
        self.batches = [(inputs(cell.batch), torch.randint(0, classes, (cell.batch,))) for _ in range(32)]
        self.done, self.handle = 0, None
        if kind in ("default", "every_step"):
            method = pliant.ContinualBackprop(REPLACEMENT_RATE, sample_every=1 if kind == "every_step" else None)
            self.handle = pliant.attach(self.model, self.optimizer, method, example_inputs=self.batches[0][0])

    def run(self, steps: int) -> tuple[float, float]:
        """Train; wall and processor seconds."""
        from torch.nn.functional import cross_entropy

        model, optimizer, batches = self.model, self.optimizer, self.batches
        start = self.done
        wall, cpu = time.perf_counter(), time.process_time()
        for step in range(start, start + steps):
            x, y = batches[step % 32]
            optimizer.zero_grad()
            cross_entropy(model(x), y).backward()
            optimizer.step()
        result = time.perf_counter() - wall, time.process_time() - cpu
        self.done += steps
        return result

    @property
    def num_resets(self) -> int:
        """Units replaced since the beginning."""
        return sum(int(count) for count in self.handle.num_resets.values()) if self.handle else 0


def measure(cell: Cell, rounds: int) -> dict[str, Any]:
    """One cell, in this process."""
    import torch

    torch.set_num_threads(1)
    arms = {kind: Arm(kind, cell) for kind in ARMS}
    warm_up = WARM_UP.get(cell.network, WARM_UP["mlp"])
    seconds = [arm.run(warm_up)[0] for arm in arms.values()]
    step = min(seconds) / warm_up
    block = max(PERIOD, PERIOD * round(BLOCK_SECONDS / step / PERIOD))
    before = {kind: arm.num_resets for kind, arm in arms.items()}
    times = in_turn(arms, rounds, block)
    clocks = ratios(times, "plain")
    return {
        "cell": cell.name,
        "microseconds_per_step": statistics.median(t[0] for t in times["plain"]) / block * 1e6,
        "block": block,
        "rounds": rounds,
        "replacements": {kind: arm.num_resets - before[kind] for kind, arm in arms.items() if arm.handle},
        "ratios": clocks,
        "clock": trusted(clocks),
    }


def in_turn(arms: Mapping[str, Any], rounds: int, block: int) -> dict[str, list[tuple[float, float]]]:
    """Wall and processor seconds of each arm's blocks of steps, the arms taking turns in rotating order."""
    import gc

    names = list(arms)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for index in range(rounds):
        for offset in range(len(names)):
            name = names[(index + offset) % len(names)]
            gc.collect()
            times[name].append(arms[name].run(block))
    return times


def ratios(times: Mapping[str, list[tuple[float, float]]], to: str) -> dict[str, dict[str, dict[str, float]]]:
    """By clock and arm: the median over rounds of its time over that of another arm, and the ratio of the totals."""
    return {
        clock: {
            name: {
                "median": statistics.median(a[number] / b[number] for a, b in zip(mine, times[to], strict=True)),
                "totals": sum(a[number] for a in mine) / sum(b[number] for b in times[to]),
            }
            for name, mine in times.items()
            if name != to
        }
        for number, clock in enumerate(("wall", "cpu"))
    }


def trusted(clocks: dict[str, Any]) -> str | None:
    """The clock by which two plain copies agree; ``None`` if neither."""
    for clock, ratios in clocks.items():
        if abs(ratios["plain_again"]["median"] - 1) <= TOLERANCE:
            return clock
    return None


def measure_in_process(name: str, command: Sequence[str], tries: int = TRIES) -> dict[str, Any]:
    """What a command prints in a process of its own, again until the plain copies agree or ``tries`` are used up."""
    for attempt in range(1, tries + 1):
        done = subprocess.run(
            [sys.executable, *command],
            env={**os.environ, **ENVIRONMENT},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise SystemExit(f"{name} failed:\n{done.stderr}")
        result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        result["attempts"] = attempt
        if result["clock"] is not None:
            break
    return result


def geometric_mean(values: list[float]) -> float:
    return math.exp(statistics.fmean(math.log(value) for value in values))


def table(results: dict[str, Any]) -> str:
    """The results in Markdown."""
    lines = [
        "| cell | plain step | plain again | default | statistics every step | by | units replaced |",
        "|---|---|---|---|---|---|---|",
    ]
    counted: dict[str, list[float]] = {"default": [], "every_step": []}
    for cell in results["cells"]:
        ratios = cell["ratios"][cell["clock"] or "wall"]
        shown = [f"{ratios[kind]['median']:.3f}" for kind in ARMS[1:]]
        if cell["clock"] is None:
            shown = [f"({text})" for text in shown]
        else:
            for kind in counted:
                counted[kind].append(ratios[kind]["median"])
        step = f"{cell['microseconds_per_step'] / 1000:.2f} ms"
        by = {"wall": "wall clock", "cpu": "processor time", None: "not counted"}[cell["clock"]]
        replaced = ", ".join(str(number) for number in cell["replacements"].values())
        lines.append(f"| {cell['cell']} | {step} | {' | '.join(shown)} | {by} | {replaced} |")
    means = {kind: geometric_mean(values) if values else math.nan for kind, values in counted.items()}
    worst = {kind: max(values, default=math.nan) for kind, values in counted.items()}
    total = f"{len(counted['default'])} of {len(results['cells'])} cells"
    lines.append(
        f"| **geometric mean**, {total} | | | **{means['default']:.3f}** | **{means['every_step']:.3f}** | | |"
    )
    lines.append(f"| **worst cell** | | | **{worst['default']:.3f}** | **{worst['every_step']:.3f}** | | |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="cells whose name contains this")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="print the table of the results, measure nothing")
    parser.add_argument("--cell", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.cell:
        chosen = next(cell for cell in CELLS if cell.name == options.cell)
        print(json.dumps(measure(chosen, options.rounds)))
        return
    if options.table:
        print(table(json.loads(options.out.read_text())))
        return
    from pliant.bench.environment import run_meta

    meta = run_meta()
    known: dict[str, Any] = {}
    if options.only and options.out.exists():  # cells that are not measured again stay, with the commit of theirs
        known = {cell["cell"]: cell for cell in json.loads(options.out.read_text())["cells"]}
    results: dict[str, Any] = {"replacement_rate": REPLACEMENT_RATE, "meta": meta, "cells": []}
    for cell in CELLS:
        if options.only in cell.name:
            command = [__file__, "--cell", cell.name, "--rounds", str(options.rounds)]
            found = measure_in_process(cell.name, command)
            shown = known[cell.name] = {**found, "commit": meta["git_commit"]}
            ratios = shown["ratios"][shown["clock"] or "wall"]
            print(cell.name, shown["clock"], *(f"{kind} {ratios[kind]['median']:.3f}" for kind in ARMS[1:]), flush=True)
            results["cells"] = [known[other.name] for other in CELLS if other.name in known]
            options.out.parent.mkdir(parents=True, exist_ok=True)
            options.out.write_text(json.dumps(results, indent=1) + "\n")
    print(table(results))


if __name__ == "__main__":
    main()
