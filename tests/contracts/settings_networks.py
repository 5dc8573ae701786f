"""Contract settings of the methods that reset layers or the network, so strong that they act within a few steps."""

from __future__ import annotations

from typing import Any

from pliant.interventions import FIRE, FreshStart, HareAndTortoise, LayerReset, OptimizerReset, ShrinkAndPerturb

METHODS: dict[str, Any] = {
    "shrink_and_perturb": ShrinkAndPerturb(0.9, 0.1, every=3),
    "shrink_and_perturb_at_boundaries": ShrinkAndPerturb(0.5, 0.5),
    "shrink_and_perturb_softly": ShrinkAndPerturb(0.99, 0.01, every=1, noise="normal"),
    "fresh_start": FreshStart(),
    "layer_reset": LayerReset(every=3),
    "layer_reset_at_boundaries": LayerReset("*"),
    "fire": FIRE(every=3),
    "hare_and_tortoise": HareAndTortoise(0.5, every=3),
    "optimizer_reset": OptimizerReset(every=3),
}
SEEDLESS: frozenset[str] = frozenset({"fire", "hare_and_tortoise", "optimizer_reset"})
"""Those that draw nothing, so that another seed changes nothing."""
