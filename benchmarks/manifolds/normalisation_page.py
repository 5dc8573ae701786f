"""The page and the figures of the normalisation study."""

# ruff: noqa: E501

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.manifolds.common import ROOT, expected
from benchmarks.manifolds.draw import Line, Panel, Row, panels, rows
from benchmarks.manifolds.factorial import Factorial, correlation, effect, fall_correlation
from benchmarks.manifolds.forecast import section
from benchmarks.manifolds.models import TITLES
from benchmarks.manifolds.normalisation_control import control, images, images_answer, lost, named
from benchmarks.manifolds.normalisation_findings import (
    CONTRASTS,
    NORM_NAMES,
    accuracy,
    claims,
    early,
    quarter,
    tables,
    title,
)
from benchmarks.manifolds.symptoms import SYMPTOMS
from benchmarks.manifolds.text import claims_section, interval, number, provenance, table, values
from pliant.intervals import band

__all__ = ["texts"]

PAGE = ROOT / "docs" / "results" / "normalisation.md"
CURVES = ROOT / "docs" / "images" / "normalisation.svg"
CORRELATIONS = ROOT / "docs" / "images" / "normalisation_correlation.svg"
PUBLISHED_ACCURACY = {"mlp": (0.73, 0.94, 0.95), "convnet": (0.96, 0.97, 0.97), "resnet": (0.96, 0.99, 0.99), "vit": (0.60, 0.99, 0.99)}  # fmt: skip
PUBLISHED_DEAD = {"convnet": (0.71, 0.28, 0.32)}
Records = Sequence[Mapping[str, Any]]


def texts(records: list[dict[str, Any]], preset: Any, real: Records = (), real_preset: Any = None) -> dict[Path, str]:
    """The page and its figures; ``real`` are the records on real images."""
    return {
        PAGE: page(records, preset, real, real_preset),
        CURVES: curves(records),
        CORRELATIONS: correlations(records),
    }


def page(records: Records, preset: Any, real: Records = (), real_preset: Any = None) -> str:
    """The whole page."""
    score, bad, networks = tables(records)
    change = Factorial(records, lambda run: accuracy(run) - early(run))
    test = Factorial(records, lambda run: sum(values(run["test"])[-quarter(run["test"]) :]) / quarter(run["test"]))
    lr = ", ".join(f"{TITLES[n]} {preset.lr[n]:g}" for n in networks)
    parts = [
        "# Norm, dropout and noise: what falls, and what follows?",
        provenance(records, "normalisation.py", f"{len(records)} runs"),
        "## Setting",
        f"A stream of {preset.num_tasks} tasks, five new classes each: {shown(preset)}, so that no task repeats a class. {preset.num_epochs} passes, batches of {preset.batch_size}; Adam ({lr}) keeps its state over "
        "tasks, the head is zeroed before each, and only the task's five logits take part in loss and accuracy. A factorial: no norm, BatchNorm or LayerNorm (over "
        f"channels and places in the convolutional networks), dropout {preset.dropout:g} or none, and noise on the gradient, tensor by tensor, of {preset.sigma:g} times its norm, or none. "
        "All cells of a seed see the same tasks in the same batches.",
        "*Accuracy* is the mean online training accuracy over the last quarter of the tasks: every batch is predicted before it is learnt. *Symptoms* are read after tasks of that quarter, on "
        "the examples just learnt, in evaluation mode, as the mean over hidden groups of units (attention heads and residual streams are left out).",
        "## Answer",
        "\n".join([*answer(records, score, bad, change, networks), *images_answer(real)]),
        "![Online training accuracy over tasks](../images/normalisation.svg)",
        "## Accuracy",
        table(
            ["network", "norm", "first quarter of the tasks", "last quarter", "change", "last, with dropout", "last, with noise", "last, with both", "held-out, last"],
            [accuracy_row(records, score, change, test, network, norm) for network in networks for norm in NORM_NAMES],
        ).replace("|:--|--:|", "|:--|:--|", 1),
        *control(records),
        "## Which symptoms fall with a norm?",
        "Symptom with the norm minus without it, seed by seed, the mean over dropout and noise. Ranks are shown as what is missing of one, so that all symptoms are bad when high, and a negative effect is a fall.",
        *(
            table(
                [TITLES[network], "without a norm", "BatchNorm − none", "LayerNorm − none"],
                [
                    [title(name), interval(bad[name].mean(network, "none")), *(interval(effect(bad[name], network, "norm", norm)) for norm in ("batch", "layer"))]
                    for name in SYMPTOMS
                ],
            )
            for network in networks
        ),
        "## Does accuracy follow?",
        "Spearman's rank correlation within a seed, then the mean over seeds. *Levels*: symptom against accuracy over all cells; negative where networks with more of the symptom learn worse. "
        "*Falls*: how far a norm makes the symptom fall against how much accuracy rises with it, over the pairs of a cell with a norm and the same cell without; positive where the fall goes with the gain.",
        table(
            ["symptom", *(f"{TITLES[n]}, levels" for n in networks), "all, levels", *(f"{TITLES[n]}, falls" for n in networks), "all, falls"],
            [
                [title(name), *(interval(correlation(bad[name], score, [n])) for n in networks), interval(correlation(bad[name], score, networks)),
                 *(interval(fall_correlation(bad[name], score, [n])) for n in networks), interval(fall_correlation(bad[name], score, networks))]
                for name in SYMPTOMS
            ],
        ),
        "![Correlation of a symptom's fall with the gain of accuracy](../images/normalisation_correlation.svg)",
        "## Effects and interactions on accuracy",
        "Effects are with minus without, the mean over the other factors; interactions are differences of differences: how much more the one does where the other is on. All in accuracy, seed by seed.",
        table(
            ["effect on accuracy", *(TITLES[n] for n in networks)],
            [[name, *(interval(found(score, n), 3) for n in networks)] for name, found in CONTRASTS.items()],
        ),
        "The same on missing rank:",
        table(
            ["effect on missing rank", *(TITLES[n] for n in networks)],
            [[name, *(interval(found(bad["rank"], n), 3) for n in networks)] for name, found in CONTRASTS.items()],
        ),
        f"There are {len(CONTRASTS) * len(networks)} intervals in each table; of as many where nothing happens, one in twenty would leave zero out.",
        "## Beside the published figures",
        "Joudaki et al. (arXiv 2510.00304), Tiny ImageNet in 40 tasks of five classes, mean training accuracy, read off figures by eye (their accuracy is an argmax over all 200 logits, ours over the five that are trained).",
        table(
            ["network", "none, BatchNorm, LayerNorm: published", "here, last quarter, no dropout, no noise"],
            [
                [TITLES[n], ", ".join(number(v) for v in PUBLISHED_ACCURACY[n]), "; ".join(interval(score.mean(n, norm, (False,), (False,))) for norm in NORM_NAMES)]
                for n in networks
            ],
        ),
        *differences(score, bad, networks),
        *images(real, real_preset),
        *section("normalisation"),
        *claims_section(expected("normalisation"), claims(records)),
        "## What this does not say",
        "- Digits of 8 x 8 pixels and networks of a few thousand parameters. The order of the networks, and which symptom leads, may differ at size; the run on real images is small, too; the same command has presets for all of CIFAR-100 and for the published sizes, which were not run to the end.\n"
        "- A correlation over cells is no cause. A norm changes step sizes as well as units, and one step size for all cells is not each cell's best.\n"
        "- A step size that is too large for a fresh network makes an aged one look good: ahead of fresh networks is not the same as good.\n"
        "- Symptoms are means over layers on examples that were just learnt.\n"
        "- One noise level, one rate of dropout.",
    ]  # fmt: skip
    return "\n\n".join(parts) + "\n"


def shown(preset: Any) -> str:
    """What the tasks are made of."""
    if preset.data != "digits":
        return f"images of {preset.data}"
    return (
        "digits seen through one of sixteen transforms (quarter turns, mirrors, light and dark exchanged), "
        f"{preset.num_examples} examples a task"
    )


def accuracy_row(
    records: Records, score: Factorial, change: Factorial, test: Factorial, network: str, norm: str
) -> list[str]:
    first = Factorial(records, early)
    plain = ((False,), (False,))
    return [
        TITLES[network],
        NORM_NAMES[norm],
        interval(first.mean(network, norm, *plain)),
        interval(score.mean(network, norm, *plain)),
        interval(change.mean(network, norm, *plain)),
        interval(score.mean(network, norm, (True,), (False,))),
        interval(score.mean(network, norm, (False,), (True,))),
        interval(score.mean(network, norm, (True,), (True,))),
        interval(test.mean(network, norm, *plain)),
    ]


def answer(
    records: Records, score: Factorial, bad: Mapping[str, Factorial], change: Factorial, networks: Sequence[str]
) -> list[str]:
    """The findings in sentences that the numbers write."""
    falling = [n for n in networks if change.mean(n, "none", (False,), (False,)).high < 0]
    gains = "; ".join(
        f"{TITLES[n]} {interval(effect(score, n, 'norm', 'batch'))} with BatchNorm, {interval(effect(score, n, 'norm', 'layer'))} with LayerNorm"
        for n in networks
    )
    falls = {
        name: [n for n in networks if all(effect(bad[name], n, "norm", k).high < 0 for k in ("batch", "layer"))]
        for name in SYMPTOMS
    }
    rises = {
        name: [n for n in networks if any(effect(bad[name], n, "norm", k).low > 0 for k in ("batch", "layer"))]
        for name in SYMPTOMS
    }
    order = sorted(SYMPTOMS, key=lambda name: -_or_zero(fall_correlation(bad[name], score, networks).mean))
    strong = [
        f"{n} ({TITLES[net]} {interval(found(score, net), 3)})"
        for n, found in CONTRASTS.items()
        if "×" in n
        for net in networks
        if found(score, net).excludes_zero
    ]

    def where(found: Mapping[str, Sequence[str]]) -> str:
        return "; ".join(f"{title(k)} in {', '.join(TITLES[n] for n in v)}" for k, v in found.items() if v) or "nothing"

    return [
        f"- *Who loses plasticity*, measured against fresh networks that learn the same last tasks, with an interval below zero: {named(lost(records), networks, -1)}. "
        f"(From the first to the last quarter of the tasks accuracy falls, without norm, dropout and noise, in {', '.join(TITLES[n] for n in falling) or 'no network'}: that comparison hides what is lost behind what is still being learnt.)\n"
        f"- *A norm's effect on accuracy*: {gains}.\n"
        f"- *What falls with both norms*, with intervals below zero: {where(falls)}. *What rises with one of them*: {where(rises)}.\n"
        f"- *What goes with accuracy*: over all networks, the fall of these symptoms follows the gain most closely: {', '.join(f'{title(n)} {interval(fall_correlation(bad[n], score, networks))}' for n in order[:3])}; least: {title(order[-1])} {interval(fall_correlation(bad[order[-1]], score, networks))}.\n"
        f"- *Interactions on accuracy* whose interval leaves zero out: {', '.join(strong) or 'none'}.",
    ]  # fmt: skip


def _or_zero(value: float) -> float:
    return value if math.isfinite(value) else 0.0


def differences(score: Factorial, bad: Mapping[str, Factorial], networks: Sequence[str]) -> list[str]:
    """Where ours differ from what was published."""
    lines = []
    for n in networks:
        gains = {
            norm: score.over_seeds(
                lambda seed, n=n, norm=norm: (
                    score.at(seed, n, norm, False, False) - score.at(seed, n, "none", False, False)
                )
            )
            for norm in ("batch", "layer")
        }
        theirs = {
            "batch": PUBLISHED_ACCURACY[n][1] - PUBLISHED_ACCURACY[n][0],
            "layer": PUBLISHED_ACCURACY[n][2] - PUBLISHED_ACCURACY[n][0],
        }
        told = "; ".join(
            f"{NORM_NAMES[norm]} {number(theirs[norm])} published, {interval(e)} here, "
            + (
                "the same direction"
                if e.low > 0
                else "**the other direction**"
                if e.high < 0
                else "no gain that the interval shows"
            )
            for norm, e in gains.items()
        )
        lines.append(f"- {TITLES[n]}, gain without dropout and noise: {told}.")
    for n, theirs in PUBLISHED_DEAD.items():
        if n in networks:
            found = "; ".join(interval(bad["dead"].mean(n, norm)) for norm in NORM_NAMES)
            lines.append(
                f"- {TITLES[n]}, dead units: {', '.join(number(v) for v in theirs)} published (none, BatchNorm, LayerNorm), {found} here."
            )
    saturated = "; ".join(
        f"{TITLES[n]} " + ", ".join(number(bad["published_saturated"].mean(n, norm).mean) for norm in NORM_NAMES)
        for n in networks
    )
    own = "; ".join(
        f"{TITLES[n]} " + ", ".join(number(bad["saturated"].mean(n, norm).mean) for norm in NORM_NAMES)
        for n in networks
    )
    lines.append(
        f"- Saturated units, as published (a small gradient beside the activation), with none, BatchNorm and LayerNorm: {saturated}. By the activation's derivative: {own}. "
        "The published number is high where the loss is small; it says how well a network fits, not whether its units are flat."
    )
    return ["\n".join(lines)]  # fmt: skip


def curves(records: Records) -> str:
    """Online accuracy over tasks, a panel for each network."""
    items = []
    for network, name in TITLES.items():
        lines = []
        for colour, norm in enumerate(NORM_NAMES):
            for dash, dropout in enumerate((False, True)):
                runs = [
                    values(r["online"])
                    for r in records
                    if r["cell"] == {"network": network, "norm": norm, "dropout": dropout, "noise": False}
                ]
                if runs:
                    label = NORM_NAMES[norm] + (", dropout" if dropout else "")
                    lines.append(Line(label, colour, range(1, len(runs[0]) + 1), band(runs), dash))
        if lines:
            items.append(Panel(name, "task", lines, limits=(0.0, 1.0)))
    return panels("Online training accuracy over tasks, without noise", items, 2, 240)


def correlations(records: Records) -> str:
    """How the fall of each symptom goes with the gain of accuracy."""
    score, bad, networks = tables(records)
    legend = [(place, TITLES[n]) for place, n in enumerate(networks)] + [(7, "all")]
    items = [
        Row(
            title(name),
            [*((place, fall_correlation(bad[name], score, [n])) for place, n in enumerate(networks)),
             (7, fall_correlation(bad[name], score, networks))],
            strong=True,
        )
        for name in SYMPTOMS
    ]  # fmt: skip
    return rows(
        "Where a norm makes a symptom fall further, does accuracy rise more?",
        items,
        legend,
        "rank correlation of fall and gain, within a seed",
        limits=(-1.0, 1.0),
    )
