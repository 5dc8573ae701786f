"""The page and the figure of the rank simulations."""

# ruff: noqa: E501

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.manifolds.common import ROOT, expected
from benchmarks.manifolds.draw import Line, Panel, panels
from benchmarks.manifolds.text import claims_section, interval, number, provenance, table, values
from pliant.intervals import Estimate, estimate

__all__ = ["claims", "of_sweep", "texts"]

PAGE = ROOT / "docs" / "results" / "rank_simulations.md"
FIGURE = ROOT / "docs" / "images" / "rank_simulations.svg"
LIMIT = (math.pi - 2) / (math.pi + 2)
"""The nonlinearity of a sign: its first Hermite weight is 2 / pi."""
COLUMNS = {
    "gain": "gain of rank, samples",
    "theory": "theory",
    "bound": "lower bound",
    "of_covariance": "gain by covariance, samples",
    "nonlinearity": "γ",
    "vanished": "share of vanished derivatives",
    "frozen": "frozen units",
    "silent": "units that never vary",
}
Sweep = Mapping[float, Mapping[str, Estimate]]


def of_sweep(records: Sequence[Mapping[str, Any]], name: str) -> dict[float, dict[str, Estimate]]:
    """Estimates over seeds at each value of a sweep."""
    runs = [record for record in records if record["cell"]["sweep"] == name]
    found: dict[float, dict[str, Estimate]] = {}
    for place, point in enumerate(runs[0]["points"] if runs else []):
        keys = [key for key in point if key != "value"]
        found[point["value"]] = {
            key: estimate(values(run["points"][place][key] for run in runs)) for key in keys
        }  # fmt: skip
    return found


def claims(records: Sequence[Mapping[str, Any]]) -> dict[str, bool]:
    """Whether what was expected came true."""
    tanh, relu, clones = (of_sweep(records, name) for name in ("tanh", "relu", "clones"))
    points = [p for r in records for p in r["points"]]

    def rising(items: Sequence[float]) -> bool:
        return all(b >= a - 1e-9 for a, b in itertools.pairwise(items))

    near = [p for p in points if p["gain"] is not None and p["silent"] == 0]
    return {
        "bound": all(p["theory"] >= p["bound"] - 1e-4 for p in points),
        "agrees": sum(abs(p["gain"] - p["theory"]) <= 0.1 * p["theory"] for p in near) >= 0.9 * len(near),
        "tanh_rises": rising([tanh[a]["theory"].mean for a in sorted(tanh)]),
        "relu_rises": rising([relu[b]["theory"].mean for b in sorted(relu, reverse=True)]),
        "tanh_vanishes": tanh[max(tanh)]["vanished"].mean > 0.9,
        "tanh_not_frozen": all(e["frozen"].mean == 0 for a, e in tanh.items() if a <= 32),
        "relu_frozen": relu[min(relu)]["frozen"].mean == 1,
        "gamma_tanh": all(e["nonlinearity"].mean < LIMIT + 1e-3 for e in tanh.values()),
        "gamma_relu": relu[min(relu)]["nonlinearity"].mean > 0.9,
        "silent": relu[min(relu)]["silent"].mean > 0.2,
        "covariance": relu[min(relu)]["of_covariance"].mean < relu[min(relu)]["theory"].mean,
        "clones": all(abs(clones[r]["theory"].mean - 1) <= 1e-4 for r in clones if r in (0, 1))
        and all(clones[r]["theory"].mean > 1.001 for r in clones if 0 < r < 0.999),
        "tension": all((e["tension"].mean == 0) == (r in (0, 1)) for r, e in clones.items()),
    }  # fmt: skip


def texts(records: list[dict[str, Any]], preset: Any) -> dict[Path, str]:
    """The page and its figure."""
    return {PAGE: page(records, preset), FIGURE: figure(records)}


def page(records: Sequence[Mapping[str, Any]], preset: Any) -> str:
    """The whole page."""
    tanh, relu, clones = (of_sweep(records, name) for name in ("tanh", "relu", "clones"))
    runs = len({record["seed"] for record in records})
    parts = [
        "# Rank and saturation: the simulations",
        provenance(records, "rank.py", f"three sweeps with {runs} seeds"),
        "## Setting",
        f"{preset.num_units} Gaussian pre-activations with a random correlation matrix: {preset.num_factors} common factors carry half of each one's variance. {preset.num_samples:,} samples go through "
        "tanh(a z) or ReLU(z + b). The gain of rank is the participation ratio of the correlation matrix after the activation over that before; beside the samples stand the theory (Hermite series) and "
        f"its lower bound. A derivative has vanished below {preset.tau:g} in size; a unit is frozen where it has on more than {100 * preset.share:g} % of the samples. In the third sweep units come in independent "
        f"blocks of {preset.block_size} with one correlation inside, and go through ReLU(z): at 1 they are clones.",
        "## Answer",
        *answer(tanh, relu, clones),
        "![Gain of rank and vanished derivatives](../images/rank_simulations.svg)",
        *(
            f"## {name}\n\n" + table([head, *COLUMNS.values()], [[number(v, 3).rstrip("0").rstrip("."), *(interval(e[key]) for key in COLUMNS)] for v, e in sweep.items()])
            for name, head, sweep in (("tanh(a z)", "a", tanh), ("ReLU(z + b)", "b", relu), ("Blocks of clones, ReLU(z)", "correlation inside", clones))
        ),
        "## Beside the published claims",
        "Joudaki et al. (arXiv 2510.00304): sweeping a gain of tanh or a bias of ReLU, the rank of the features rises while the share of frozen units goes to one; a nonlinearity γ near one needs saturation "
        "(ReLU with a bias far below zero, tanh with a large gain); a low rank can be held only where correlations are 0 or ±1: clones.",
        *differences(tanh, relu, clones),
        *claims_section(expected("rank"), claims(records)),
        "## What this does not say",
        "- These are Gaussian pre-activations of one layer, no trained network.\n"
        "- Theory is of correlations. A unit that hardly ever is on has a correlation with others that no finite sample shows.",
    ]  # fmt: skip
    return "\n\n".join(parts) + "\n"


def answer(tanh: Sweep, relu: Sweep, clones: Sweep) -> list[str]:
    """The findings in sentences that the numbers write."""
    a, b = max(tanh), min(relu)
    return [
        f"- *Rank rises with saturation.* The gain goes from {interval(tanh[min(tanh)]['theory'])} at a = {min(tanh):g} to {interval(tanh[a]['theory'])} at a = {a:g}, and from {interval(relu[max(relu)]['theory'])} at b = {max(relu):g} to {interval(relu[b]['theory'])} at b = {number(b, 1)}.\n"
        f"- *Derivatives vanish.* At the ends {interval(tanh[a]['vanished'])} of tanh's and {interval(relu[b]['vanished'])} of ReLU's are below the threshold.\n"
        f"- *Units of tanh freeze late*: those with a = {a:g} are frozen to {interval(tanh[a]['frozen'])}, with a = {sorted(tanh)[-2]:g} to {interval(tanh[sorted(tanh)[-2]]['frozen'])}.\n"
        f"- *Clones hold their rank.* The gain is {interval(clones[min(clones)]['theory'])} with independent units and {interval(clones[max(clones)]['theory'])} with clones, and at most {number(max(e['theory'].mean for e in clones.values()))} between.",
    ]  # fmt: skip


def differences(tanh: Sweep, relu: Sweep, clones: Sweep) -> list[str]:
    """Where ours differ from what was published."""
    a, b = max(tanh), min(relu)
    holds = all(e["theory"].mean >= e["bound"].mean - 1e-4 for sweep in (tanh, relu, clones) for e in sweep.values())
    largest = max(relu, key=lambda v: relu[v]["of_covariance"].mean)
    return [
        f"- *Saturation by gain does not bring γ to one.* Tanh's ends at {number(tanh[a]['nonlinearity'].mean, 3)}: with centred pre-activations tanh becomes a sign, whose γ is (π − 2)/(π + 2) = {number(LIMIT, 3)}. ReLU's goes to {number(relu[b]['nonlinearity'].mean, 3)} at b = {number(b, 1)}. That γ near one needs saturation is not refuted; that a large gain is enough is, as long as pre-activations are centred.\n"
        f"- *Rank of samples is not rank of correlations.* At b = {number(b, 1)}, {interval(relu[b]['silent'])} of the units never vary on the samples, and the participation ratio of the covariance, which is what a monitor measures on a network, has a gain of {interval(relu[b]['of_covariance'])} there, {interval(relu[largest]['of_covariance'])} at b = {number(largest, 1)}, where theory says {interval(relu[b]['theory'])} and {interval(relu[largest]['theory'])}.\n"
        + ("- The lower bound of the later versions holds at every point." if holds else "- **The lower bound is violated.**"),
    ]  # fmt: skip


def figure(records: Sequence[Mapping[str, Any]]) -> str:
    """The three sweeps: gains above, derivatives below."""
    items = []
    for name, x_title in (("tanh", "gain a"), ("relu", "bias b"), ("clones", "correlation inside a block")):
        sweep = of_sweep(records, name)
        places = sorted(sweep)
        log = name == "tanh"
        shown = (("theory", "theory", 1, 0), ("gain", "samples", 0, 1), ("bound", "lower bound", 7, 2), ("of_covariance", "samples, by covariance", 6, 3))  # fmt: skip
        lines = [
            Line(label, colour, places, [sweep[p][key] for p in places], dash) for key, label, colour, dash in shown
        ]
        items.append(Panel({"tanh": "tanh(a z)", "relu": "ReLU(z + b)", "clones": "blocks, ReLU(z)"}[name] + ": gain of rank", x_title, lines, log_x=log))  # fmt: skip
    for name, x_title in (("tanh", "gain a"), ("relu", "bias b"), ("clones", "correlation inside a block")):
        sweep = of_sweep(records, name)
        places = sorted(sweep)
        shown = (("vanished", "vanished derivatives", 2, 0), ("frozen", "frozen units", 3, 1), ("nonlinearity", "nonlinearity γ", 4, 2))  # fmt: skip
        lines = [
            Line(label, colour, places, [sweep[p][key] for p in places], dash) for key, label, colour, dash in shown
        ]
        items.append(Panel("shares", x_title, lines, log_x=name == "tanh", limits=(0.0, 1.0)))
    return panels("Rank and saturation of Gaussian features", items, 3, 230)
