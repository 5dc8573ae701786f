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

import math
from pathlib import Path
from typing import Any

from cells import BY, Script, shown
from overhead import TOLERANCE, build, in_turn, ratios

RESULTS = Path(__file__).resolve().parents[1] / "results" / "speed" / "monitor.json"
ARMS = ("plain", "plain_again", "monitored")
CELLS = ("mlp-512-batch128", "gpt2-batch8")
PERIOD, WARM_UP, ROUNDS = 500, 100, 11
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


def table(results: dict[str, Any]) -> str:
    """The results in Markdown."""
    lines = [
        "| cell | plain step | plain again | monitored | median of the blocks | by | by the monitor's own account |",
        "|---|---|---|---|---|---|---|",
    ]
    for cell in results["cells"]:
        cells = [*shown(cell, ARMS[1:], "totals"), *shown(cell, ["monitored"], "median")]
        lines.append(
            f"| {cell['cell']} | {cell['milliseconds_per_step']:.2f} ms | {' | '.join(cells)} | {BY[cell['clock']]} "
            f"| {100 * cell['own_account']:.2f} % |"
        )
    return "\n".join(lines)


SCRIPT = Script(
    __file__,
    __doc__,
    CELLS,
    lambda cell, rounds, size: measure(cell, rounds, int(size)),
    lambda cell, quick: 20 if quick else PERIOD,
    table,
    RESULTS,
    ROUNDS,
    LIMIT,
)

if __name__ == "__main__":
    SCRIPT.main()
