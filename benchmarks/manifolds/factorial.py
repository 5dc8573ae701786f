"""Effects, interactions and correlations of a factorial, one number per seed, so that intervals are over seeds."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import product
from typing import Any

from pliant.intervals import Estimate, estimate, rank_correlation

__all__ = ["Factorial", "correlation", "effect", "fall_correlation", "interaction"]

Cell = tuple[str, str, bool, bool]
"""Network, norm, dropout, noise."""


class Factorial:
    """Values of runs by cell and seed.

    Args:
        records: With ``cell`` and ``seed``.
        value: From a record to a number; NaN where there is none.
    """

    def __init__(self, records: Iterable[Mapping[str, Any]], value: Callable[[Mapping[str, Any]], float]) -> None:
        self.values: dict[tuple[Cell, int], float] = {}
        for record in records:
            cell = record["cell"]
            key = (str(cell["network"]), str(cell["norm"]), bool(cell["dropout"]), bool(cell["noise"]))
            self.values[key, int(record["seed"])] = value(record)
        self.seeds = sorted({seed for _, seed in self.values})
        self.dropouts = sorted({cell[2] for cell, _ in self.values})
        self.noises = sorted({cell[3] for cell, _ in self.values})

    def at(self, seed: int, network: str, norm: str, dropout: bool, noise: bool) -> float:
        """One run; NaN where it is missing."""
        return self.values.get(((network, norm, dropout, noise), seed), math.nan)

    def mean(
        self, network: str, norm: str, dropout: Sequence[bool] | None = None, noise: Sequence[bool] | None = None
    ) -> Estimate:
        """Mean over the cells of a norm, and its interval over seeds; over all levels that were run, by default."""
        dropout, noise = dropout or self.dropouts, noise or self.noises
        return self.over_seeds(
            lambda seed: average(self.at(seed, network, norm, a, b) for a, b in product(dropout, noise))
        )

    def over_seeds(self, value: Callable[[int], float]) -> Estimate:
        """The estimate of one number per seed."""
        return estimate(value(seed) for seed in self.seeds)


def average(values: Iterable[float]) -> float:
    """NaN if one of them is: a mean over other cells would be another quantity."""
    found = list(values)
    return math.fsum(found) / len(found) if all(map(math.isfinite, found)) else math.nan


def _levels(factor: str, norm: str) -> tuple[Callable[[str, bool, bool], tuple[str, bool, bool]], ...]:
    """A cell with a factor on, and the same with it off; ``norm`` is what "norm on" means."""
    if factor == "norm":
        return (lambda n, d, s: (norm, d, s)), (lambda n, d, s: ("none", d, s))
    if factor == "dropout":
        return (lambda n, d, s: (n, True, s)), (lambda n, d, s: (n, False, s))
    if factor == "noise":
        return (lambda n, d, s: (n, d, True)), (lambda n, d, s: (n, d, False))
    raise ValueError(f"no factor {factor!r}: norm, dropout, noise")


def effect(data: Factorial, network: str, factor: str, norm: str = "layer") -> Estimate:
    """Main effect: the value with a factor minus that without it, the mean over the other factors.

    For ``factor="norm"``, ``norm`` against none; else the mean over all three norms.

    Args:
        data: The values.
        network: One network.
        factor: ``"norm"``, ``"dropout"`` or ``"noise"``.
        norm: Which norm.
    """
    on, off = _levels(factor, norm)
    norms = ("none",) if factor == "norm" else ("none", "batch", "layer")
    others = sorted({off(*cell) for cell in product(norms, data.dropouts, data.noises)})
    return data.over_seeds(
        lambda seed: average(data.at(seed, network, *on(*c)) - data.at(seed, network, *off(*c)) for c in others)
    )


def interaction(data: Factorial, network: str, first: str, second: str, norm: str = "layer") -> Estimate:
    """How much the effect of one factor differs with the other on and off: a difference of differences.

    The mean over the factor that is left; for two factors without the norm, over the three norms.

    Args:
        data: The values.
        network: One network.
        first: A factor.
        second: Another.
        norm: What "norm on" means.
    """
    if first == second:
        raise ValueError("an interaction is between two factors")
    norms = ("none",) if "norm" in (first, second) else ("none", "batch", "layer")
    (on_a, off_a), (on_b, off_b) = _levels(first, norm), _levels(second, norm)
    rest = sorted({off_b(*off_a(*cell)) for cell in product(norms, data.dropouts, data.noises)})

    def contrast(seed: int, cell: tuple[str, bool, bool]) -> float:
        def value(a: Callable[..., Any], b: Callable[..., Any]) -> float:
            return data.at(seed, network, *b(*a(*cell)))

        return (value(on_a, on_b) - value(off_a, on_b)) - (value(on_a, off_b) - value(off_a, off_b))

    return data.over_seeds(lambda seed: average(contrast(seed, cell) for cell in rest))


def _paired(pairs: Iterable[tuple[float, float]]) -> float:
    """Rank correlation of the pairs that are finite; 0 where one side is constant: it says nothing then."""
    kept = [(a, b) for a, b in pairs if math.isfinite(a) and math.isfinite(b)]
    if len(kept) < 3:
        return math.nan
    found = rank_correlation([a for a, _ in kept], [b for _, b in kept])
    return 0.0 if math.isnan(found) else found


def correlation(symptom: Factorial, score: Factorial, networks: Sequence[str]) -> Estimate:
    """Rank correlation of a symptom with a score over the cells of a seed; the mean over seeds."""
    cells = list(product(networks, ("none", "batch", "layer"), symptom.dropouts, symptom.noises))
    return symptom.over_seeds(lambda seed: _paired((symptom.at(seed, *c), score.at(seed, *c)) for c in cells))


def fall_correlation(symptom: Factorial, score: Factorial, networks: Sequence[str]) -> Estimate:
    """Rank correlation of how far a norm makes a symptom fall with how much the score rises with it.

    Over the norms, and over dropout, noise and networks, all against the same cell without a norm.
    """

    def pairs(seed: int) -> Iterable[tuple[float, float]]:
        for network, norm, dropout, noise in product(networks, ("batch", "layer"), symptom.dropouts, symptom.noises):
            cell, plain = (network, norm, dropout, noise), (network, "none", dropout, noise)
            fall = symptom.at(seed, *plain) - symptom.at(seed, *cell)
            yield fall, score.at(seed, *cell) - score.at(seed, *plain)

    return symptom.over_seeds(lambda seed: _paired(pairs(seed)))
