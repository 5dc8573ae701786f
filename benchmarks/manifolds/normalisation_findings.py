"""What the records of the normalisation study say: levels, effects, and whether expectations came true."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.manifolds.factorial import Factorial, effect, fall_correlation, interaction
from benchmarks.manifolds.models import TITLES
from benchmarks.manifolds.symptoms import SYMPTOMS
from benchmarks.manifolds.text import values
from pliant.intervals import Estimate

__all__ = ["CONTRASTS", "NORM_NAMES", "RISING", "accuracy", "claims", "early", "level", "quarter", "tables", "title"]

RISING = ("dead", "saturated", "cloned", "duplicate", "published_saturated")
"""Symptoms that are worse when high; the ranks are worse when low."""
NORM_NAMES = {"none": "no norm", "batch": "BatchNorm", "layer": "LayerNorm"}
Records = Sequence[Mapping[str, Any]]


def title(name: str) -> str:
    """A symptom so that high is bad."""
    return SYMPTOMS[name] if name in RISING else f"1 − {SYMPTOMS[name]}"


def quarter(series: Sequence[Any]) -> int:
    """How many entries a quarter of a series has, at least one."""
    return max(1, len(series) // 4)


def accuracy(run: Mapping[str, Any]) -> float:
    """Mean online training accuracy over the last quarter of the tasks."""
    last = values(run["online"])[-quarter(run["online"]) :]
    return math.fsum(last) / len(last)


def early(run: Mapping[str, Any]) -> float:
    """The same over the first quarter."""
    first = values(run["online"])[: quarter(run["online"])]
    return math.fsum(first) / len(first)


def level(run: Mapping[str, Any], symptom: str) -> float:
    """Mean of a symptom over the looks at the last quarter of the tasks; of a rank, one minus it: high is bad."""
    start = len(run["online"]) - quarter(run["online"])
    found = values(look[symptom] for look in run["looks"] if look["task"] >= start)
    value = math.fsum(found) / len(found) if found else math.nan
    return value if symptom in RISING else 1 - value


def tables(records: Records) -> tuple[Factorial, dict[str, Factorial], list[str]]:
    """Accuracy, symptoms, and the networks that are there."""
    networks = [name for name in TITLES if any(r["cell"]["network"] == name for r in records)]
    return (
        Factorial(records, accuracy),
        {name: Factorial(records, lambda run, name=name: level(run, name)) for name in SYMPTOMS},
        networks,
    )


def claims(records: Records) -> dict[str, bool]:
    """Whether what was expected came true."""
    score, bad, networks = tables(records)
    change = Factorial(records, lambda run: accuracy(run) - early(run))

    both, convolutional = ("batch", "layer"), ("convnet", "resnet")

    def norms(data: Factorial, network: str) -> list[Estimate]:
        return [effect(data, network, "norm", norm) for norm in both]

    def changed(network: str, norm: str) -> Estimate:
        return change.mean(network, norm, (False,), (False,))

    most = effect(score, "mlp", "norm", "layer").mean
    return {
        "accuracy": all(e.low > 0 for n in ("mlp", "vit") for e in norms(score, n)),
        "small_gain": all(e.mean < most for n in convolutional for e in norms(score, n)),
        "loses": all(changed(n, "none").high < 0 for n in ("mlp", "vit")),
        "keeps": all(changed(n, norm).low > -0.05 for n in networks for norm in both),
        "dead": all(e.high < 0 for n in ("mlp", *convolutional) for e in norms(bad["dead"], n)),
        "rank": all(e.high < 0 for n in networks for e in norms(bad["rank"], n)),
        "clones_vit": all(e.high < 0 for e in norms(bad["cloned"], "vit")),
        "saturated_wrong": any(e.low > 0 for n in networks for e in norms(bad["published_saturated"], n)),
        "correlates": fall_correlation(bad["rank"], score, networks).low > 0,
        "correlates_dead": fall_correlation(bad["dead"], score, networks).low > 0,
        "dead_not_enough": bad["dead"].mean("convnet", "none").mean > 0.3 and score.mean("convnet", "none").mean > 0.7,
        "dropout": all(effect(score, n, "dropout").mean < 0 for n in networks),
        "redundant": all(
            interaction(score, n, "norm", "dropout", norm).low > 0 for n in ("mlp", "vit") for norm in both
        ),
        "noise": all(abs(effect(score, n, "noise").mean) < 0.05 for n in networks),
    }


def _norm(kind: str) -> Any:
    return lambda data, network: effect(data, network, "norm", kind)


def _both(first: str, second: str, kind: str = "layer") -> Any:
    return lambda data, network: interaction(data, network, first, second, kind)


CONTRASTS: Mapping[str, Any] = {
    "BatchNorm": _norm("batch"),
    "LayerNorm": _norm("layer"),
    "dropout": lambda data, network: effect(data, network, "dropout"),
    "noise": lambda data, network: effect(data, network, "noise"),
    "BatchNorm × dropout": _both("norm", "dropout", "batch"),
    "LayerNorm × dropout": _both("norm", "dropout", "layer"),
    "BatchNorm × noise": _both("norm", "noise", "batch"),
    "LayerNorm × noise": _both("norm", "noise", "layer"),
    "dropout × noise": _both("dropout", "noise"),
}
