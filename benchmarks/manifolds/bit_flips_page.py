"""The page and the figure of slowly-changing regression."""

# ruff: noqa: E501

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks.manifolds.common import ROOT, expected
from benchmarks.manifolds.draw import Line, Panel, panels
from benchmarks.manifolds.forecast import section
from benchmarks.manifolds.text import claims_section, interval, number, provenance, table, values
from pliant.intervals import Estimate, band, estimate

__all__ = ["binned", "claims", "difference", "end", "of_width", "texts"]

PAGE = ROOT / "docs" / "results" / "bit_flips.md"
FIGURE = ROOT / "docs" / "images" / "bit_flips.svg"
ARMS = {"sgd": "SGD", "switch": "SGD, then continual backprop", "continual_backprop": "continual backprop"}
SYMPTOMS = {
    "loss": "online loss",
    "rank": "effective rank",
    "duplicate": "duplicates, as published (cosine above 0.98)",
    "cloned": "cloned units (correlation above 0.98)",
    "dead": "dead units",
}
PUBLISHED = {
    5: {"rank": (2.9, 4.3), "duplicate": (0.01, 0.0), "loss": (0.92, 0.46)},
    10: {"rank": (4.5, 7.0), "duplicate": (0.09, 0.0), "loss": (0.84, 0.38)},
    50: {"rank": (7.3, 9.3), "duplicate": (0.38, 0.07), "loss": (0.59, 0.06)},
    100: {"rank": (7.6, 9.3), "duplicate": (0.53, 0.22), "loss": (0.53, 0.10)},
}
"""SGD and continual backprop at the end, as read off the published bars."""
Widths = Mapping[int, Sequence[Mapping[str, Any]]]
BINS = 20


def of_width(records: Sequence[Mapping[str, Any]]) -> dict[int, list[Mapping[str, Any]]]:
    """The runs of each width."""
    widths = sorted({int(record["cell"]["width"]) for record in records})
    return {width: [r for r in records if r["cell"]["width"] == width] for width in widths}


def end(run: Mapping[str, Any], arm: str, what: str, at: float = 1.0) -> float:
    """Of an arm: the loss of the last tenth of the tasks up to a share of all, or a symptom at the last look up to there."""
    losses = values(run["arms"][arm]["loss"])
    stop = round(at * len(losses))
    if what == "loss":
        last = losses[stop - max(1, len(losses) // 10) : stop]
        return sum(last) / len(last)
    looks = [look for look in run["arms"][arm]["looks"] if look["task"] < stop]
    return values([looks[-1][what]])[0]


def difference(runs: Sequence[Mapping[str, Any]], arm: str, against: str, what: str) -> Estimate:
    """Of two arms of the same seed at the end, over seeds."""
    return estimate(end(run, arm, what) - end(run, against, what) for run in runs)


def over(runs: Sequence[Mapping[str, Any]], arm: str, what: str, at: float = 1.0) -> Estimate:
    return estimate(end(run, arm, what, at) for run in runs)


def binned(losses: Sequence[float], bins: int = BINS) -> list[float]:
    """Means over equal parts of a series, as many as there can be.

    >>> binned([1.0, 3.0, 5.0, 7.0], 2)
    [2.0, 6.0]
    """
    size = max(1, len(losses) // bins)
    return [sum(losses[i : i + size]) / size for i in range(0, len(losses) - size + 1, size)]


def claims(widths: Widths) -> dict[str, bool]:
    """Whether what was expected came true."""
    wide, narrow = max(widths), min(widths)
    first = {w: estimate(sum(values(r["arms"]["sgd"]["loss"])[5:15]) / 10 for r in runs) for w, runs in widths.items()}
    return {
        "loses": all(over(runs, "sgd", "loss").mean > first[w].mean for w, runs in widths.items()),
        "helps": all(difference(runs, "switch", "sgd", "loss").high < 0 for runs in widths.values()),
        "rank": all(difference(runs, "switch", "sgd", "rank").low > 0 for runs in widths.values()),
        "duplicates_wide": over(widths[wide], "sgd", "duplicate").mean > over(widths[narrow], "sgd", "duplicate").mean,
        "duplicates_fall": difference(widths[wide], "switch", "sgd", "duplicate").high < 0,
        "catches_up": all(difference(runs, "switch", "continual_backprop", "loss").low < 0.1 for runs in widths.values()),
        "dead": all(difference(runs, "switch", "sgd", "dead").mean <= 0 for runs in widths.values()),
    }  # fmt: skip


def texts(records: list[dict[str, Any]], preset: Any) -> dict[Path, str]:
    """The page and its figure."""
    widths = of_width(records)
    return {PAGE: page(widths, records, preset), FIGURE: figure(widths, preset)}


def page(widths: Widths, records: Sequence[Mapping[str, Any]], preset: Any) -> str:
    """The whole page."""
    steps = preset.num_tasks * preset.num_examples
    parts = [
        "# Slowly-changing regression: a switch to continual backprop",
        provenance(records, "bit_flips.py", f"{len(records)} runs of three arms"),
        "## Setting",
        f"Twenty input bits, fifteen of which stand still; one of these flips every {preset.num_examples:,} examples. The target is a fixed network of 100 threshold units. "
        f"A network 20-H-1 with ReLU learns online, one example at a time, with SGD (step size {preset.lr:g}) and squared error, from {steps:,} examples. "
        f"After half of them one arm goes on with SGD and the other with continual backprop as well (replacement rate {preset.replacement_rate:g}, maturity threshold "
        f"{preset.maturity_threshold}); a third arm has it from the start. All arms of a seed begin with the same weights and see the same examples. "
        f"Loss is that of the last tenth of the tasks, before each update; symptoms are read on the last {preset.num_seen} examples of the last task.",
        "## Answer",
        *answer(widths),
        "![Online loss, duplicates and dead units over tasks](../images/bit_flips.svg)",
        "## At the end",
        table(
            ["", *(f"H = {w}" for w in widths)],
            [[f"{SYMPTOMS[what]}: {ARMS[arm]}", *(interval(over(runs, arm, what)) for runs in widths.values())] for what in SYMPTOMS for arm in ARMS],
        ),
        "Seed by seed, at the end:",
        table(
            ["difference", *(f"H = {w}" for w in widths)],
            [
                [f"{SYMPTOMS[what]}: {ARMS[a]} − {ARMS[b]}", *(interval(difference(runs, a, b, what)) for runs in widths.values())]
                for what in SYMPTOMS
                for a, b in (("switch", "sgd"), ("switch", "continual_backprop"))
            ],
        ),
        "Units replaced after the switch, mean over seeds: "
        + ", ".join(f"{number(estimate(float(r['arms']['switch']['resets']) for r in runs).mean, 0)} of {w}" for w, runs in widths.items())
        + ".",
        "## Beside the published figures",
        "Joudaki et al. (arXiv 2510.00304), 5,000,000 examples, a flip every 10,000, the switch after half of them; last 100,000 examples, read off bars. Their implementation writes new incoming weights "
        "into a copy, zeroes all biases of the layer and replaces at least one unit at every step once units are mature, so what they switch to is another method.",
        table(
            ["width", "what", "published: SGD, continual backprop", "here: SGD", "here: after the switch"],
            [
                [str(w), SYMPTOMS[what], f"{PUBLISHED[w][what][0]:g}, {PUBLISHED[w][what][1]:g}", interval(over(runs, "sgd", what)), interval(over(runs, "switch", what))]
                for w, runs in widths.items()
                if w in PUBLISHED
                for what in ("loss", "rank", "duplicate")
            ],
        ),
        *differences(widths),
        *section("bit_flips"),
        *claims_section(expected("bit_flips"), claims(widths)),
        "## What this does not say",
        "- Tasks are a twentieth as long as the published ones, and a run has 1/125 of their examples: symptoms that take millions of steps to build up are not seen.\n"
        "- Five bits vary within a task, so there are 32 different inputs and the rank of the activations is small whatever the width.\n"
        f"- The replacement rate is one for all widths, and counts for each unit: at H = {max(widths)} about one unit in {1 / (preset.replacement_rate * max(widths)):.0f} steps is drawn anew. It was not tuned for each width, and runs this short reward what learns fast.",
    ]  # fmt: skip
    return "\n\n".join(parts) + "\n"


def answer(widths: Widths) -> list[str]:
    """The findings in sentences that the numbers write."""
    gains = {w: difference(runs, "switch", "sgd", "loss") for w, runs in widths.items()}
    ranks = {w: difference(runs, "switch", "sgd", "rank") for w, runs in widths.items()}
    copies = {w: difference(runs, "switch", "sgd", "duplicate") for w, runs in widths.items()}
    dead = {w: difference(runs, "switch", "sgd", "dead") for w, runs in widths.items()}
    better = [f"H = {w}" for w, e in gains.items() if e.high < 0]
    worse = [f"H = {w}" for w, e in gains.items() if e.low > 0]
    plain = ", ".join(f"{number(over(runs, 'sgd', 'duplicate').mean)} (H = {w})" for w, runs in widths.items())
    return [
        f"- *The switch*: loss at the end minus that of plain SGD: {'; '.join(f'{interval(e)} (H = {w})' for w, e in gains.items())}. Lower, with an interval below zero, for {', '.join(better) or 'no width'}; higher for {', '.join(worse) or 'none'}.\n"
        f"- *Effective rank* rises by {'; '.join(f'{interval(e, 1)} (H = {w})' for w, e in ranks.items())}.\n"
        f"- *Dead units* change by {'; '.join(f'{interval(e)} (H = {w})' for w, e in dead.items())}.\n"
        f"- *Duplicates* change by {'; '.join(f'{interval(e)} (H = {w})' for w, e in copies.items())}. Under SGD they are {plain}.",
    ]  # fmt: skip


def differences(widths: Widths) -> list[str]:
    """Where ours differ from what was published."""
    lines = []
    for w, runs in widths.items():
        if w not in PUBLISHED:
            continue
        for what in ("loss", "rank", "duplicate"):
            theirs = PUBLISHED[w][what][1] - PUBLISHED[w][what][0]
            ours = difference(runs, "switch", "sgd", what)
            if not ours.excludes_zero:
                word = "no change that the interval shows"
            else:
                word = "the same direction" if (ours.mean > 0) == (theirs > 0) else "**the other direction**"
            lines.append(f"- H = {w}, {SYMPTOMS[what]}: {number(theirs)} published, {interval(ours)} here: {word}.")
    return ["What the switch changes:", "\n".join(lines)]


def figure(widths: Widths, preset: Any) -> str:
    """Loss, duplicates and dead units over tasks, for each width."""
    colours = {"sgd": 0, "switch": 1, "continual_backprop": 2}
    items = []
    for width, runs in widths.items():
        lines = []
        for arm, colour in colours.items():
            series = [binned(values(run["arms"][arm]["loss"])) for run in runs]
            size = len(runs[0]["arms"][arm]["loss"]) / len(series[0])
            places = [size * (place + 0.5) for place in range(len(series[0]))]
            lines.append(Line(ARMS[arm], colour, places, band(series), 1 if arm == "continual_backprop" else 0))
        items.append(Panel(f"H = {width}: online loss", "task", lines))
    for (what, name), (width, runs) in product((("duplicate", "duplicates"), ("dead", "dead units")), widths.items()):
        lines = []
        for arm, colour in colours.items():
            series = [values(look[what] for look in run["arms"][arm]["looks"]) for run in runs]
            places = [look["task"] + 1 for look in runs[0]["arms"][arm]["looks"]]
            lines.append(Line(ARMS[arm], colour, places, band(series), 1 if arm == "continual_backprop" else 0))
        items.append(Panel(f"H = {width}: {name}", "task", lines, limits=(0.0, 1.0)))
    title = f"Slowly-changing regression; the switch is after task {preset.num_tasks // 2}"
    return panels(title, items, len(widths), 200)
