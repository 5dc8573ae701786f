"""One learning-rate schedule reused for every task, against tuning each task by itself.

    python benchmarks/schedule_study.py                        # everything; it goes on where it stopped
    python benchmarks/schedule_study.py --stream permuted_digits --only none
    python benchmarks/schedule_study.py --write                # run nothing; only write what is there by now
    python benchmarks/schedule_study.py --quick --only none    # a look: two tasks, nothing in the repository is written

A setting is a schedule over the task (constant, step, cosine, linear) and a factor on the preset's step size. Every way
of training is tuned in three ways on the seeds 100 to 104, and reported on the seeds 0 to 9:

- *constant*: the best constant step size for the whole stream;
- *reused*: the best setting for the whole stream, the same at every task: all settings, each run over all tasks;
- *per task*: at each task every setting is tried from the network as it is then, the best of that task is kept, and the
  network goes on from there: as many tasks are trained as for *reused*. It is greedy: a setting that is good for this
  task and bad for those to come is taken.

What counts is online accuracy, over the whole stream (the task, for *per task*); a failed seed counts as 0. The
settings that *per task* has chosen are one experiment, whose schedule has an entry for each task. Everything is run
under ``--out``; at the end the reported records and the choices are copied to ``benchmarks/results/schedules``, and
``docs/results/schedules.md`` is written from them.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.comparison_settings import STREAMS  # noqa: E402
from benchmarks.speed.methods import between_markers  # noqa: E402
from pliant import records  # noqa: E402
from pliant.bench import checkpoint  # noqa: E402
from pliant.bench.engine import Members  # noqa: E402
from pliant.bench.environment import run_meta  # noqa: E402
from pliant.bench.experiment import Experiment  # noqa: E402
from pliant.bench.runner import run_experiments  # noqa: E402
from pliant.bench.tune import REPORTED_SEEDS, TUNING_SEEDS, grid  # noqa: E402
from pliant.intervals import estimate, paired_difference  # noqa: E402
from pliant.report.metrics import METRICS, format_estimate  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "schedules"
PAGE = ROOT / "docs" / "results" / "schedules.md"
NUM_TASKS, WINDOW = 30, 10
SHAPES = ("constant", "step", "cosine", "linear")
FACTORS = (0.3, 1.0, 3.0)
WAYS: dict[str, tuple[str, list[tuple[str, dict[str, Any]]]]] = {
    "none": ("no protection", []),
    "continual_backprop": ("continual backprop", [("continual_backprop", {"replacement_rate": 1e-3})]),
    "fresh_start": ("fresh network per task", [("fresh_start", {})]),
}
"""Ways of training: label and methods. The fresh network has no plasticity to lose: what is left is the task's own."""
TUNED = ("constant", "reused", "per_task")
TITLES = {"random_label_digits": "Random label digits", "permuted_digits": "Permuted digits"}

Setting = tuple[str, float]


def settings() -> list[Setting]:
    """All settings, in the order in which the earlier wins a tie."""
    return list(itertools.product(SHAPES, FACTORS))


def base(stream: str, way: str, num_tasks: int) -> Experiment:
    """A way of training with the preset's step size throughout."""
    label, methods = WAYS[way]
    return Experiment.from_preset(stream, "demo", methods, label, stream_options=STREAMS[stream], num_tasks=num_tasks)


def with_settings(experiment: Experiment, chosen: Sequence[Setting]) -> Experiment:
    """The experiment with one setting for each task; as many tasks as settings."""
    return experiment.replace(num_tasks=len(chosen), schedule=("per_task", {"tasks": [list(item) for item in chosen]}))


# ---- tuning ----
def reused(experiment: Experiment, candidates: Sequence[Setting], seeds: Sequence[int], out: Path) -> dict[str, Any]:
    """The best setting for the whole stream, of all and of the constant ones, and all scores."""
    runs = [with_settings(experiment, [setting] * experiment.num_tasks) for setting in candidates]
    tuning = grid({"all": runs}, out, tuning_seeds=seeds, last_fraction=1.0, num_workers=0)
    if tuning is None:
        raise KeyboardInterrupt
    scores = [trial.score for trial in tuning.trials["all"]]
    constant = [k for k, (shape, _) in enumerate(candidates) if shape == "constant"]
    return {
        "scores": scores,
        "constant": list(candidates[max(constant, key=lambda k: scores[k])]),
        "reused": list(candidates[scores.index(max(scores))]),
    }


def per_task(experiment: Experiment, candidates: Sequence[Setting], seeds: Sequence[int], out: Path) -> dict[str, Any]:
    """The settings that are chosen greedily, task by task, and all scores; goes on where it stopped."""
    path = out / "per_task.json"
    done = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"chosen": [], "scores": []}
    while len(done["chosen"]) < experiment.num_tasks:
        before = [tuple(item) for item in done["chosen"]]
        scores = [_one_task(experiment, [*before, setting], seeds, out) for setting in candidates]
        best = scores.index(max(scores))
        done["chosen"].append(list(candidates[best]))
        done["scores"].append(scores)
        out.mkdir(parents=True, exist_ok=True)
        records.write_atomically(path, json.dumps(done) + "\n")
        for k, setting in enumerate(candidates):
            if k != best:
                shutil.rmtree(out / with_settings(experiment, [*before, setting]).id)
        if before:
            shutil.rmtree(out / with_settings(experiment, before).id, ignore_errors=True)
    return done


def _one_task(experiment: Experiment, chosen: Sequence[Setting], seeds: Sequence[int], out: Path) -> float:
    """Train the last of these tasks from where the ones before it ended; returns its online accuracy over the seeds."""
    here = with_settings(experiment, chosen)
    folder = records.prepare_folder(out, here.to_dict(), here.id)
    if len(chosen) > 1:
        before = with_settings(experiment, chosen[:-1])
        state = checkpoint.load_checkpoint(out / before.id, seeds)
        if state is None:
            raise SystemExit(f"{out / before.id}: the state of the task before is gone; delete {out} and begin anew")
        # The state is that of the longer experiment, too: up to here both are the same.
        state["experiment"] = records.canonical_json(here.to_dict())
        checkpoint.save_checkpoint(folder, seeds, state)
    members = Members(here, seeds, folder, stacked=True, checkpoint_every=1e9)
    try:
        members.run()
        members.save()
        found = []
        for position in range(len(seeds)):
            alive = position not in members.failures
            found.append(members.series_of(position)["online_accuracy"][-1] if alive else 0.0)
    finally:
        members.close()
    return sum(found) / len(found)


def run(stream: str, way: str, out: Path, *, quick: bool = False) -> None:
    """Tune in three ways, and run what was chosen on the reported seeds."""
    experiment = base(stream, way, 2 if quick else NUM_TASKS)
    candidates = settings()[::4] if quick else settings()
    tuning, reported = (TUNING_SEEDS[:2], REPORTED_SEEDS[:2]) if quick else (TUNING_SEEDS, REPORTED_SEEDS)
    folder = out / stream / way
    whole = reused(experiment, candidates, tuning, folder / "reused")
    greedy = per_task(experiment, candidates, tuning, folder / "per_task")
    chosen = {
        "constant": [whole["constant"]] * experiment.num_tasks,
        "reused": [whole["reused"]] * experiment.num_tasks,
        "per_task": greedy["chosen"],
    }
    runs = {name: with_settings(experiment, items) for name, items in chosen.items()}
    report = run_experiments(list(runs.values()), reported, folder / "records", num_workers=0)
    if report.interrupted:
        raise KeyboardInterrupt
    data = {
        "stream": stream,
        "way": way,
        "candidates": candidates,
        "tuning_seeds": tuning,
        "reported_seeds": reported,
        "scores": {"reused": whole["scores"], "per_task": greedy["scores"]},
        "chosen": chosen,
        "ids": {name: item.id for name, item in runs.items()},
        "step_size": experiment.optimizer.options["lr"],
        "meta": run_meta(),
    }
    records.write_atomically(folder / "study.json", json.dumps(data) + "\n")
    print(f"{stream}, {way}: {report.message}", flush=True)


# ---- reading and writing ----
def publish(out: Path, results: Path) -> None:
    """Copy what is finished: the choices, and the reported records."""
    for path in sorted(out.glob("*/*/study.json")):
        goal = results / path.parent.relative_to(out)
        goal.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, goal)
        records.merge([path.parent / "records"], goal / "records")


def read(stream: str, way: str, results: Path) -> tuple[dict[str, Any], dict[str, dict[int, list[float]]]] | None:
    """The choices, and the online accuracy of each reported seed by way of tuning; None before there are any."""
    path = results / stream / way / "study.json"
    if not path.exists():
        return None
    data = json.loads(path.read_text(encoding="utf-8"))
    found: dict[str, dict[int, list[float]]] = {}
    for name, experiment_id in data["ids"].items():
        there = records.read_records(path.parent / "records" / experiment_id)
        found[name] = {record.seed: record.series["online_accuracy"] for record in there if record.status == "complete"}
    return data, found


def _mean(series: Mapping[int, list[float]], window: int = 0) -> dict[int, float]:
    """By seed, over the last tasks, or over all."""
    last = {seed: values[-window:] for seed, values in series.items()}
    return {seed: sum(values) / len(values) for seed, values in last.items()}


def table(stream: str, results: Path) -> str:
    """One stream's table in Markdown; empty before there is anything."""
    accuracy = METRICS["online_accuracy"]
    heads = [
        "training",
        "tuned",
        "chosen",
        "whole stream, %",
        f"last {WINDOW} tasks, %",
        "against reused, points",
        "seeds",
    ]
    lines = ["| " + " | ".join(heads) + " |", "|:--|:--|:--|--:|--:|--:|:--|"]
    for way, (label, _) in WAYS.items():
        found = read(stream, way, results)
        if found is None:
            continue
        data, series = found
        for name in TUNED:
            whole = _mean(series[name])
            against = paired_difference(whole, _mean(series["reused"]))
            last = _mean(series[name], WINDOW)
            cells = [label, name.replace("_", " "), _choice(data, name)]
            cells += [format_estimate(estimate(values.values()), accuracy) for values in (whole, last)]
            cells.append("–" if name == "reused" else format_estimate(against, accuracy, signed=True))
            lines.append("| " + " | ".join([*cells, str(len(whole))]) + " |")
    return f"### {TITLES[stream]}\n\n" + "\n".join(lines) if len(lines) > 2 else ""


def _choice(data: Mapping[str, Any], name: str) -> str:
    """What was chosen: the setting, or how often each shape and which step sizes."""
    items = data["chosen"][name]
    if name != "per_task":
        shape, factor = items[0]
        return f"{shape}, {factor * data['step_size']:g}"
    shapes = Counter(shape for shape, _ in items)
    sizes = Counter(f"{factor * data['step_size']:g}" for _, factor in items)
    return ", ".join(f"{key}: {num}" for key, num in [*shapes.most_common(), *sizes.most_common()])


def write(results: Path = RESULTS, page: Path = PAGE) -> None:
    """Write the tables from the records."""
    text = "\n\n".join(found for stream in STREAMS if (found := table(stream, results)))
    if text:
        page.write_text(between_markers(page.read_text(encoding="utf-8"), text, "tables"), encoding="utf-8")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--stream", nargs="+", default=list(STREAMS), choices=list(STREAMS))
    parser.add_argument("--out", type=Path, default=Path("results") / "schedules", help="where everything is run")
    parser.add_argument("--write", action="store_true", help="run nothing, write the page")
    parser.add_argument("--quick", action="store_true", help="two tasks, few settings and seeds; write only to --out")
    options = parser.parse_args(arguments)
    try:
        for stream, way in [] if options.write else itertools.product(options.stream, options.only):
            run(stream, way, options.out, quick=options.quick)
    except KeyboardInterrupt:
        raise SystemExit("interrupted; the same command goes on") from None
    if not options.quick:
        publish(options.out, RESULTS)
        write()


if __name__ == "__main__":
    main()
