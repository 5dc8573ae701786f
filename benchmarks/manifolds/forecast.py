"""What the presets of published size would take: hours and memory, from a few steps of each network.

    python benchmarks/manifolds/forecast.py run                    # benchmarks/results/manifolds/forecast.json
    python benchmarks/manifolds/forecast.py run --device cuda      # prints what an accelerator would take
    python benchmarks/manifolds/forecast.py run --only bit_flips   # the others stay as they are

Each network is built in its published size and makes steps on random images of the published shape, with two small
batches, in a process of its own; seconds and memory are linear in the batch size, and the line through both gives those
of the published one. Values of pixels do not matter for either. Loading images and evaluation on held-out ones are
left out.
"""

# ruff: noqa: E501

from __future__ import annotations

import argparse
import json
import math
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from benchmarks.manifolds.common import RESULTS, rounded, usable
from benchmarks.manifolds.models import NETWORKS, TITLES, build
from benchmarks.manifolds.text import number, table
from benchmarks.prediction.study import environment

__all__ = ["FILE", "line_through", "section"]

FILE = RESULTS / "forecast.json"
Row = dict[str, Any]
STEPS = 2
"""Steps that are timed, after one that is not."""


def line_through(sizes: Sequence[float], values: Sequence[float], at: float) -> float:
    """The line through two points, at a third; never below the larger of both values.

    >>> line_through([2, 4], [1.0, 1.5], 8)
    2.5
    """
    (a, b), (u, v) = sizes, values
    return max(u, v, u + (v - u) * (at - a) / (b - a))


def timed(step: Callable[[], object], device: torch.device, steps: int = STEPS) -> float:
    """Seconds of a step: of the processor, or by the clock on an accelerator."""
    step()
    clock = time.process_time
    if device.type != "cpu":
        torch.zeros((), device=device).item()  # wait for what is under way
        clock = time.perf_counter
    start = clock()
    for _ in range(steps):
        step()
    if device.type != "cpu":
        torch.zeros((), device=device).item()
    return (clock() - start) / steps


def peak(device: torch.device) -> float:
    """Largest memory so far in GB: of the accelerator, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def measure_normalisation(network: str, size: int, device: torch.device, preset: str) -> Row:
    """A step of training, and a look at the units, with so many examples."""
    from benchmarks.manifolds import normalisation as study

    settings = study.PRESETS[preset]
    about = study.IMAGES[settings.data]
    shape = (3, about["image_size"], about["image_size"])
    cell = {"network": network, "norm": "batch", "dropout": True, "noise": True}  # the slowest
    learner = study.Learner(settings, cell, shape, about["num_all"], 0, device)
    x, y, outputs = torch.rand(size, *shape, device=device), torch.arange(size, device=device) % 5, torch.arange(5)
    outputs = outputs.to(device)
    seconds = timed(lambda: learner.update(x, y, outputs), device)
    training = peak(device)
    units = study.units_of(learner.model, cell, x[:4])
    start = time.perf_counter() if device.type != "cpu" else time.process_time()
    study.symptoms(learner.model, x, lambda output: torch.nn.functional.cross_entropy(output[:, outputs], y), units)
    now = time.perf_counter() if device.type != "cpu" else time.process_time()
    return {"step": seconds, "step_gb": training, "look": now - start, "look_gb": peak(device)}


def measure_cloning(network: str, size: int, device: torch.device, preset: str) -> Row:
    """A step of the base, and one of its clone, in double precision."""
    from benchmarks.manifolds import cloning as study

    settings = study.PRESETS[preset]
    found: Row = {}
    x = torch.rand(size, 3, 32, 32, dtype=torch.float64, device=device)
    y = torch.arange(size, device=device) % 10
    for name, sizes in (("base", settings.sizes), ("clone", {network: study.doubled(settings.sizes[network])})):
        model = build(network, sizes, (3, 32, 32), 10, norm=settings.norms[network], dropout=0.0).double().to(device)
        optimizer = torch.optim.SGD(model.parameters(), lr=settings.lr[network])

        def step(model: Any = model, optimizer: Any = optimizer) -> None:
            optimizer.zero_grad(set_to_none=True)
            torch.nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()

        found[name], found[f"{name}_gb"] = timed(step, device, 1), peak(device)
    return found


def measure_bit_flips(width: str, size: int, device: torch.device, preset: str) -> Row:
    """An example, without a method and with continual backprop, of ten networks at once."""
    import pliant
    from benchmarks.manifolds import bit_flips as study
    from pliant.bench.ensemble import stack
    from pliant.bench.streams import SlowlyChangingRegression
    from pliant.units import find_units

    settings, seeds = study.PRESETS[preset], range(10)
    stream = SlowlyChangingRegression(task_length=size)
    x, y = (each.to(device) for each in study.stacked_task(stream, 0, seeds))
    found: Row = {}
    for name in ("sgd", "protected"):
        singles = [study.learner(int(width), seed) for seed in seeds]
        units = find_units(singles[0], torch.zeros(3, 20))
        model = stack(singles, torch.zeros(5, 20)).to(device)
        optimizer = torch.optim.SGD(model.parameters(), lr=settings.lr)
        if name == "protected":
            method = pliant.ContinualBackprop(settings.replacement_rate, settings.maturity_threshold)
            pliant.attach(model, optimizer, method, units=units, seed=list(seeds))

        def step(model: Any = model, optimizer: Any = optimizer) -> None:
            study.learn(model, optimizer, x, y)

        found[name] = timed(step, device, 1) / size
    return {**found, "gb": peak(device)}


MEASURES: Mapping[str, tuple[Callable[..., Row], Mapping[str, tuple[int, int]]]] = {
    "normalisation": (
        measure_normalisation,
        {"mlp": (16, 64), "convnet": (16, 64), "resnet": (4, 12), "vit": (4, 12)},
    ),
    "cloning": (measure_cloning, {"mlp": (16, 64), "convnet": (8, 32), "resnet": (2, 6), "vit": (2, 6)}),
    "bit_flips": (measure_bit_flips, dict.fromkeys(("5", "10", "50", "100"), (100, 300))),
}
"""How each study is measured, and the two batches of each of its networks."""


def apart(study: str, what: str, preset: str, device: str) -> list[Row]:
    """Both batches in a process of their own, whose memory is nobody else's; the larger one comes second."""
    command = [sys.executable, __file__, "measure", study, what, preset, "--device", device]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    found: list[Row] = json.loads(done.stdout.splitlines()[-1])
    return found


def forecast(study: str, what: str, preset: str, device: str) -> Row:
    """Hours of a run, and memory, at the published batch size."""
    from benchmarks.manifolds import bit_flips, cloning, normalisation

    sizes = MEASURES[study][1][what]
    found = apart(study, what, preset, device)
    line = {key: [row[key] for row in found] for key in found[0]}
    row: Row = {"study": study, "preset": preset, "what": what, "sizes": list(sizes), "measured": line}
    if study == "normalisation":
        settings = normalisation.PRESETS[preset]
        examples = 5 * normalisation.IMAGES[settings.data]["num_train"]
        steps = settings.num_epochs * math.ceil(examples / settings.batch_size)
        tasks, looks = settings.num_tasks + settings.num_fresh, settings.num_tasks // settings.every
        step = line_through(sizes, line["step"], settings.batch_size)
        look = line_through(sizes, line["look"], settings.num_seen)
        hours = (tasks * steps * step + looks * look) / 3600
        memory = max(
            line_through(sizes, line["step_gb"], settings.batch_size),
            line_through(sizes, line["look_gb"], settings.num_seen),
        )
        row |= {"steps": tasks * steps, "step": step, "runs": 12 * 5}
    elif study == "cloning":
        own = cloning.PRESETS[preset]
        base, wide = (line_through(sizes, line[key], own.batch_size) for key in ("base", "clone"))
        trained = len(cloning.CLONES) + 1  # and a fresh one as wide
        narrow = own.base_steps + (len(cloning.OTHERS) - 1) * own.steps
        hours = (narrow * base + trained * own.steps * wide) / 3600
        memory = line_through(sizes, line["clone_gb"], own.batch_size) + own.num_examples * 3072 * 8 / 1e9
        row |= {"steps": narrow + trained * own.steps, "step": wide, "runs": 5}
    else:
        flips = bit_flips.PRESETS[preset]
        examples = flips.num_tasks * flips.num_examples
        hours = examples * (line["sgd"][-1] + 1.5 * line["protected"][-1]) / 3600  # half of the switch is plain SGD
        memory, row["steps"], row["step"], row["runs"] = line["gb"][-1], examples, line["protected"][-1], 1
    row |= {"hours": hours, "gb": memory}
    measured = {key: [rounded(value) for value in values] for key, values in line.items()}
    return {key: rounded(v) if isinstance(v, float) else v for key, v in row.items()} | {"measured": measured}


def section(study: str) -> list[str]:
    """What a page says of the published sizes; nothing where no forecast is there."""
    if not FILE.exists():
        return []
    told = json.loads(FILE.read_text(encoding="utf-8"))
    rows = [row for row in told["rows"] if row["study"] == study]
    if not rows:
        return []
    named = {**TITLES, **{str(width): f"width {width}" for width in (5, 10, 50, 100)}}
    unit = "ten seeds at once" if study == "bit_flips" else "a run"
    total = sum(row["hours"] * row["runs"] for row in rows if row["preset"] == "published")
    lines = [
        [row["preset"], named[row["what"]], f"{row['steps']:,}", seconds(row["step"]), hours(row["hours"]),
         str(row["runs"]), hours(row["hours"] * row["runs"]), number(row["gb"], 1)]
        for row in rows
    ]  # fmt: skip
    words = {
        "normalisation": "A step is one with BatchNorm, dropout and noise; memory is that of a look at "
        "500 examples in one piece, where that is more than that of a step. Each task has 500 passes, as the published "
        "scripts say; with 500 steps a task, as the paper's text says (`--set num_epochs=25`), `published` takes a "
        "twentieth.",
        "cloning": "A step is one of the clone; memory has the images in double precision.",
        "bit_flips": "A step is one example with continual backprop.",
    }
    place = told["environment"].get("device", "one core of the machine that wrote this page")
    return [
        "## Published sizes: a forecast",
        f"Not run to the end. `python benchmarks/manifolds/forecast.py run` (commit {told['environment']['commit']}, "
        f"PyTorch {told['environment']['torch']}, {place}) makes a few steps of each network in its published size on "
        "random images of the published shape, with two small batches, and draws a line through both; other work shared the machine. "
        f"{words[study]} All of `published`: {hours(total)}; `--device cuda` runs it on an accelerator, which was not tried.",
        table(["preset", "network", "steps", "a step", unit, "runs", "all runs", "memory, GB"], lines),
    ]


def seconds(value: float) -> str:
    """Of a step, with its unit."""
    return f"{value:.1f} s" if value >= 1 else f"{1e3 * value:.{0 if value >= 0.01 else 1}f} ms"


def hours(value: float) -> str:
    """Hours, or days where there are many."""
    return f"{value:.2g} hours" if value < 100 else f"{value / 24:,.0f} days"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure in this process, or all of them in processes of their own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("measure", help="one network; prints JSON")
    one.add_argument("study", choices=list(MEASURES))
    one.add_argument("what")
    one.add_argument("preset")
    run = commands.add_parser("run", help="everything")
    run.add_argument("--only", nargs="+", choices=list(MEASURES), default=list(MEASURES))
    run.add_argument("--networks", nargs="+", help="of these studies; default: all")
    for command in (one, run):
        command.add_argument("--device", default="cpu")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if options.command == "measure":
        measure, batches = MEASURES[options.study]
        device, sizes = usable(options.device), batches[options.what]
        print(json.dumps([measure(options.what, size, device, options.preset) for size in sizes]))
        return 0
    kept = json.loads(FILE.read_text(encoding="utf-8"))["rows"] if FILE.exists() else []
    chosen = {(study, what) for study in options.only for what in MEASURES[study][1]}
    chosen = {(study, what) for study, what in chosen if what in (options.networks or [what])}
    rows = [row for row in kept if (row["study"], row["what"]) not in chosen]
    for study in options.only:
        for preset in ("cifar100", "published") if study == "normalisation" else ("published",):
            for what in (what for what in MEASURES[study][1] if (study, what) in chosen):
                rows.append(forecast(study, what, preset, options.device))
                print(json.dumps(rows[-1]), flush=True)
    if options.device == "cpu":
        order = {name: place for place, name in enumerate((*MEASURES, *NETWORKS, "5", "10", "50", "100"))}
        rows.sort(key=lambda row: (order[row["study"]], row["preset"], order[row["what"]]))
        told = {"rows": rows, "environment": environment()}
        FILE.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
