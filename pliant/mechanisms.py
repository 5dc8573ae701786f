"""What can be wrong with a network that no longer learns: each mechanism, its measures, and the methods against it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["MECHANISMS", "Mechanism"]


@dataclass(frozen=True)
class Mechanism:
    """One way in which a network loses plasticity.

    Attributes:
        name: What alarms and diagnoses call it.
        title: The same for a reader.
        sentence: What it means, in one sentence.
        metrics: The metrics of :data:`pliant.metrics.CATALOGUE` that show it, the most direct one first.
        methods: Methods that act on it, by their name on the command line.
    """

    name: str
    title: str
    sentence: str
    metrics: tuple[str, ...]
    methods: tuple[str, ...]


_RESETS = ("continual_backprop", "redo", "self_normalized_reset", "regrama")

MECHANISMS: Mapping[str, Mechanism] = {
    mechanism.name: mechanism
    for mechanism in (
        Mechanism(
            "non_finite",
            "NaN or infinite values",
            "Weights, activations or gradients are not finite: nothing else can be said before that is mended.",
            ("non_finite_fraction",),
            (),
        ),
        Mechanism(
            "dead_units",
            "Dead units",
            "Units give exactly zero on every sample, so no gradient reaches their incoming weights.",
            ("dead_fraction",),
            (*_RESETS, "layer_reset", "insert_normalization"),
        ),
        Mechanism(
            "dormant_units",
            "Dormant units",
            "Units are active, but so weakly beside the others of their layer that they hardly matter.",
            ("dormant_fraction", "gradient_dormant_fraction"),
            (*_RESETS, "insert_normalization"),
        ),
        Mechanism(
            "saturated_units",
            "Saturated or frozen units",
            "Units sit where their activation is flat: its derivative is zero or nearly so, and they stop changing.",
            ("saturated_fraction", "frozen_fraction"),
            ("continual_backprop", "regrama", "insert_normalization", "normalize_and_project", "l2"),
        ),
        Mechanism(
            "cloned_units",
            "Cloned units",
            "Units of one layer have become copies of each other, so that the layer is narrower than it looks.",
            ("cloned_fraction",),
            ("continual_backprop", "shrink_and_perturb", "weight_noise", "gradient_noise", "insert_dropout"),
        ),
        Mechanism(
            "rank_collapse",
            "Rank collapse",
            "The features of different inputs lie in few directions, which later layers cannot undo.",
            ("effective_rank", "participation_ratio"),
            (
                *("l2_effective_rank", "parseval", "spectral_regularisation", "fire", "insert_normalization"),
                "shrink_and_perturb",
            ),
        ),
        Mechanism(
            "spectral_collapse",
            "Spectral collapse",
            "Most eigenvalues of the curvature before a new task have vanished, so that gradient descent has few "
            "directions to learn along.",
            ("curvature_share", "ntk_effective_rank"),
            ("spectral_regularisation", "l2_effective_rank", "continual_backprop", "fresh_start"),
        ),
        Mechanism(
            "weight_growth",
            "Weight growth",
            "Weights have grown, so that a step of the same size changes relatively little and curvature is sharp.",
            ("weight_growth",),
            ("l2", "l2_init", "normalize_and_project", "weight_clipping", "spectral_regularisation"),
        ),
        Mechanism(
            "vanishing_gradients",
            "Vanishing gradients",
            "The gradient of the loss has become tiny although the loss has not.",
            ("gradient_norm",),
            ("insert_normalization", "normalize_and_project", "fire", "shrink_and_perturb"),
        ),
        Mechanism(
            "collapsed_output",
            "Collapsed output",
            "The outputs are almost certain, or almost the same for every input, before anything has been learned.",
            ("entropy", "output_diversity"),
            ("layer_reset", "l2", "feature_norm", "fire"),
        ),
    )
}
"""By name; the order is that of a page: what makes other findings meaningless comes first."""
