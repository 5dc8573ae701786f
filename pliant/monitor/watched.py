"""Which metrics can be monitored, what each is read from, and which are heavy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from pliant import metrics

__all__ = ["DEFAULT", "METRICS", "WATCHED", "Watched"]

Source = Literal["activations", "derivatives", "gradients", "weights"]


@dataclass(frozen=True)
class Watched:
    """A metric as the monitor measures it.

    Attributes:
        name: As in :mod:`pliant.metrics`.
        of: What it is read from.
        heavy: Whether it is measured by its own clock, as the cost budget allows.
        function: Samples by units, ``[N, U]``, to a scalar; ``None`` for what is read from gradients and weights.
        work: Multiply-adds for N samples of U units, to guess the cost before the first measurement.
    """

    name: str
    of: Source
    heavy: bool = False
    function: Callable[[Tensor], Tensor] | None = None
    work: Callable[[int, int], float] = lambda n, u: 4.0 * n * u


_FEW = 3


def _dormant_fraction(act_NU: Tensor) -> Tensor:
    return metrics.dormant_fraction(act_NU.abs().mean(-2))


def _non_finite_fraction(act_NU: Tensor) -> Tensor:
    return metrics.non_finite_fraction([act_NU])


def _cloned_fraction(act_NU: Tensor) -> Tensor:
    if act_NU.shape[-2] < _FEW:  # any two units are alike on two samples
        return act_NU.new_full((), torch.nan)
    return metrics.cloned_fraction(act_NU, similarity=0.99)  # healthy networks go well beyond 0.95 while they learn


def _decomposition(n: int, u: int) -> float:
    return 8.0 * n * u * min(n, u)


def _pairs(n: int, u: int) -> float:
    return 2.0 * n * u * u


WATCHED: Mapping[str, Watched] = {
    item.name: item
    for item in (
        Watched("dead_fraction", "activations", function=metrics.dead_fraction),
        Watched("dormant_fraction", "activations", function=_dormant_fraction),
        Watched("active_fraction", "activations", function=metrics.active_fraction),
        Watched("feature_norm", "activations", function=metrics.feature_norm),
        Watched("non_finite_fraction", "activations", function=_non_finite_fraction),
        Watched("effective_rank", "activations", True, metrics.effective_rank, _decomposition),
        Watched("stable_rank", "activations", True, metrics.stable_rank, _decomposition),
        Watched("srank", "activations", True, metrics.srank, _decomposition),
        Watched("approximate_rank", "activations", True, metrics.approximate_rank, _decomposition),
        Watched("numerical_rank", "activations", True, metrics.numerical_rank, _decomposition),
        Watched("participation_ratio", "activations", True, metrics.participation_ratio, _pairs),
        Watched("isotropy_gap", "activations", True, metrics.isotropy_gap, _pairs),
        Watched("cloned_fraction", "activations", True, _cloned_fraction, _pairs),
        Watched("saturated_fraction", "derivatives", function=metrics.saturated_fraction),
        Watched("frozen_fraction", "derivatives", function=metrics.frozen_fraction),
        Watched("gradient_norm", "gradients"),
        Watched("gradient_dormant_fraction", "gradients"),
        Watched("weight_magnitude", "weights"),
        Watched("weight_growth", "weights"),
        Watched("update_to_weight_ratio", "weights"),
        Watched("distance_from_initialisation", "weights", True),
    )
}
"""By name, in the order of a page. Gradients and weights are read where the step is, all others in the forward pass."""

METRICS: tuple[str, ...] = tuple(WATCHED)
"""Metrics that can be monitored."""

DEFAULT: tuple[str, ...] = (
    *("dead_fraction", "dormant_fraction", "saturated_fraction", "frozen_fraction", "cloned_fraction"),
    *("effective_rank", "active_fraction", "feature_norm", "non_finite_fraction"),
    *("gradient_norm", "gradient_dormant_fraction"),
    *("weight_magnitude", "weight_growth", "update_to_weight_ratio"),
)
"""Those that are monitored unless others are named: all mechanisms that can be seen in training, without a copy."""
