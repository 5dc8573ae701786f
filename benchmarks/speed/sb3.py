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

import statistics
import time
from pathlib import Path
from typing import Any

from cells import BY, Script, shown
from overhead import TOLERANCE, in_turn, ratios

RESULTS = Path(__file__).resolve().parents[1] / "results" / "speed" / "sb3.json"
ARMS = ("plain", "plain_again", "continual_backprop", "and_monitor")
CELLS = {"ppo-ant": 2048, "sac-ant": 250}
"""Agent and environment: time steps in a block. One of PPO is its default rollout, and then 320 gradient steps."""
WARM_UP, ROUNDS = 2, 15
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


def table(results: dict[str, Any]) -> str:
    """The results in Markdown."""
    lines = [
        "| cell | plain block | plain again | continual backprop | and the monitor | by |",
        "|---|---|---|---|---|---|",
    ]
    for cell in results["cells"]:
        cells = " | ".join(shown(cell, ARMS[1:], "of_medians"))
        lines.append(f"| {cell['cell']} | {cell['seconds_per_block']:.2f} s | {cells} | {BY[cell['clock']]} |")
    return "\n".join(lines)


SCRIPT = Script(
    __file__,
    __doc__,
    list(CELLS),
    lambda cell, rounds, size: measure(cell, rounds, int(size)),
    lambda cell, quick: 128 if quick else CELLS[cell],
    table,
    RESULTS,
    ROUNDS,
    LIMIT,
)

if __name__ == "__main__":
    SCRIPT.main()
