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

import statistics
import time
from pathlib import Path
from typing import Any

from cells import BY, Script, shown
from overhead import in_turn, ratios

RESULTS = Path(__file__).resolve().parents[1] / "results" / "speed" / "environments.json"
ARMS = ("plain", "plain_again", "wrapped")
CELLS = (
    *("slippery_ant", "slippery_hopper", "slippery_walker", "changing_gravity", "changing_wind", "changing_gain"),
    *("changing_mass", "permuted_hopper"),
)
LIMIT, TOLERANCE = 1.01, 0.005
BLOCK_SECONDS, WARM_UP, ROUNDS = 0.25, 300, 31
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


def table(results: dict[str, Any]) -> str:
    """The results in Markdown."""
    lines = [
        "| environment | plain step | plain again | wrapped | by | one change | its share of the steps between |",
        "|---|---|---|---|---|---|---|",
    ]
    for cell in results["cells"]:
        both = " | ".join(shown(cell, ARMS[1:], "median"))
        lines.append(
            f"| {cell['cell']} | {cell['microseconds_per_step']:.0f} µs | {both} | {BY[cell['clock']]} "
            f"| {cell['microseconds_per_change']:.0f} µs | {cell['change_share']:.1e} |"
        )
    return "\n".join(lines)


SCRIPT = Script(
    __file__,
    __doc__,
    CELLS,
    measure,
    lambda cell, quick: 0.02 if quick else BLOCK_SECONDS,
    table,
    RESULTS,
    ROUNDS,
    LIMIT,
)

if __name__ == "__main__":
    SCRIPT.main()
