"""Contract settings of the methods that reset units or single weights, so strong that they act within a few steps."""

from __future__ import annotations

from typing import Any

from pliant.interventions import ContinualBackprop, ReDo, ReGraMa, SelectiveWeightReset, SelfNormalizedReset

METHODS: dict[str, Any] = {
    "continual_backprop": ContinualBackprop(0.2, maturity_threshold=1, decay_rate=0.9, decide_every=1),
    "continual_backprop_exact": ContinualBackprop(0.1, maturity_threshold=2, decay_rate=0.9, exact=True),
    "continual_backprop_sparse": ContinualBackprop(0.2, maturity_threshold=1, decay_rate=0.9, sample_every=3),
    "continual_backprop_adaptable": ContinualBackprop(
        *(0.2, 1, 0.9, "adaptable_contribution"), compensate_bias=True, accumulate=False, decide_every=1
    ),
    "redo": ReDo(tau=1.0, every=3),
    "regrama": ReGraMa(tau=1.0, every=3),
    "selective_weight_reset": SelectiveWeightReset(0.5, every=3),
    "selective_weight_reset_magnitude": SelectiveWeightReset(0.123, "proportional", "magnitude", every=2),
    "selective_weight_reset_mean": SelectiveWeightReset(0.9, to="mean", every=2),
    "self_normalized_reset": SelfNormalizedReset(
        0.5, initial_threshold=2, max_threshold=4, update_every=3, min_active=0.5
    ),
}
SEEDLESS: frozenset[str] = frozenset({"selective_weight_reset_mean"})
"""Those that draw nothing, so that another seed changes nothing."""
