"""Does the live twin say what the probe says? On the streams of the study, whose records hold the probes' gaps.

    python benchmarks/prediction/live.py               # seeds 0 to 4 of each stream for which there is a record

The networks of the study are trained once more, the same to the bit, with a live twin that starts a race at every task
boundary. Its gap is set against that of the probe at the same boundary: other batches in another order, another twin.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from benchmarks.prediction.problems import PLAIN, PROBLEMS  # noqa: E402
from benchmarks.prediction.study import OUT, environment, path_of, rounded, settings, train  # noqa: E402
from pliant.probe import live_twin  # noqa: E402


def run(name: str, seed: int, record: dict[str, Any]) -> dict[str, Any]:
    """Races at all boundaries of one network."""
    problem = PROBLEMS[name]
    torch.set_num_threads(1)
    torch.manual_seed(1_000_003 * seed + 17)
    started = time.perf_counter()
    model = problem.model()
    optimizer = problem.optimizer(list(model.parameters()))
    live = live_twin(
        model,
        problem.optimizer,
        loss=problem.loss,
        every=1,
        window=problem.probe_steps,
        start="boundary",
        seed=seed,
        history=problem.num_tasks,
        init=problem.init,
    )
    for index in range(problem.num_tasks):
        live.task_boundary()
        end_loss = train(model, optimizer, problem, *problem.task(index, seed), seed, index, live=live)
        known = record["boundaries"][index + 1]["end_loss"] if index + 1 < problem.num_tasks else None
        if known is not None and rounded(end_loss) != known:
            raise SystemExit(
                f"{name} {seed}: this is not the network of the record (task {index}): is the code the same?"
            )
    return {
        "stream": name,
        "seed": seed,
        "settings": settings(name),
        "environment": environment(),
        "seconds": round(time.perf_counter() - started, 1),
        "cost_share": rounded(live.cost_share),
        "live": [rounded(race.gap) for race in live.races],
        "probe": [boundary["gap"] for boundary in record["boundaries"]],
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", nargs="+", choices=list(PROBLEMS), default=list(PLAIN))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(range(5)))
    parser.add_argument("--records", type=Path, default=OUT)
    options = parser.parse_args(arguments)
    folder = options.records / "live"
    folder.mkdir(exist_ok=True)
    for seed in options.seeds:
        for name in options.streams:
            source, path = path_of(options.records, name, seed), path_of(folder, name, seed)
            if path.exists() or not source.exists():
                continue
            found = run(name, seed, json.loads(source.read_text(encoding="utf-8")))
            part = path.with_suffix(f".{os.getpid()}.part")
            part.write_text(json.dumps(found, separators=(",", ":")) + "\n", encoding="utf-8")
            os.replace(part, path)
            pairs = [(a, b) for a, b in zip(found["live"], found["probe"], strict=True) if None not in (a, b)]
            print(f"{name} {seed}: {found['seconds']} s, {len(pairs)} pairs", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
