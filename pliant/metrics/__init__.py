"""Measures of a network's health: pure functions from tensors to tensors, one file per family.

Every function takes plain tensors and returns a plain tensor without a gradient; none of them looks at a
model, keeps state or draws random numbers. Leading dimensions ``[...]`` are ensemble members: the value for
a stack of networks is the stack of the values for each network. Three rules hold throughout:

* **Broken data has no verdict.** If a member's input holds a NaN or an infinity, its result is NaN; the other
  members keep theirs. The boolean masks, which cannot be NaN, are ``False`` for that member: nothing is
  edited because of a number that means nothing.
* **Half precision is measured in single precision.** ``float16`` and ``bfloat16`` inputs are converted to
  ``float32`` first and the result is ``float32``; ``float64`` stays ``float64``.
* **No host synchronisation** from the values themselves, so that a measurement can stay inside a training
  loop on an accelerator. Only shapes, types and arguments are checked, and a bad one raises ``ValueError``.
"""

from pliant.metrics.dormancy import dead_fraction, dead_mask, dormancy_score, dormant_fraction, dormant_mask
from pliant.metrics.rank import effective_rank, stable_rank
from pliant.metrics.weights import weight_magnitude

__all__ = [
    "dead_fraction",
    "dead_mask",
    "dormancy_score",
    "dormant_fraction",
    "dormant_mask",
    "effective_rank",
    "stable_rank",
    "weight_magnitude",
]
