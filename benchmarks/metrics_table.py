"""Write docs/metrics.md, the page of all metrics, from ``pliant.metrics.CATALOGUE``.

python benchmarks/metrics_table.py            # writes it
python benchmarks/metrics_table.py --check    # exit code 1 if it is not up to date
"""

from __future__ import annotations

import argparse
import inspect
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from pliant.commands.formula import plain_text  # noqa: E402
from pliant.metrics import CATALOGUE, MetricInfo  # noqa: E402

PAGE = ROOT / "docs" / "metrics.md"

INTRODUCTION = """# Metrics

Written by `python benchmarks/metrics_table.py` from `pliant.metrics.CATALOGUE`; `pliant show METRIC` prints one entry with its formula. Each is a pure function of tensors, `pliant.metrics.dead_fraction(act_NU)` and the like, but for the last: they need a model and a batch of the task to come, and several passes through it, `pliant.spectrum.ntk_condition(model, x)` ([more](spectrum.md)). None of them is the proof that plasticity is lost: that is the [probe](probe.md). How well each predicts what the probe finds has been [measured](results/prediction.md).

## What goes in

- `act_NU` and `matrix` are activations, samples times units. For a convolution samples are examples times positions; for a transformer they are tokens, those that are padding left out. `mean_abs_activation` is `act_NU.abs().mean(-2)`.
- `derivative_NU` is the derivative of the unit's activation function at its pre-activation, not a gradient of the loss.
- `mean_abs_gradient` has one entry per unit: the mean absolute gradient of its incoming weights. `grads` are the gradients of parameters, `grads_NP` those of single samples as rows.
- `tensors`, `initial`, `before`, `after` are collections of weights; which ones is up to you, and published figures differ in it.
- `model`, `batch` and `inputs` are a model, `(x, y)` and `x`; these functions return a value and its standard error. Neither the monitor nor one look (`pliant.observation.measure`) has them; call them at a boundary.
- Leading dimensions `[...]` are members of an ensemble; collections take `members=True`.

## What comes out

- A member whose data holds a NaN or an infinity has the value NaN; masks are false there. `non_finite_fraction` counts them.
- `float16` and `bfloat16` are measured in `float32`.
- Zero units, zero samples, or one sample where two are needed, is a `ValueError` that says so. A dead layer has the worst value of every metric of units, or NaN where there was nothing to compare.
- Besides the numbers below there are masks per unit (`dead_mask`, `dormant_mask`, `saturated_mask`, `frozen_mask`, `cloned_mask`, `gradient_dormant_mask`), scores (`dormancy_score`, `gradient_dormancy_score`), the clusters of copies (`clone_labels`), and Lyle's matrix (`gradient_covariance`).

"""  # noqa: E501

EVIDENCE = ROOT / "pliant" / "diagnosis" / "evidence.json"
HEALTHY = {"high": "high", "low": "low", None: "neither"}


def takes(info: MetricInfo) -> str:
    """What must be passed: the parameters without a default."""
    parameters = inspect.signature(info.function).parameters.values()
    return ", ".join(f"`{p.name}`" for p in parameters if p.default is inspect.Parameter.empty)


def meaning(info: MetricInfo) -> str:
    """The first sentence of its documentation."""
    text = " ".join((inspect.getdoc(info.function) or "").split("\n\n")[0].split())
    return plain_text(text).rstrip(".")


def cell(text: str) -> str:
    return text.replace("|", r"\|")


def overview() -> str:
    lines = [
        "## Overview",
        "",
        "The last column is the AUROC, with its 95 % interval, at which the metric tells in the "
        "[study](results/prediction.md) that a network will learn the next task worse than fresh ones: 0.5 is chance, "
        "below it the metric points the wrong way; a dash: not studied. Poor predictors are not poor descriptions: "
        "they say what a network looks like, and not whether it can learn.",
        "",
        "| metric | what it is | takes | per | healthy | predicts |",
        "|:--|:--|:--|:--|:--|--:|",
    ]
    lines += [
        f"| `{i.name}` | {cell(meaning(i))} | {takes(i)} | {i.per} | {HEALTHY[i.better]} | {predicts(i)} |"
        for i in CATALOGUE.values()
    ]
    return "\n".join(lines)


def predicts(info: MetricInfo) -> str:
    """What the study says, from what the diagnosis reads."""
    entry = json.loads(EVIDENCE.read_text(encoding="utf-8")).get(info.name)
    if entry is None:
        return "–"
    low, high = entry["interval"]
    side = f", {entry['worse']} is worse" if info.better in (None, entry["worse"]) else ""
    return f"{entry['auroc']:.2f} [{low:.2f}, {high:.2f}]{side}"


def dependences() -> str:
    lines = [
        "## What each depends on",
        "",
        "With the default arguments: on the number of samples, on a constant added to everything that it reads, and on "
        "a positive factor on it (of a model: of its outputs, with cross-entropy). A test shows each of these "
        "sentences.",
        "",
        "| metric | batch size | offset | scale |",
        "|:--|:--|:--|:--|",
    ]
    lines += [
        f"| `{i.name}` | {cell(i.depends_on_batch)} | {cell(i.depends_on_offset)} | {cell(i.depends_on_scale)} |"
        for i in CATALOGUE.values()
    ]
    return "\n".join(lines)


def compatibility() -> str:
    lines = [
        "## Whose number it is",
        "",
        "Published numbers that a metric reproduces, with which arguments, and those of a like name that it does not.",
        "",
        "| metric | reproduces | how |",
        "|:--|:--|:--|",
    ]
    for info in CATALOGUE.values():
        lines += [f"| `{info.name}` | {cell(source)} | {cell(how)} |" for source, how in info.compatible_with.items()]
    lines += ["", "| metric | is not | which is |", "|:--|:--|:--|"]
    for info in CATALOGUE.values():
        lines += [f"| `{info.name}` | {cell(source)} | {cell(what)} |" for source, what in info.differs_from.items()]
    return "\n".join(lines)


def page() -> str:
    """The whole page."""
    return INTRODUCTION + "\n\n".join((overview(), dependences(), compatibility())) + "\n"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if the page is not up to date")
    options = parser.parse_args(arguments)
    if not options.check:
        PAGE.write_text(page(), encoding="utf-8")
    elif not PAGE.exists() or PAGE.read_text(encoding="utf-8") != page():
        print(f"{PAGE.relative_to(ROOT)} is not up to date: python benchmarks/metrics_table.py")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
