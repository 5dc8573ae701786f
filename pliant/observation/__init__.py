"""One look at a model on one batch, and the metrics of what was seen."""

from pliant.observation.look import observe
from pliant.observation.measure import MEASURABLE, measure
from pliant.observation.values import GroupObservation, Observation

__all__ = ["MEASURABLE", "GroupObservation", "Observation", "measure", "observe"]
