"""One look at a model on one batch, and the metrics of what was seen."""

from pliant.observation.look import observe
from pliant.observation.values import GroupObservation, Observation

__all__ = ["GroupObservation", "Observation", "observe"]
