"""What a changing wrapper costs: a step of a wrapped environment over one of the plain environment.

    python benchmarks/speed/environments.py                 # all cells, about five minutes on a quiet machine
    python benchmarks/speed/environments.py --only ant      # cells whose name contains this
    python benchmarks/speed/environments.py --quick         # a few steps, to see that it works; nothing is kept
    python benchmarks/speed/environments.py --table         # the table of the last run, in Markdown

Each cell runs in a process of its own, on one thread. Three copies of one environment take the same actions from the
same beginning, a block of steps each, in rotating order: plain, plain again, and wrapped. The wrapper counts every step
and reports the shift; its schedule starts with the environment as it is, and no change comes, so that all three go
through the same states and the simulator does the same work. What a change itself takes is measured beside it, and told
as a share of the steps between two changes of the preset. A round gives one ratio of times per copy against the first;
the cell reports their medians. What the second plain copy reads is the error of the measurement: a cell counts only if
that is within half a per cent, by the wall clock or else by processor time, and is otherwise measured again.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from overhead import ENVIRONMENT, in_turn, ratios

RESULTS = Path(__file__).resolve().parents[1] / "results" / "speed" / "environments.json"
ARMS = ("plain", "plain_again", "wrapped")
CELLS = (
    *("slippery_ant", "slippery_hopper", "slippery_walker", "changing_gravity", "changing_wind", "changing_gain"),
    *("changing_mass", "permuted_hopper"),
)
LIMIT, TOLERANCE = 1.01, 0.005
BLOCK_SECONDS, WARM_UP, ROUNDS, TRIES = 0.25, 300, 31, 4
NEVER = 10**15  # steps until a change that does not come


class Arm:
    """One copy of the environment, and the actions that all of them take."""

    def __init__(self, kind: str, cell: str) -> None:
        import gymnasium
        import numpy as np

        from pliant.bench.rl.environments import ENVIRONMENTS, ShiftSchedule, make

        preset = ENVIRONMENTS[cell]
        if kind == "wrapped":
            schedule = ShiftSchedule(preset.schedule.values, NEVER, starts_unchanged=True)
            self.environment = make(cell, schedule=schedule)
        else:
            self.environment = gymnasium.make(preset.ids[0], disable_env_checker=True, **preset.options)
        low, high = self.environment.action_space.low, self.environment.action_space.high
        self.actions = np.random.default_rng(0).uniform(low, high, (4096, len(low))).astype(np.float32)
        self.environment.reset(seed=0)
        self.done = 0

    def run(self, steps: int) -> tuple[float, float]:
        """Live; wall and processor seconds."""
        environment, actions = self.environment, self.actions
        start = self.done
        wall, cpu = time.perf_counter(), time.process_time()
        for step in range(start, start + steps):
            _, _, terminated, truncated, _ = environment.step(actions[step % 4096])
            if terminated or truncated:
                environment.reset()
        result = time.perf_counter() - wall, time.process_time() - cpu
        self.done += steps
        return result

    def change_microseconds(self, times: int = 200) -> float:
        """Processor time of one change, values drawn included."""
        begin = time.process_time()
        for shift in range(1, times + 1):
            self.environment.set_shift(shift)
        return (time.process_time() - begin) / times * 1e6


def measure(cell: str, rounds: int, block_seconds: float) -> dict[str, Any]:
    """One cell, in this process."""
    import numpy as np

    from pliant.bench.rl.environments import ENVIRONMENTS

    arms = {kind: Arm(kind, cell) for kind in ARMS}
    step = min(arm.run(WARM_UP)[1] for arm in arms.values()) / WARM_UP
    block = max(10, round(block_seconds / step))
    clocks = ratios(times := in_turn(arms, rounds, block), "plain")
    states = [arm.environment.unwrapped.data.qpos.copy() for arm in arms.values()]
    assert all(np.array_equal(states[0], state) for state in states), "the copies did not live through the same"
    step_microseconds = statistics.median(t[1] for t in times["plain"]) / block * 1e6
    change = arms["wrapped"].change_microseconds()
    trusted = [clock for clock in ("wall", "cpu") if abs(clocks[clock]["plain_again"]["median"] - 1) <= TOLERANCE]
    return {
        "cell": cell,
        "microseconds_per_step": step_microseconds,
        "microseconds_per_change": change,
        "change_share": change / (step_microseconds * ENVIRONMENTS[cell].schedule.every),
        "block": block,
        "rounds": rounds,
        "ratios": clocks,
        "clock": trusted[0] if trusted else None,
    }


def measure_in_process(cell: str, rounds: int, block_seconds: float, tries: int = TRIES) -> dict[str, Any]:
    command = [sys.executable, __file__, "--cell", cell, "--rounds", str(rounds), "--block-seconds", str(block_seconds)]
    for attempt in range(1, tries + 1):
        done = subprocess.run(command, env={**os.environ, **ENVIRONMENT}, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{cell} failed:\n{done.stderr}")
        result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        result["attempts"] = attempt
        if result["clock"] is not None:
            break
    return result


def table(results: dict[str, Any]) -> str:
    """The results in Markdown."""
    lines = [
        "| environment | plain step | plain again | wrapped | by | one change | its share of the steps between |",
        "|---|---|---|---|---|---|---|",
    ]
    for cell in results["cells"]:
        arms = cell["ratios"][cell["clock"] or "wall"]
        shown = [f"{arms[kind]['median']:.4f}" for kind in ARMS[1:]]
        if cell["clock"] is None:
            shown = [f"({text})" for text in shown]
        by = {"wall": "wall clock", "cpu": "processor time", None: "not counted"}[cell["clock"]]
        lines.append(
            f"| {cell['cell']} | {cell['microseconds_per_step']:.0f} µs | {' | '.join(shown)} | {by} "
            f"| {cell['microseconds_per_change']:.0f} µs | {cell['change_share']:.1e} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="cells whose name contains this")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--block-seconds", type=float, default=BLOCK_SECONDS, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="print the table of the results, measure nothing")
    parser.add_argument("--quick", action="store_true", help="two short rounds; nothing is kept")
    parser.add_argument("--cell", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.cell:
        print(json.dumps(measure(options.cell, options.rounds, options.block_seconds)))
        return
    if options.table:
        print(table(json.loads(options.out.read_text())))
        return
    from pliant.bench.environment import run_meta

    rounds, block_seconds, tries = (2, 0.02, 1) if options.quick else (options.rounds, options.block_seconds, TRIES)
    meta = run_meta()
    known: dict[str, Any] = {}
    if options.only and not options.quick and options.out.exists():  # the others stay, with the commit of theirs
        known = {cell["cell"]: cell for cell in json.loads(options.out.read_text())["cells"]}
    results: dict[str, Any] = {"limit": LIMIT, "meta": meta, "cells": []}
    for cell in CELLS:
        if options.only in cell:
            known[cell] = {**measure_in_process(cell, rounds, block_seconds, tries), "commit": meta["git_commit"]}
            results["cells"] = [known[other] for other in CELLS if other in known]
            if not options.quick:
                options.out.parent.mkdir(parents=True, exist_ok=True)
                options.out.write_text(json.dumps(results, indent=1) + "\n")
    print(table(results))


if __name__ == "__main__":
    main()
