"""Measures of a network's health: pure functions from tensors to tensors, one file per family.

Every function takes plain tensors and returns a plain tensor without a gradient; none of them looks at a
model, keeps state or draws random numbers. Leading dimensions ``[...]`` are ensemble members: the value for
a stack of networks is the stack of the values for each network. Three rules hold throughout:

* **Broken data has no verdict.** If a member's input holds a NaN or an infinity, its result is NaN; the other
  members keep theirs. The boolean masks, which cannot be NaN, are ``False`` for that member: nothing is
  edited because of a number that means nothing. :func:`non_finite_fraction` is the one that counts them.
* **Half precision is measured in single precision.** ``float16`` and ``bfloat16`` inputs are converted to
  ``float32`` first and the result is ``float32``; ``float64`` stays ``float64``.
* **No host synchronisation** from the values themselves, so that a measurement can stay inside a training
  loop on an accelerator. Only shapes, types and arguments are checked, and a bad one raises ``ValueError``.

:data:`CATALOGUE` lists what is one number per layer or network: what each needs, which published numbers it
reproduces and which of the same name it does not, and how it depends on batch size, offset and scale.
"""

from pliant.metrics.catalogue import CATALOGUE, MetricInfo
from pliant.metrics.clones import clone_labels, cloned_fraction, cloned_mask, num_distinct_units
from pliant.metrics.dormancy import dead_fraction, dead_mask, dormancy_score, dormant_fraction, dormant_mask
from pliant.metrics.features import active_fraction, feature_norm
from pliant.metrics.finite import non_finite_fraction
from pliant.metrics.gradients import (
    empirical_fisher_trace,
    gradient_covariance,
    gradient_dormancy_score,
    gradient_dormant_fraction,
    gradient_dormant_mask,
    gradient_interference,
    gradient_norm,
    gradient_rank,
)
from pliant.metrics.moments import isotropy_gap, participation_ratio
from pliant.metrics.outputs import churn, entropy, output_diversity
from pliant.metrics.rank import approximate_rank, effective_rank, numerical_rank, srank, stable_rank
from pliant.metrics.saturation import frozen_fraction, frozen_mask, saturated_fraction, saturated_mask
from pliant.metrics.weights import (
    distance_from_initialisation,
    update_to_weight_ratio,
    weight_growth,
    weight_magnitude,
)

__all__ = [
    "CATALOGUE",
    "MetricInfo",
    "active_fraction",
    "approximate_rank",
    "churn",
    "clone_labels",
    "cloned_fraction",
    "cloned_mask",
    "dead_fraction",
    "dead_mask",
    "distance_from_initialisation",
    "dormancy_score",
    "dormant_fraction",
    "dormant_mask",
    "effective_rank",
    "empirical_fisher_trace",
    "entropy",
    "feature_norm",
    "frozen_fraction",
    "frozen_mask",
    "gradient_covariance",
    "gradient_dormancy_score",
    "gradient_dormant_fraction",
    "gradient_dormant_mask",
    "gradient_interference",
    "gradient_norm",
    "gradient_rank",
    "isotropy_gap",
    "non_finite_fraction",
    "num_distinct_units",
    "numerical_rank",
    "output_diversity",
    "participation_ratio",
    "saturated_fraction",
    "saturated_mask",
    "srank",
    "stable_rank",
    "update_to_weight_ratio",
    "weight_growth",
    "weight_magnitude",
]
