"""What protection and monitoring cost an agent of Stable-Baselines3, over the plain ``learn()``, rollouts included.

    python benchmarks/speed/sb3.py                # both cells, about ten minutes on a quiet machine
    python benchmarks/speed/sb3.py --only ppo     # cells whose name contains this
    python benchmarks/speed/sb3.py --quick        # two short rounds, to see that it works; its numbers mean nothing
    python benchmarks/speed/sb3.py --table        # the table of the last run, in Markdown

Each cell runs in a process of its own, on one thread, with fixed thresholds of the allocator. Agents with the default
settings of Stable-Baselines3 learn Ant-v5 in turn, a block of time steps each, in rotating order: plain, plain again,
with continual backprop, and with continual backprop and the default monitor. The number of a cell is the median time of
an arm's blocks over that of the plain one's. What the second plain agent reads is the error of the measurement: it does
exactly the same as the first, and a cell counts only if its ratio is within one per cent, by the wall clock or else by
processor time, and is otherwise measured again.
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

from overhead import ENVIRONMENT, TOLERANCE, in_turn, ratios

RESULTS = Path(__file__).resolve().parents[1] / "results" / "speed" / "sb3.json"
ARMS = ("plain", "plain_again", "continual_backprop", "and_monitor")
CELLS = {"ppo-ant": 2048, "sac-ant": 250}
"""Agent and environment: time steps in a block. One of PPO is its default rollout, and then 320 gradient steps."""
WARM_UP, ROUNDS, TRIES = 2, 15, 4
LIMIT = 1.03


class Arm:
    """One agent."""

    def __init__(self, kind: str, cell: str, block: int) -> None:
        from stable_baselines3 import PPO, SAC

        import pliant

        if cell.startswith("ppo"):
            self.agent: Any = PPO("MlpPolicy", "Ant-v5", n_steps=block, device="cpu", seed=0)
        else:
            self.agent = SAC("MlpPolicy", "Ant-v5", device="cpu", seed=0, buffer_size=50_000, learning_starts=100)
        self.protect: Any = None
        if not kind.startswith("plain"):
            method = pliant.ContinualBackprop(replacement_rate=1e-4, maturity_threshold=1000)
            self.protect = pliant.sb3.Protect(method, monitor=kind == "and_monitor")

    def run(self, steps: int) -> tuple[float, float]:
        """Learn for some time steps; wall and processor seconds."""
        wall, cpu = time.perf_counter(), time.process_time()
        self.agent.learn(steps, callback=self.protect, reset_num_timesteps=False)
        return time.perf_counter() - wall, time.process_time() - cpu


def measure(cell: str, rounds: int, block: int) -> dict[str, Any]:
    """One cell, in this process."""
    import torch

    torch.set_num_threads(1)
    arms = {kind: Arm(kind, cell, block) for kind in ARMS}
    for arm in arms.values():
        for _ in range(WARM_UP):
            arm.run(block)
    times = in_turn(arms, rounds, block)
    clocks = {
        clock: {
            name: found[name] | {"of_medians": _median(times[name], number) / _median(times["plain"], number)}
            for name in found
        }
        for number, (clock, found) in enumerate(ratios(times, "plain").items())
    }
    watch = arms["and_monitor"].protect.monitor
    handle = arms["and_monitor"].protect.handle
    return {
        "cell": cell,
        "seconds_per_block": _median(times["plain"], 0),
        "time_steps_per_block": block,
        "gradient_steps": handle.num_steps,
        "rounds": rounds,
        "resets": sum(int(total) for total in handle.num_resets.values()),
        "readings": len(watch.history),
        "own_account_of_the_monitor": watch.cost,
        "ratios": clocks,
        "clock": next((c for c, r in clocks.items() if abs(r["plain_again"]["of_medians"] - 1) <= TOLERANCE), None),
    }


def _median(times: list[tuple[float, float]], number: int) -> float:
    return statistics.median(item[number] for item in times)


def measure_in_process(cell: str, rounds: int, block: int, *, again: bool) -> dict[str, Any]:
    command = [sys.executable, __file__, "--cell", cell, "--rounds", str(rounds), "--block", str(block)]
    for attempt in range(1, TRIES + 1):
        done = subprocess.run(command, env={**os.environ, **ENVIRONMENT}, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{cell} failed:\n{done.stderr}")
        result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        result["attempts"] = attempt
        if result["clock"] is not None or not again:
            break
    return result


def table(results: dict[str, Any]) -> str:
    """The results in Markdown."""
    lines = [
        "| cell | plain block | plain again | continual backprop | and the monitor | by |",
        "|---|---|---|---|---|---|",
    ]
    for cell in results["cells"]:
        found = cell["ratios"][cell["clock"] or "wall"]
        shown = [f"{found[kind]['of_medians']:.4f}" for kind in ARMS[1:]]
        if cell["clock"] is None:
            shown = [f"({text})" for text in shown]
        by = {"wall": "wall clock", "cpu": "processor time", None: "not counted"}[cell["clock"]]
        lines.append(f"| {cell['cell']} | {cell['seconds_per_block']:.2f} s | {' | '.join(shown)} | {by} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="cells whose name contains this")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="print the table of the results, measure nothing")
    parser.add_argument("--quick", action="store_true", help="two short rounds; nothing is kept")
    parser.add_argument("--cell", help=argparse.SUPPRESS)
    parser.add_argument("--block", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.cell:
        print(json.dumps(measure(options.cell, options.rounds, options.block)))
        return
    if options.table:
        print(table(json.loads(options.out.read_text())))
        return
    from pliant.bench.environment import run_meta

    meta = run_meta()
    known: dict[str, Any] = {}
    if options.only and not options.quick and options.out.exists():  # the others stay, with the commit of theirs
        known = {cell["cell"]: cell for cell in json.loads(options.out.read_text())["cells"]}
    results: dict[str, Any] = {"limit": LIMIT, "meta": meta, "cells": []}
    for cell, block in CELLS.items():
        if options.only in cell:
            rounds = 2 if options.quick else options.rounds
            block = 128 if options.quick else block
            found = measure_in_process(cell, rounds, block, again=not options.quick)
            known[cell] = {**found, "commit": meta["git_commit"]}
            results["cells"] = [known[other] for other in CELLS if other in known]
            if not options.quick:
                options.out.parent.mkdir(parents=True, exist_ok=True)
                options.out.write_text(json.dumps(results, indent=1) + "\n")
    print(table(results))


if __name__ == "__main__":
    main()
