"""Does the live twin say what the probe says? Networks of different ages, asked both ways.

    python benchmarks/probe/agreement.py            # runs it (minutes), writes the result, prints the table
    python benchmarks/probe/agreement.py --table    # prints the table of the committed result

Networks learn one random-label task after the other with a step size at which plasticity is lost; copies are kept at
several ages, for several seeds. Each is probed, and watched by a live twin while a copy of it goes on training, see
``pliant.probe.agreement``. The interval of the correlation is a bootstrap over the networks.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from pliant.bench.data.digits import load_digits
from pliant.bench.environment import run_meta
from pliant.fresh import copy_of
from pliant.intervals import rank_correlation
from pliant.probe import RandomLabels, agreement

RESULT = Path(__file__).resolve().parents[1] / "results" / "probe" / "agreement.json"
CONFIG = {
    "stream": "random labels of 128 handwritten digits, batch 16",
    "network": "MLP 64-64-64-10, ReLU",
    "optimizer": "Adam, step size 0.01",
    "steps_per_task": 150,
    "ages_in_tasks": [0, 5, 15, 40],
    "runs": 4,
    "probe": {"steps": 150, "seeds": 4},
    "live": {"window": 150, "races": 4},
}


def adam(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer of everybody."""
    return torch.optim.Adam(parameters, lr=0.01)


def aged(seed: int, task: RandomLabels) -> dict[str, nn.Module]:
    """Copies of one network at several ages."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer, found = adam(list(model.parameters())), {}
    for age in range(max(CONFIG["ages_in_tasks"]) + 1):
        if age in CONFIG["ages_in_tasks"]:
            found[f"run {seed}, {age} tasks"] = copy_of(model)
        for x, y in task.batches(1_000_000 * (seed + 1) + age, CONFIG["steps_per_task"]):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
    return found


def run() -> dict[str, object]:
    """Age the networks and ask both."""
    inputs, _ = load_digits()
    task = RandomLabels(inputs=inputs, num_classes=10, num_examples=128, batch_size=16)
    begin = time.perf_counter()
    networks = {name: net for seed in range(CONFIG["runs"]) for name, net in aged(seed, task).items()}
    found = agreement(
        networks,
        task,
        optimizer=adam,
        steps=CONFIG["probe"]["steps"],
        seeds=CONFIG["probe"]["seeds"],
        window=CONFIG["live"]["window"],
        races=CONFIG["live"]["races"],
    )
    return {
        "config": CONFIG,
        "probe": dict(found.probe),
        "live": dict(found.live),
        "rank_correlation": found.rank_correlation,
        "interval": interval(list(found.probe.values()), list(found.live.values())),
        "meta": run_meta() | {"seconds": time.perf_counter() - begin},
    }


def interval(x: Sequence[float], y: Sequence[float], draws: int = 2000) -> tuple[float, float]:
    """95 % bootstrap interval of the rank correlation over the networks."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(draws):
        index = rng.integers(0, len(x), len(x))
        found.append(rank_correlation([x[i] for i in index], [y[i] for i in index]))
    return float(np.nanquantile(found, 0.025)), float(np.nanquantile(found, 0.975))


def main() -> None:
    """Run, or print what has been run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true", help="print the table of the committed result")
    torch.set_num_threads(1)
    if not parser.parse_args().table:
        RESULT.parent.mkdir(parents=True, exist_ok=True)
        RESULT.write_text(json.dumps(run(), indent=1) + "\n", encoding="utf-8")
    found = json.loads(RESULT.read_text(encoding="utf-8"))
    print("| network | gap of the probe | gap of the live twin |\n|:--|--:|--:|")
    for name, value in found["probe"].items():
        print(f"| {name} | {value:+.3f} | {found['live'][name]:+.3f} |")
    low, high = found["interval"]
    print(f"\nRank correlation {found['rank_correlation']:.3f} [{low:.3f}, {high:.3f}], {len(found['probe'])} networks")


if __name__ == "__main__":
    main()
