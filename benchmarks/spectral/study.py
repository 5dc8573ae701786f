"""Does curvature collapse before a network stops learning? The runs; ``analysis.py`` reads their records.

    python benchmarks/spectral/study.py            # whatever is missing of it, then page and figures
    python benchmarks/spectral/study.py tune       # only the settings of the methods, on seeds 100 to 104
    python benchmarks/spectral/study.py run        # only the runs of seeds 0 to 9, with the tuned settings
    python benchmarks/spectral/study.py estimators # only the ablation of the estimators, on smaller networks

The seeds of one method and setting are trained together, as members of a stack. There is one record for each stream and
method, written whole or not at all; one that is there is not computed again. What was expected stands in
``expectations.json``, committed before the first tuned run of seeds 0 to 9.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

import pliant  # noqa: E402
from benchmarks.spectral.measures import SAMPLES, ablation, before_a_task, rounded  # noqa: E402
from benchmarks.spectral.problems import BATCH, HIDDEN, LR, METHODS, NUM_TASKS, STEPS, STREAMS  # noqa: E402
from pliant.bench.ensemble import stack, unstack  # noqa: E402
from pliant.bench.environment import run_meta  # noqa: E402
from pliant.bench.models.mlp import MLP  # noqa: E402
from pliant.bench.streams.base import Task, generator  # noqa: E402
from pliant.errors import ResolutionWarning  # noqa: E402

OUT = ROOT / "benchmarks" / "results" / "spectral_collapse"
TUNING, TUNING_TASKS, SEEDS = range(100, 105), 12, range(10)
SMALL, SMALL_TASKS = (12, 12), (1, 12)
"""Widths of the networks whose whole Hessian is computed, and before which tasks (counted from 0)."""


def fresh(seed: int, hidden: Sequence[int] = HIDDEN) -> MLP:
    """The network of a seed as it begins."""
    draws = torch.Generator().manual_seed(int(generator("spectral network", seed).integers(2**62)))
    return MLP(64, 10, hidden, draws)


class Members:
    """Several seeds of one method on one stream, learning together."""

    def __init__(self, stream: str, seeds: Sequence[int], method: Any, hidden: Sequence[int] = HIDDEN) -> None:
        self.stream, self.seeds, self.hidden = STREAMS[stream], tuple(seeds), hidden
        singles = [fresh(seed, hidden) for seed in seeds]
        self.model = stack(singles, torch.zeros(5, 64))
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=LR)
        self.handle: Any = None
        self.learning = 0.0
        if method is not None:
            self.handle = pliant.attach(
                self.model,
                self.optimizer,
                method,
                units=pliant.find_units(singles[0], torch.zeros(5, 64)),
                seed=list(seeds),
                init=MLP.init,
            )

    def run(self, num_tasks: int, look: Callable[[int, int, nn.Module, Task], None]) -> list[list[dict[str, Any]]]:
        """All tasks; ``look`` sees every single network before each. Accuracies of each member after each."""
        rows: list[list[dict[str, Any]]] = [[] for _ in self.seeds]
        for index in range(num_tasks):
            if self.handle is not None and index:
                self.handle.task_boundary()
            tasks = [self.stream.task(index, seed) for seed in self.seeds]
            for member, task in enumerate(tasks):
                look(index, member, self.single(member), task)
            start = time.process_time()
            online = self._learn(tasks)
            self.learning += time.process_time() - start
            for member, task in enumerate(tasks):
                rows[member].append({"online": rounded(float(online[member])), **self._scores(member, task)})
        return rows

    def single(self, member: int) -> nn.Module:
        """One of them as a network of its own."""
        model = fresh(self.seeds[member], self.hidden)
        model.load_state_dict(unstack(self.model, member))
        return model

    def _learn(self, tasks: Sequence[Task]) -> Tensor:
        """One task; the accuracy of each member on batches before it learned from them."""
        x_SNF, y_SN = (torch.stack([getattr(task, name) for task in tasks]) for name in ("inputs", "targets"))
        member_S1 = torch.arange(len(tasks))[:, None]
        hits_S, seen = torch.zeros(len(tasks)), 0
        for epoch in range(tasks[0].num_epochs):
            order_SN = torch.stack([task.order(epoch) for task in tasks])
            for rows_SB in order_SN.split(BATCH, dim=1):
                batch: tuple[Tensor, Tensor] = x_SNF[member_S1, rows_SB], y_SN[member_S1, rows_SB]
                if self.handle is not None:
                    batch = self.handle.batch(batch)
                x_SBF, y_SB = batch
                logits_SBC = self.model(x_SBF)
                self.optimizer.zero_grad()
                # Each member's mean, added up: its gradient is what it would be alone.
                (F.cross_entropy(logits_SBC.flatten(0, 1), y_SB.flatten(), reduction="sum") / y_SB.shape[1]).backward()
                self.optimizer.step()
                hits_S += (logits_SBC.detach().argmax(-1) == y_SB).float().sum(1)
                seen += y_SB.shape[1]
        return hits_S / seen

    def _scores(self, member: int, task: Task) -> dict[str, float]:
        """Accuracy on the task's own data, and on held-out ones where there are any."""
        model = self.single(member)
        with torch.no_grad():
            found = {"accuracy": float((model(task.inputs).argmax(1) == task.targets).float().mean())}
            if task.test_inputs is not None:
                found["test"] = float((model(task.test_inputs).argmax(1) == task.test_targets).float().mean())
        return {key: float(f"{value:.4g}") for key, value in found.items()}


def nothing(index: int, member: int, model: nn.Module, task: Task) -> None:
    """No measures while tuning."""


def tune(stream: str, name: str) -> dict[str, Any]:
    """All settings of one method on the tuning seeds; the best has the highest accuracy in the mean over 12 tasks."""
    tried = []
    for setting in METHODS[name].settings:
        rows = Members(stream, TUNING, _made(name, setting)).run(TUNING_TASKS, nothing)
        accuracy = [sum(row["accuracy"] for row in member) / TUNING_TASKS for member in rows]
        tried.append({"setting": dict(setting), "accuracy": [rounded(value) for value in accuracy]})
    best = max(tried, key=lambda item: sum(item["accuracy"]))
    return {"seeds": list(TUNING), "tuning_tasks": TUNING_TASKS, "tried": tried, "best": best["setting"]}


def run(stream: str, name: str, setting: Mapping[str, float]) -> dict[str, Any]:
    """One method with ten seeds, measured before every task."""
    found: list[list[dict[str, Any]]] = [[] for _ in SEEDS]
    spent = [0.0]

    def look(index: int, member: int, model: nn.Module, task: Task) -> None:
        start = time.process_time()
        found[member].append(before_a_task(model, task.inputs, task.targets, whole=index in (0, 1, NUM_TASKS - 1)))
        spent[0] += time.process_time() - start

    members = Members(stream, SEEDS, _made(name, setting))
    rows = members.run(NUM_TASKS, look)
    runs = [
        {"seed": seed, "tasks": [before | after for before, after in zip(*pair, strict=True)]}
        for seed, pair in zip(SEEDS, zip(found, rows, strict=True), strict=True)
    ]
    return {"runs": runs, "learning_seconds": members.learning, "measuring_seconds": spent[0]}


def estimators(stream: str) -> dict[str, Any]:
    """The ablation: networks so small that their whole Hessian is computed."""
    found: list[list[dict[str, Any]]] = [[] for _ in SEEDS]

    def look(index: int, member: int, model: nn.Module, task: Task) -> None:
        if index in SMALL_TASKS:
            batch = task.inputs[:SAMPLES], task.targets[:SAMPLES]
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ResolutionWarning)
                found[member].append({"task": index, **ablation(model, batch)})

    rows = Members(stream, SEEDS, None, SMALL).run(max(SMALL_TASKS) + 1, look)
    accuracy = [[row["accuracy"] for row in member] for member in rows]
    return {"hidden": list(SMALL), "cases": found, "accuracy": accuracy}


def _made(name: str, setting: Mapping[str, float]) -> Any:
    make = METHODS[name].make
    return None if make is None else make(**setting)


def setting_of(stream: str, name: str, out: Path) -> dict[str, float]:
    """What is used on seeds 0 to 9: the only setting, or that which was best on the tuning seeds."""
    name = METHODS[name].like or name
    if len(METHODS[name].settings) == 1:
        return dict(METHODS[name].settings[0])
    return dict(json.loads((out / f"tuning_{stream}_{name}.json").read_text(encoding="utf-8"))["best"])


def missing(what: str, out: Path) -> list[tuple[Path, Callable[[], dict[str, Any]]]]:
    """Records that are not there yet, and how each is made."""
    jobs: list[tuple[Path, Callable[[], dict[str, Any]]]] = []
    for stream in STREAMS:
        if what in ("all", "tune"):
            jobs += [
                (out / f"tuning_{stream}_{name}.json", lambda s=stream, n=name: tune(s, n))  # type: ignore[misc]
                for name, method in METHODS.items()
                if len(method.settings) > 1
            ]
        if what in ("all", "estimators"):
            jobs.append((out / f"estimators_{stream}.json", lambda s=stream: estimators(s)))  # type: ignore[misc]
        if what in ("all", "run"):
            jobs += [
                (
                    out / f"{stream}_{name}.json",
                    lambda s=stream, n=name: run(s, n, setting_of(s, n, out)),  # type: ignore[misc]
                )
                for name in METHODS
            ]
    return [(path, make) for path, make in jobs if not path.exists()]


def settings(stream: str) -> dict[str, Any]:
    """What decides the numbers, the code and the method apart."""
    return {
        "stream": repr(STREAMS[stream]), "hidden": list(HIDDEN), "optimizer": "Adam", "lr": LR, "steps": STEPS,
        "tasks": NUM_TASKS, "samples": SAMPLES,
    }  # fmt: skip


def main() -> None:
    """Make what is missing, then the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=("all", "tune", "run", "estimators"), default="all")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", pliant.NoEffectWarning)  # a dead layer, which L2-ER reports; the records count them
    for path, make in missing(options.what, options.out):
        start = time.process_time()
        stream = next(name for name in STREAMS if name in path.stem)
        record = {"settings": settings(stream), "meta": run_meta()} | make()
        if "_" in path.stem and not path.stem.startswith(("tuning", "estimators")):
            name = path.stem.removeprefix(f"{stream}_")
            record |= {"method": name, "setting": setting_of(stream, name, options.out)}
        record["seconds"] = round(time.process_time() - start, 1)
        part = path.with_suffix(".part")
        part.write_text(json.dumps(record, allow_nan=False) + "\n", encoding="utf-8")
        part.rename(path)
        print(f"{path.name}: {record['seconds']} s", flush=True)
    if options.what == "all":
        from benchmarks.spectral.analysis import write

        write(options.out)


if __name__ == "__main__":
    main()
