"""The two streams, the network and the methods of the study of spectral collapse, and what is tuned."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pliant import interventions
from pliant.bench.streams.permuted_digits import PermutedDigits
from pliant.bench.streams.random_label_digits import RandomLabelDigits
from pliant.spectrum import budget_eps

__all__ = ["BATCH", "EPS", "HIDDEN", "LR", "METHODS", "NUM_TASKS", "STEPS", "STREAMS", "TITLES", "Method"]

LR, BATCH, STEPS, NUM_TASKS = 1e-2, 16, 160, 25
HIDDEN = (64, 64)
EPS = budget_eps(LR, STEPS)
"""Of the budget of one task, with the nominal step size of Adam, which has no other."""

STREAMS: Mapping[str, Any] = {
    "random_label_digits": RandomLabelDigits(num_examples=128, num_epochs=20, batch_size=BATCH),
    "permuted_digits": PermutedDigits(num_examples=512, num_epochs=5, batch_size=BATCH),
}

TITLES: Mapping[str, str] = {"random_label_digits": "Random labels", "permuted_digits": "Permuted inputs"}


@dataclass(frozen=True)
class Method:
    """One method of the study.

    Attributes:
        make: From its settings to the method; ``None`` for training without any.
        settings: What is tried; a single one is not tuned.
        like: The method whose tuned settings it takes over, in the place of settings of its own.
    """

    make: Callable[..., Any] | None
    settings: tuple[Mapping[str, float], ...] = ({},)
    like: str = ""


def _l2(strength: float) -> Any:
    return interventions.L2(strength, apply="gradient")


def _l2_effective_rank(strength: float, l2: float) -> Any:
    return interventions.L2EffectiveRank(strength, l2=l2, every=8)


def _effective_rank(strength: float, l2: float) -> Any:
    del l2  # the same method without its decay
    return interventions.L2EffectiveRank(strength, l2=0.0, every=8)


def _spectral_regularisation(strength: float) -> Any:
    return interventions.SpectralRegularisation(strength, apply="gradient")


def _continual_backprop(rate: float) -> Any:
    return interventions.ContinualBackprop(rate, maturity_threshold=50)


METHODS: Mapping[str, Method] = {
    "backprop": Method(None),
    "l2": Method(_l2, tuple({"strength": s} for s in (1e-4, 1e-3, 3e-3, 1e-2))),
    "l2_effective_rank": Method(
        _l2_effective_rank, tuple({"strength": s, "l2": d} for s in (1e-3, 1e-2) for d in (1e-3, 3e-3))
    ),
    "effective_rank": Method(_effective_rank, like="l2_effective_rank"),
    "spectral_regularisation": Method(
        _spectral_regularisation, tuple({"strength": s} for s in (1e-4, 3e-4, 1e-3, 1e-2))
    ),
    "continual_backprop": Method(_continual_backprop, tuple({"rate": r} for r in (1e-4, 1e-3, 3e-3, 1e-2))),
    "fresh_start": Method(interventions.FreshStart),
}
"""By name. Those with settings are tuned with four each; the step size is that of the problem, the same for all."""
