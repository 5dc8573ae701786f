"""Of the normalisation study's page: aged networks beside fresh ones, and the same on real images."""

# ruff: noqa: E501

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

from benchmarks.manifolds.common import expected
from benchmarks.manifolds.factorial import Factorial, correlation, effect, fall_correlation, interaction
from benchmarks.manifolds.models import TITLES
from benchmarks.manifolds.normalisation_findings import NORM_NAMES, tables, title
from benchmarks.manifolds.symptoms import SYMPTOMS
from benchmarks.manifolds.text import claims_section, commits, interval, number, table, values
from pliant.intervals import Estimate

__all__ = ["behind", "control", "fresh", "fresh_claims", "image_claims", "images", "images_answer", "lost", "named"]

Records = Sequence[Mapping[str, Any]]
PLAIN = ((False,), (False,))


def fresh(run: Mapping[str, Any], what: str = "online") -> float:
    """Mean over the last tasks of what fresh networks reach on them."""
    found = values(run["fresh"][what])
    return math.fsum(found) / len(found)


def behind(run: Mapping[str, Any], what: str = "online") -> float:
    """What the aged network reaches on these tasks, minus that: negative where plasticity is lost."""
    own = values(run[what])[-len(run["fresh"][what]) :]
    return math.fsum(own) / len(own) - fresh(run, what)


def lost(records: Records, what: str = "online") -> Factorial:
    """The same by cell and seed."""
    return Factorial(records, lambda run: behind(run, what))


def fresh_claims(records: Records) -> dict[str, bool]:
    """Whether what was expected of the control came true."""
    gap, trained = lost(records), lost(records, "trained")

    def of(network: str, norm: str, dropout: bool = False, noise: bool = False, data: Factorial = gap) -> Estimate:
        return data.mean(network, norm, (dropout,), (noise,))

    return {
        "none_ahead": all(of(n, "none").low > 0 for n in ("mlp", "convnet")),
        "layer_ahead": all(of(n, "layer").low > 0 for n in TITLES),
        "batch_behind": all(of(n, "batch").high < 0 for n in ("mlp", "convnet", "vit")),
        "batch_resnet": of("resnet", "batch").low > 0,
        "batch_trained": all(of(n, "batch", data=trained).mean > -0.1 for n in TITLES),
        "dropout_more": all(of(n, "batch", True).mean < of(n, "batch").mean for n in ("mlp", "convnet", "vit")),
        "vit_behind": of("vit", "none", True, True).high < 0,
    }


def image_claims(records: Records) -> dict[str, bool]:
    """Whether what was expected on real images came true."""
    score, bad, networks = tables(records)
    gap = lost(records)

    def of(network: str, norm: str) -> Estimate:
        return gap.mean(network, norm, *PLAIN)

    clones = fall_correlation(bad["cloned"], score, networks)
    return {
        "mlp_behind": of("mlp", "none").high < 0,
        "others_ahead": all(of(n, "none").low > 0 for n in ("convnet", "resnet")),
        "batch_keeps": all(of(n, "batch").mean >= -0.05 for n in networks),
        "accuracy": all(effect(score, n, "norm", "batch").low > 0 for n in ("mlp", "convnet")),
        "dead": all(
            effect(bad["dead"], n, "norm", norm).high < 0
            for n in ("mlp", "convnet", "resnet")
            for norm in ("batch", "layer")
        ),
        "correlates_dead": fall_correlation(bad["dead"], score, networks).low > 0,
        "clones_not": clones.low <= 0 <= clones.high,
        "redundant": all(interaction(score, "mlp", "norm", "dropout", norm).mean > 0 for norm in ("batch", "layer")),
    }


def named(gap: Factorial, networks: Sequence[str], sign: int) -> str:
    """The cells whose interval is on one side of zero, with their estimates."""
    found = []
    for network in networks:
        for norm, name in NORM_NAMES.items():
            for dropout in gap.dropouts:
                for noise in gap.noises:
                    here = gap.mean(network, norm, (dropout,), (noise,))
                    if (here.high < 0) if sign < 0 else (here.low > 0):
                        more = "".join([", dropout" * dropout, ", noise" * noise])
                        found.append(f"{TITLES[network]} ({name}{more}) {interval(here)}")
    return "; ".join(found) or "none"


def count(gap: Factorial, networks: Sequence[str]) -> str:
    """How many cells of each network are ahead."""
    cells = list(product(NORM_NAMES, gap.dropouts, gap.noises))
    ahead = {n: sum(gap.mean(n, norm, (d,), (s,)).low > 0 for norm, d, s in cells) for n in networks}
    return ", ".join(f"{number} of {len(cells)} cells of the {TITLES[n]}" for n, number in ahead.items())


def gaps(records: Records) -> str:
    """Aged and fresh networks, cell by cell."""
    _, _, networks = tables(records)
    gap, trained, test = (lost(records, what) for what in ("online", "trained", "test"))
    new, num = Factorial(records, fresh), len(records[0]["fresh"]["online"])
    aged = Factorial(records, lambda run: math.fsum(values(run["online"])[-num:]) / num)
    combined = [(d, s) for s in gap.noises for d in gap.dropouts if d or s]
    rows = [
        [
            TITLES[network], name, interval(aged.mean(network, norm, *PLAIN)), interval(new.mean(network, norm, *PLAIN)),
            interval(gap.mean(network, norm, *PLAIN)),
            *(interval(gap.mean(network, norm, (dropout,), (noise,))) for dropout, noise in combined),
            interval(trained.mean(network, norm, *PLAIN)), interval(test.mean(network, norm, *PLAIN)),
        ]
        for network in networks
        for norm, name in NORM_NAMES.items()
    ]  # fmt: skip
    names = {(True, False): "with dropout", (False, True): "with noise", (True, True): "with both"}
    head = ["network", "norm", "aged", "fresh", "aged − fresh", *(names[c] for c in combined), "after the passes", "held-out"]  # fmt: skip
    return table(head, rows).replace("|:--|--:|", "|:--|:--|", 1)


def control(records: Records) -> list[str]:
    """What fresh networks make of the last tasks."""
    _, _, networks = tables(records)
    gap = lost(records)
    num = len(records[0]["fresh"]["online"])
    return [
        "## Beside fresh networks",
        f"Each of the last {num} tasks is also learnt by a fresh network of the same cell: its own initial weights and a new optimizer, the same batches. What the aged network lacks beside it is lost plasticity; "
        "what it has more comes from tasks before. *Aged* and *fresh* are online accuracy without dropout and noise, then aged minus fresh, also with dropout, noise or both; *after the passes* and *held-out* are aged minus fresh in accuracy on the task's examples after training, and on its held-out ones.",
        gaps(records),
        f"- *Behind fresh networks*, with an interval below zero: {named(gap, networks, -1)}.\n"
        f"- *Ahead of them*, with an interval above zero: {count(gap, networks)}.",
        *claims_section(expected("normalisation_fresh"), fresh_claims(records), "### Expectations of this control"),
    ]


def images_answer(records: Records) -> list[str]:
    """What real images say, in one sentence of the page's answer."""
    if not records:
        return []
    score, bad, networks = tables(records)
    gains = "; ".join(
        f"{TITLES[n]} {interval(effect(score, n, 'norm', 'batch'))} with BatchNorm, {interval(effect(score, n, 'norm', 'layer'))} with LayerNorm"
        for n in networks
    )
    return [
        f"- *On real images*, a subset of CIFAR-100 at small size: a norm's effect on accuracy is {gains}. Behind fresh networks are {named(lost(records), networks, -1)}. "
        f"The fall of dead units goes with the gain of accuracy by {interval(fall_correlation(bad['dead'], score, networks))}, that of cloned units by {interval(fall_correlation(bad['cloned'], score, networks))}."
    ]


def images(records: Records, preset: Any) -> list[str]:
    """The same factorial on real images, where its records are there."""
    if not records:
        return []
    score, bad, networks = tables(records)
    gap, num = lost(records), len(records[0]["fresh"]["online"])
    seeds = sorted({int(record["seed"]) for record in records})
    took = sum(float(record["seconds"]) for record in records) / 60
    lr = ", ".join(f"{value:g}" for value in sorted(set(preset.lr.values())))
    plain = {n: score.mean(n, "none", *PLAIN) for n in networks}
    plainly = ", ".join(f"{TITLES[n]} {number(plain[n].mean)}" for n in networks)
    columns = [(n, norm) for n in networks for norm in ("batch", "layer")]
    return [
        "## On real images, at small size",
        f"A subset of CIFAR-100: 100 of the 500 training images and 50 of the 100 test images of each class, 32 x 32 pixels in colour. Records of `python benchmarks/manifolds/normalisation.py run --preset images --seeds {' '.join(map(str, seeds))}` "
        f"({len(records)} runs, {commits(records)}, {took:.0f} minutes of one core). The same factorial without noise, and the same small networks (patches of 8 pixels in the ViT), {preset.num_tasks} tasks of five classes, {preset.num_epochs} pass over 500 images in batches of {preset.batch_size}, Adam with step size {lr}, no augmentation. "
        f"Fresh networks learn the last {num} tasks. This is small: it says whether the direction holds on real images, and nothing about the published size. With {len(seeds)} seeds intervals are wide.",
        gaps(records),
        f"- *Behind fresh networks*, with an interval below zero: {named(gap, networks, -1)}.\n"
        f"- *Ahead of them*, with an interval above zero: {count(gap, networks)}.",
        "Symptom with a norm minus without it, mean over dropout; a negative number is a fall.",
        table(
            ["symptom", *(f"{TITLES[n]}, {NORM_NAMES[norm]}" for n, norm in columns)],
            [[title(name), *(interval(effect(bad[name], n, "norm", norm)) for n, norm in columns)] for name in SYMPTOMS],
        ),
        "Rank correlation with accuracy over all networks, within a seed.",
        table(
            ["symptom", "levels", "falls with gains"],
            [[title(name), interval(correlation(bad[name], score, networks)), interval(fall_correlation(bad[name], score, networks))] for name in SYMPTOMS],
        ),
        "Effect on online accuracy over the last quarter of the tasks: "
        + "; ".join(f"{TITLES[n]} {interval(effect(score, n, 'norm', 'batch'))} with BatchNorm, {interval(effect(score, n, 'norm', 'layer'))} with LayerNorm, {interval(effect(score, n, 'dropout'))} with dropout" for n in networks)
        + f". Mean without norm and dropout: {plainly}; chance is 0.20.",
        *claims_section(expected("normalisation_images"), image_claims(records), "### Expectations on real images"),
    ]  # fmt: skip
