"""What monitoring costs: a training step with a monitor of default settings over the plain one.

    python benchmarks/speed/monitor.py                # both cells, about ten minutes on a quiet machine
    python benchmarks/speed/monitor.py --only gpt2    # cells whose name contains this
    python benchmarks/speed/monitor.py --quick        # a few steps, to see that it works; its numbers mean nothing
    python benchmarks/speed/monitor.py --table        # the table of the last run, in Markdown

Each cell runs in a process of its own, on one thread, with fixed thresholds of the allocator. Copies of one network are
trained in turn on the same batches, a block of steps each, in rotating order: plain, plain again, and monitored with
default settings. A block is as long as the monitor's own period (500 steps), so that each holds one light reading and
what of the heavy metrics was due. A round gives one ratio of times per copy against the first; the cell reports
their medians, and the ratio of the totals beside them: heavy metrics are measured in some blocks and not in others, so
the totals are what counts. What the second plain copy reads is the error of the measurement: a cell counts only if that
is within one per cent, by the wall clock or else by processor time, and is otherwise measured again.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from overhead import ENVIRONMENT, TOLERANCE, build, in_turn, ratios

RESULTS = Path(__file__).resolve().parents[1] / "results" / "speed" / "monitor.json"
ARMS = ("plain", "plain_again", "monitored")
CELLS = ("mlp-512-batch128", "gpt2-batch8")
PERIOD, WARM_UP, ROUNDS, TRIES = 500, 100, 11, 4
LIMIT = 1.01


def gpt2() -> tuple[Any, list[Any]]:
    """A small GPT-2: 4 blocks of 128 dimensions, sequences of 64 tokens."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=256, n_positions=64, n_embd=128, n_layer=4, n_head=4, bos_token_id=0, eos_token_id=0)
    return GPT2LMHeadModel(config), [torch.randint(0, 256, (8, 64)) for _ in range(32)]


class Arm:
    """One copy of the network and its loop."""

    def __init__(self, kind: str, cell: str, every: int | None = None) -> None:
        import torch

        import pliant

        torch.manual_seed(0)
        self.is_language = cell.startswith("gpt2")
        if self.is_language:
            self.model, self.batches = gpt2()
            self.optimizer: Any = torch.optim.AdamW(self.model.parameters(), lr=1e-4)
            example: Any = {"input_ids": self.batches[0]}
        else:
            self.model, inputs, classes = build("mlp-512")
            self.batches = [(inputs(128), torch.randint(0, classes, (128,))) for _ in range(32)]
            self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-4)
            example = self.batches[0][0]
        self.done = 0
        self.monitor = None
        if kind == "monitored":
            self.monitor = pliant.monitor(self.model, self.optimizer, example_inputs=example, every=every)

    def run(self, steps: int) -> tuple[float, float]:
        """Train; wall and processor seconds."""
        import time

        from torch.nn.functional import cross_entropy

        wall, cpu = time.perf_counter(), time.process_time()
        for step in range(self.done, self.done + steps):
            batch = self.batches[step % 32]
            self.optimizer.zero_grad()
            if self.is_language:
                self.model(input_ids=batch, labels=batch).loss.backward()
            else:
                cross_entropy(self.model(batch[0]), batch[1]).backward()
            self.optimizer.step()
        self.done += steps
        return time.perf_counter() - wall, time.process_time() - cpu


def measure(cell: str, rounds: int, period: int) -> dict[str, Any]:
    """One cell, in this process."""
    import torch

    torch.set_num_threads(1)
    every = None if period >= PERIOD else period  # the default, but for a quick look
    arms = {kind: Arm(kind, cell, every) for kind in ARMS}
    for arm in arms.values():
        arm.run(min(WARM_UP, period))
    times = in_turn(arms, rounds, period)
    clocks = ratios(times, "plain")
    watch = arms["monitored"].monitor
    assert watch is not None
    counts: dict[str, int] = {}
    for reading in watch.history:
        for metric in reading.values:
            counts[metric] = counts.get(metric, 0) + 1
    return {
        "cell": cell,
        "milliseconds_per_step": min(wall for wall, _ in times["plain"]) / period * 1e3,
        "steps": rounds * period,
        "ratios": clocks,
        "clock": next((c for c, r in clocks.items() if abs(r["plain_again"]["totals"] - 1) <= TOLERANCE), None),
        "every": watch.every,
        "own_account": watch.cost,
        "readings": counts,
        "cadence": {metric: round(n) if n < math.inf else None for metric, n in watch.cadence.items()},
        "alarms": [str(alarm) for alarm in watch.alarm_log],
    }


def measure_in_process(cell: str, rounds: int, period: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--cell", cell, "--rounds", str(rounds), "--period", str(period)]
    for attempt in range(1, TRIES + 1):
        done = subprocess.run(command, env={**os.environ, **ENVIRONMENT}, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{cell} failed:\n{done.stderr}")
        result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        result["attempts"] = attempt
        if result["clock"] is not None or period < PERIOD:
            break
    return result


def table(results: dict[str, Any]) -> str:
    """The results in Markdown."""
    lines = [
        "| cell | plain step | plain again | monitored | median of the blocks | by | by the monitor's own account |",
        "|---|---|---|---|---|---|---|",
    ]
    for cell in results["cells"]:
        found = cell["ratios"][cell["clock"] or "wall"]
        shown = [
            *(f"{found[kind]['totals']:.4f}" for kind in ARMS[1:]),
            f"{found['monitored']['median']:.4f}",
        ]
        if cell["clock"] is None:
            shown = [f"({text})" for text in shown]
        by = {"wall": "wall clock", "cpu": "processor time", None: "not counted"}[cell["clock"]]
        lines.append(
            f"| {cell['cell']} | {cell['milliseconds_per_step']:.2f} ms | {' | '.join(shown)} | {by} "
            f"| {100 * cell['own_account']:.2f} % |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="cells whose name contains this")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--period", type=int, default=PERIOD, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="print the table of the results, measure nothing")
    parser.add_argument("--quick", action="store_true", help="two short rounds; nothing is kept")
    parser.add_argument("--cell", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.cell:
        print(json.dumps(measure(options.cell, options.rounds, options.period)))
        return
    if options.table:
        print(table(json.loads(options.out.read_text())))
        return
    from pliant.bench.environment import run_meta

    rounds, period = (2, 20) if options.quick else (options.rounds, options.period)
    meta = run_meta()
    known: dict[str, Any] = {}
    if options.only and not options.quick and options.out.exists():  # the others stay, with the commit of theirs
        known = {cell["cell"]: cell for cell in json.loads(options.out.read_text())["cells"]}
    results: dict[str, Any] = {"limit": LIMIT, "meta": meta, "cells": []}
    for cell in CELLS:
        if options.only in cell:
            known[cell] = {**measure_in_process(cell, rounds, period), "commit": meta["git_commit"]}
            results["cells"] = [known[other] for other in CELLS if other in known]
            if not options.quick:
                options.out.parent.mkdir(parents=True, exist_ok=True)
                options.out.write_text(json.dumps(results, indent=1) + "\n")
    print(table(results))


if __name__ == "__main__":
    main()
