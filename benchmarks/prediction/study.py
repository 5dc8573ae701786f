"""How well does each metric predict what a probe finds? The runs; ``analysis.py`` reads their records.

    python benchmarks/prediction/study.py                          # what is missing of 3 streams x 10 seeds
    python benchmarks/prediction/study.py --streams bit_flips --seeds 0 1 --out FOLDER
    python benchmarks/prediction/study.py --seeds 100 101 --out TUNING     # seeds on which the settings were chosen
    python benchmarks/prediction/study.py --milder --seeds 0 1 2 3 4                # trained so that less is lost

A network learns the tasks of a stream one after the other. At every task boundary it is measured on examples of the
task to come and of the task that it has just learnt, and probed: a copy of it and freshly initialised twins learn the
task to come from the same batches in the same order. One JSON record per stream and seed, written whole or not at all;
a record that is there is not computed again. At most two processes.

What was expected of the metrics stands in ``expectations.json``, committed before the first run of seeds 0 to 9.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import platform
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from benchmarks.prediction.problems import MILDER, PLAIN, PROBLEMS, Problem  # noqa: E402
from pliant import metrics  # noqa: E402
from pliant.bench.streams.base import generator  # noqa: E402
from pliant.observation import MEASURABLE, measure, observe  # noqa: E402
from pliant.probe import Data, LiveTwin, probe  # noqa: E402
from pliant.units import UnitGraph, find_units  # noqa: E402

OUT = ROOT / "benchmarks" / "results" / "prediction"
SCHEMA = 1
SEEDS = range(10)
TWINS = 2
NUM_MEASURED = 128
NUM_SINGLE = 32
LATER = frozenset(["isotropy_gap"])  # came after the expectations were written down
MEASURED = tuple(name for name in MEASURABLE if name != "non_finite_fraction" and name not in LATER)


def rounded(value: float) -> float | None:
    """Five digits; what is not finite is null."""
    return float(f"{value:.5g}") if math.isfinite(value) else None


def measured(
    model: nn.Module, problem: Problem, units: UnitGraph, inputs: Tensor, targets: Tensor, initial: dict[str, Tensor]
) -> dict[str, list[float | None]]:
    """Every metric on some examples: one value per layer from the first to the last, or one for the network."""
    x, y = inputs[:NUM_MEASURED], targets[:NUM_MEASURED]
    seen = observe(model, x, lambda outputs: problem.loss(outputs, y), units=units)
    found = {name: list(values.values()) for name, values in measure(seen, MEASURED, initial=initial).items()}
    found["loss"] = [float(seen.loss)] if seen.loss is not None else []
    found["gradient_interference"] = [float(metrics.gradient_interference(single_gradients(model, problem, x, y)))]
    stepped = copy.deepcopy(model)
    size = problem.batch_size
    optimizer = problem.optimizer(list(stepped.parameters()))
    problem.loss(stepped(x[:size]), y[:size]).backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    with torch.no_grad():
        found["churn"] = [float(metrics.churn(model(x[size:]), stepped(x[size:])))]
    found["update_to_weight_ratio"] = [float(metrics.update_to_weight_ratio(matrices(model), matrices(stepped)))]
    return {name: [rounded(value) for value in values] for name, values in found.items() if values}


def matrices(model: nn.Module) -> list[Tensor]:
    """The weight matrices, as all metrics of weights read them."""
    return [parameter.detach() for parameter in model.parameters() if parameter.ndim >= 2]


def single_gradients(model: nn.Module, problem: Problem, inputs: Tensor, targets: Tensor) -> Tensor:
    """The gradient of each of the first examples, ``[N, P]``."""
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}

    def loss(values: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return problem.loss(torch.func.functional_call(model, values, (x[None],)), y[None])

    grads = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(
        parameters, inputs[:NUM_SINGLE], targets[:NUM_SINGLE]
    )
    return torch.cat([grad.flatten(1) for grad in grads.values()], dim=1)


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    problem: Problem,
    x: Tensor,
    y: Tensor,
    *key: int,
    live: LiveTwin | None = None,
) -> float:
    """All steps of a task, seen by a live twin if there is one; the mean loss over the last tenth of them."""
    losses: list[Tensor] = []
    draws = generator("prediction order", *key)
    while len(losses) < problem.steps:
        order = torch.from_numpy(draws.permutation(len(y)))
        for index in order.split(problem.batch_size)[: min(problem.steps - len(losses), len(y) // problem.batch_size)]:
            loss = problem.loss(model(x[index]), y[index])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            losses.append(loss.detach())
            if live is not None:
                live.step((x[index], y[index]))
    return float(torch.stack(losses[-max(1, problem.steps // 10) :]).mean())


def run(name: str, seed: int) -> dict[str, Any]:
    """One network on one stream."""
    problem = PROBLEMS[name]
    torch.set_num_threads(1)
    torch.manual_seed(1_000_003 * seed + 17)
    started = time.perf_counter()
    model = problem.model()
    optimizer = problem.optimizer(list(model.parameters()))
    initial = {key: value.detach().clone() for key, value in model.named_parameters()}
    units = find_units(model, (problem.task(0, seed)[0][:NUM_MEASURED],))
    boundaries: list[dict[str, Any]] = []
    last: tuple[Tensor, Tensor] | None = None
    end_loss = math.nan
    for index in range(problem.num_tasks):
        x, y = problem.task(index, seed)
        result = probe(
            model,
            Data(inputs=x, targets=y, batch_size=problem.batch_size),
            optimizer=problem.optimizer,
            steps=problem.probe_steps,
            seeds=[1000 * seed + index],
            twins=TWINS,
            loss=problem.loss,
            init=problem.init,
        )
        delay = result.to_threshold
        boundaries.append(
            {
                "task": index,
                "gap": rounded(result.gap.mean),
                "area": rounded(result.area.mean),
                "progress": rounded(result.progress.mean),
                "delay": rounded(delay.delay.mean / delay.budget),
                "end_loss": rounded(end_loss),
                "incoming": measured(model, problem, units, x, y, initial),
                "trained": measured(model, problem, units, *last, initial) if last is not None else None,
            }
        )
        end_loss = train(model, optimizer, problem, x, y, seed, index)
        last = (x, y)
    return {
        "schema": SCHEMA,
        "stream": name,
        "seed": seed,
        "settings": settings(name),
        "environment": environment(),
        "seconds": round(time.perf_counter() - started, 1),
        "boundaries": boundaries,
    }


def settings(name: str) -> dict[str, Any]:
    """Everything that decides the numbers, the code apart."""
    problem = PROBLEMS[name]
    return {
        **problem.settings,
        "num_tasks": problem.num_tasks,
        "steps": problem.steps,
        "probe_steps": problem.probe_steps,
        "batch_size": problem.batch_size,
        "twins": TWINS,
        "num_measured": NUM_MEASURED,
        "num_single": NUM_SINGLE,
    }


def environment() -> dict[str, Any]:
    """Commit and versions."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else "unknown"

    return {
        "commit": git("rev-parse", "--short=12", "HEAD"),
        "uncommitted": bool(git("status", "--porcelain", "--untracked-files=no", "pliant", "benchmarks")),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
    }


def path_of(out: Path, name: str, seed: int) -> Path:
    return out / f"{name}_{seed:03d}.json"


def is_done(path: Path, name: str) -> bool:
    """Whether a record of these settings is there; one of other settings is an error."""
    if not path.exists():
        return False
    found = json.loads(path.read_text(encoding="utf-8"))
    if found["schema"] != SCHEMA or found["settings"] != json.loads(json.dumps(settings(name))):
        raise SystemExit(f"{path} is of other settings: choose another --out, or remove it")
    return True


def work(name: str, seed: int, out: Path) -> str:
    """One record, written whole or not at all."""
    path = path_of(out, name, seed)
    record = run(name, seed)
    part = path.with_suffix(f".{os.getpid()}.part")
    part.write_text(json.dumps(record, separators=(",", ":"), allow_nan=False) + "\n", encoding="utf-8")
    os.replace(part, path)
    gaps = " ".join(f"{b['gap'] / b['progress']:.2f}" if b["gap"] is not None else "-" for b in record["boundaries"])
    return f"{name} {seed}: {record['seconds']} s; relative gap by task: {gaps}"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", nargs="+", choices=list(PROBLEMS))
    parser.add_argument("--milder", action="store_true", help="by default, the streams on which less is lost")
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--workers", type=int, choices=(1, 2), default=1)
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    streams = options.streams or list(MILDER if options.milder else PLAIN)
    cells = [(name, seed) for seed in options.seeds for name in streams]
    todo = [cell for cell in cells if not is_done(path_of(options.out, *cell), cell[0])]
    print(f"{len(todo)} of {len(cells)} runs to do", flush=True)
    if options.workers == 1:
        for cell in todo:
            print(work(*cell, options.out), flush=True)
        return 0
    with ProcessPoolExecutor(options.workers) as pool:
        for line in pool.map(work, *zip(*todo, strict=True), [options.out] * len(todo)):
            print(line, flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
