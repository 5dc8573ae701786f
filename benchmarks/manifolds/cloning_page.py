"""The page and the figure of the cloning study."""

# ruff: noqa: E501

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.manifolds.common import ROOT, expected
from benchmarks.manifolds.draw import Line, Panel, panels
from benchmarks.manifolds.forecast import section
from benchmarks.manifolds.models import TITLES
from benchmarks.manifolds.text import claims_section, exact, interval, mean, number, provenance, table, values
from pliant.intervals import Estimate, estimate

__all__ = ["by_network", "claims", "end", "texts"]

PAGE = ROOT / "docs" / "results" / "cloning.md"
FIGURE = ROOT / "docs" / "images" / "cloning.svg"
STAY = ("sgd", "momentum", "adam")
LEAVE = ("noise", "noise_once", "noise_small", "dropout")
NAMES = {
    "sgd": "SGD",
    "momentum": "SGD, momentum 0.9",
    "adam": "Adam",
    "float32": "SGD in float32",
    "noise": "noise, published kind, every step",
    "noise_once": "the same, one step only",
    "noise_small": "noise of σ times the gradient's norm, every step",
    "dropout": "dropout 0.1",
    "base": "the base, same step size",
    "base_matched": "the base, step sizes that match",
    "base_dropout": "the base with dropout 0.1",
    "fresh": "a fresh network as wide as the clone",
}
PUBLISHED = {"mlp": (0.44, 0.53), "convnet": (0.68, 0.95), "resnet": (0.76, 0.975), "vit": (0.55, 0.73)}
"""R² at the end under noise and under dropout, as read off the published figures."""
ONE_SEED = "5ef39c1b8e5a"
Runs = Mapping[str, Sequence[Mapping[str, Any]]]


def by_network(records: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """The runs of each network, in the order of the networks."""
    found = {name: [r for r in records if r["cell"]["network"] == name] for name in TITLES}
    return {name: runs for name, runs in found.items() if runs}


def end(run: Mapping[str, Any], treatment: str, what: str) -> float:
    """What a treatment ended with: ``"distance"``, ``"ratio"`` (R²), ``"missing"`` (1 - R²), or another entry."""
    found = run["treatments"][treatment]
    if what in ("distance", "missing", "ratio"):
        value = values(found["curve"][-1])[1 if what == "distance" else 2]
        return 1 - value if what == "ratio" else value
    return values([found[what]])[0]


def ends(runs: Sequence[Mapping[str, Any]], treatment: str, what: str) -> list[float]:
    """The same of all runs."""
    return [end(run, treatment, what) for run in runs]


def difference(runs: Sequence[Mapping[str, Any]], a: str, b: str, what: str = "loss") -> Estimate:
    """Of two treatments of the same seed, over seeds."""
    return estimate(x - y for x, y in zip(ends(runs, a, what), ends(runs, b, what), strict=True))


def claims(nets: Runs) -> dict[str, bool]:
    """Whether what was expected came true."""
    every = [run for runs in nets.values() for run in runs]

    def middle(network: str, treatment: str, what: str) -> float:
        return estimate(ends(nets[network], treatment, what)).mean

    return {
        "preserved": all(run["change"] <= 1e-12 for run in every),
        "stay": all(value <= 1e-9 for name in STAY for value in ends(every, name, "distance")),
        "ratio_one": all(value <= 1e-12 for name in STAY for value in ends(every, name, "missing")),
        "float32": all(value <= 1e-4 for value in ends(every, "float32", "distance")),
        "noise_leaves": all(value > 1e-3 for n in ("noise", "dropout") for value in ends(every, n, "missing")),
        "one_step": all(value > 1e-6 for value in ends(every, "noise_once", "distance")),
        "noise_further": all(middle(n, "noise", "ratio") < middle(n, "dropout", "ratio") for n in nets),
        "mlp_first": all(middle("mlp", "noise", "ratio") <= middle(n, "noise", "ratio") for n in nets),
        "pays": difference(nets["mlp"], "noise", "sgd").high < 0,
        "dropout_costs": difference(nets["mlp"], "dropout", "sgd").low > 0,
        "dropout_better_than_base": difference(nets["mlp"], "dropout", "base_dropout").high < 0,
        "matched": all(value <= 1e-6 for value in ends(every, "base_matched", "difference")),
        "unmatched": all(value > 1e-2 for value in ends(every, "base", "difference")),
        "half": all(abs(value - 0.5) <= 1e-9 for value in ends(every, "sgd", "published")),
        "deviations": all(
            abs(2 * middle(n, "noise", "published") - middle(n, "noise", "ratio")) > 0.1 for n in nets
        ),
        "trapped": difference(nets["mlp"], "sgd", "fresh").low > 0,
    }  # fmt: skip


def texts(records: list[dict[str, Any]], preset: Any) -> dict[Path, str]:
    """The page and its figure."""
    nets = by_network(records)
    return {PAGE: page(nets, records, preset), FIGURE: figure(nets)}


def page(nets: Runs, records: Sequence[Mapping[str, Any]], preset: Any) -> str:
    """The whole page."""
    told = expected("cloning")
    came_true = claims(nets)
    heads = [TITLES[name] for name in nets]
    clones = [*STAY, "float32", *LEAVE]
    rates = ", ".join(f"{TITLES[name]} {preset.lr[name]:g}" for name in nets)
    before = "; ".join(f"{TITLES[n]} {mean(run['loss'] for run in runs)}" for n, runs in nets.items())
    parts = [
        "# A network is cloned: what stays, and what leaves?",
        provenance(records, "cloning.py", f"{len(records)} runs, twelve trainings each"),
        "## Setting",
        f"A narrow base learns {preset.num_examples} digits with random labels by heart for {preset.base_steps} steps of SGD "
        f"(step size {rates}; batches of {preset.batch_size}, float64). Then `pliant.manifolds.clone` doubles every unit, "
        f"and the wide network goes on for {preset.steps} steps under one treatment; SGD unless it says Adam (step size {preset.lr_adam:g}) "
        f"or momentum (a third of the step size). Noise has σ = {preset.sigma:g}; that of the published kind has σ times the gradient's norm in every entry. All treatments of a seed begin with the same weights and see the same "
        f"batches. Bases: {'; '.join(f'{TITLES[n]} {sizes(preset.sizes[n])}, norm {preset.norms[n]}' for n in nets)}. They are "
        "too small for what they have to learn, so that a network which leaves the manifold has something to gain.",
        "Distance: of the weights to the cloning manifold, over their norm. R²: 1 minus the variance of activations within "
        f"blocks of clones over their whole variance, on {preset.num_seen} examples, the mean over groups of units.",
        "## Answer",
        *answer(nets, came_true),
        "![Distance to the cloning manifold under each treatment](../images/cloning.svg)",
        "## Where they are at the end",
        table(
            ["distance at the end, smallest to largest over seeds", *heads],
            [[NAMES[name], *(exact(ends(runs, name, "distance")) for runs in nets.values())] for name in clones],
        ),
        table(
            ["R² of activations at the end", *heads],
            [[NAMES[name], *(mean(ends(runs, name, "ratio"), 3) for runs in nets.values())] for name in clones],
        ),
        table(
            ["effective rank of activations at the end, mean over layers", *heads],
            [[NAMES[name], *(mean(ends(runs, name, "rank"), 1) for runs in nets.values())] for name in clones],
        ),
        "## Does leaving pay?",
        f"Loss on the training examples, in evaluation mode (before cloning: {before}).",
        table(
            ["loss at the end", *heads],
            [[NAMES[name], *(mean(ends(runs, name, "loss")) for runs in nets.values())] for name in NAMES],
        ),
        table(
            ["difference of the losses, seed by seed", *heads],
            [
                [f"{NAMES[a]} − {NAMES[b]}", *(interval(difference(runs, a, b)) for runs in nets.values())]
                for a, b in (("noise", "sgd"), ("noise_once", "sgd"), ("noise_small", "sgd"), ("dropout", "sgd"), ("dropout", "base_dropout"), ("sgd", "base"), ("sgd", "fresh"), ("noise", "fresh"))
            ],
        ),
        "## Beside the published figures",
        "Joudaki et al. (arXiv 2510.00304) train base and clone on CIFAR-10 for 500 epochs; their numbers are read off figures. "
        "R² in the mean over forward activations and backward gradients, as they define it, and what their code writes "
        "under that name: a ratio of deviations, sample by sample, whose mean adds up the forward half only.",
        table(
            ["network, treatment", "R² published", "R² here, activations", "activations and gradients", "what their code would write"],
            [
                [f"{TITLES[name]}, {word}", said(name, place), mean(ends(runs, treatment, "ratio"), 3), mean([1 - v for v in ends(runs, treatment, "missing_both")], 3), mean(ends(runs, treatment, "published"), 3)]
                for name, runs in nets.items()
                for place, (treatment, word) in enumerate((("noise", "noise"), ("dropout", "dropout"), ("sgd", "SGD"), ("adam", "Adam")))
            ],
        ),
        *differences(nets),
        *section("cloning"),
        *claims_section(told, came_true),
        "## What this does not say",
        "- Some hundred steps are few. What has left is still leaving; what stays, stays by a theorem.\n"
        "- The problem is made so that width helps. On a problem that the base solves, leaving gains nothing.\n"
        "- R² is read in evaluation mode. Weights off the manifold can have equal activations on the examples that were seen.\n"
        "- A fresh network as wide as the clone takes other steps than the clone at one step size; that it fits better or worse is not the manifold's doing alone.\n"
        "- Losses differ between networks for many reasons; only differences within a column are paired." + shared(records),
    ]  # fmt: skip
    return "\n\n".join(parts) + "\n"


def shared(records: Sequence[Mapping[str, Any]]) -> str:
    """Said of records that are older than seeds of their own for each purpose."""
    if not any(record["environment"]["commit"] == ONE_SEED for record in records):
        return ""
    return (
        f"\n- In records of commit {ONE_SEED} a run drew initial weights, dropout and noise from generators that began with one seed. "
        "They are drawn apart now: `run --out FOLDER` makes other records, in some minutes of one core."
    )


def said(network: str, place: int) -> str:
    return number(PUBLISHED[network][place]) if place < 2 else "1.00"


def sizes(found: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {'-'.join(map(str, v)) if isinstance(v, list | tuple) else v}" for key, v in found.items())


def answer(nets: Runs, came_true: Mapping[str, bool]) -> list[str]:
    """The findings in sentences that the numbers write."""
    every = [run for runs in nets.values() for run in runs]
    stayed = max(value for name in STAY for value in ends(every, name, "distance"))
    single = max(ends(every, "float32", "distance"))
    noise = {name: estimate(ends(runs, "noise", "ratio")).mean for name, runs in nets.items()}
    dropped = {name: estimate(ends(runs, "dropout", "ratio")).mean for name, runs in nets.items()}
    gains = {name: difference(runs, "noise", "sgd") for name, runs in nets.items()}
    costs = {name: difference(runs, "dropout", "sgd") for name, runs in nets.items()}
    matched = max(ends(every, "base_matched", "difference"))
    own = min(ends(every, "base", "difference"))

    def listed(found: Mapping[str, float]) -> str:
        return ", ".join(f"{TITLES[name]} {number(value, 3)}" for name, value in found.items())

    def which(found: Mapping[str, Estimate], low: bool) -> str:
        names = [TITLES[n] for n, e in found.items() if (e.high < 0 if low else e.low > 0)]
        return " and ".join(names) if names else "none of the networks"

    return [
        f"- *SGD, momentum and Adam stay*: the largest distance over all networks and seeds is {exact([stayed])}, which is rounding. "
        f"In float32 SGD's is {exact([single])} after as many steps: rounding did not lead away there either.\n"
        f"- *Noise and dropout leave.* R² at the end under noise of the published kind: {listed(noise)}; under dropout: {listed(dropped)}.\n"
        f"- *Leaving pays only sometimes.* Noise ends with a lower loss than the trapped clone, with an interval below zero, for {which(gains, True)}; with a higher one for {which(gains, False)}. "
        f"Dropout ends with a lower one for {which(costs, True)}, with a higher one for {which(costs, False)}.\n"
        f"- *A clone is not its base.* With the same step size their outputs differ by {own:.2g} or more at the end; with the step sizes of `matching_optimizer` by at most {matched:.0e}. "
        "A comparison of a base with its clone under one step size compares two step sizes as well.",
    ]  # fmt: skip


def differences(nets: Runs) -> list[str]:
    """Where ours differ from what was published, in sentences."""
    lines = []
    for name, runs in nets.items():
        for place, treatment in enumerate(("noise", "dropout")):
            found = estimate(ends(runs, treatment, "ratio"))
            away = found.mean - PUBLISHED[name][place]
            lines.append(
                f"- {TITLES[name]}, {treatment}: {number(abs(away))} {'above' if away > 0 else 'below'} the published R²."
            )
    noise = [estimate(ends(runs, "noise", "ratio")).mean for runs in nets.values()]
    drop = [estimate(ends(runs, "dropout", "ratio")).mean for runs in nets.values()]
    further = sum(a < b for a, b in zip(noise, drop, strict=True))
    twice = {
        name: 2 * estimate(ends(runs, "noise", "published")).mean - estimate(ends(runs, "noise", "ratio")).mean
        for name, runs in nets.items()
    }
    return [
        f"The direction (SGD and Adam at 1, noise and dropout below) is the same. Noise goes further than dropout in {further} of "
        f"{len(nets)} networks; published, in all four. The sizes are not the same, and need not be: steps, data, widths and the "
        "noise's size relative to the gradient (which grows with the square root of a tensor's size) all differ.",
        "\n".join(lines),
        "Their code's number is 0.5 where clones are perfect. Twice it differs from the true ratio under noise by "
        + ", ".join(f"{number(value)} ({TITLES[name]})" for name, value in twice.items())
        + ": a mean over samples of ratios of deviations is not the ratio of two variances.",
    ]


def figure(nets: Runs) -> str:
    """Distance over steps, a panel for each network."""
    shown = [("sgd", 1, 0), ("adam", 2, 0), ("float32", 4, 1), ("noise", 0, 0), ("noise_once", 6, 2), ("noise_small", 5, 1), ("dropout", 3, 0)]  # fmt: skip
    items = []
    for network, runs in nets.items():
        lines = []
        for name, colour, dash in shown:
            steps = [point[0] for point in runs[0]["treatments"][name]["curve"]]
            logs = [
                estimate(
                    math.log10(max(1e-18, values(run["treatments"][name]["curve"][place])[1])) for run in runs
                )
                for place in range(len(steps))
            ]  # fmt: skip
            points = [Estimate(10**e.mean, 10**e.low, 10**e.high, e.num, e.num_excluded) for e in logs]
            lines.append(Line(NAMES[name], colour, [max(step, 0.5) for step in steps], points, dash))
        items.append(Panel(TITLES[network], "steps after cloning", lines, log_x=True, log_y=True, limits=(1e-18, 1.0)))
    return panels("Distance to the cloning manifold, relative to the weights (geometric means)", items, 2, 250)
