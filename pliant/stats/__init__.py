"""Per-unit statistics of activations, gathered by forward hooks while the user's loop runs."""

from pliant.stats.capture import capture
from pliant.stats.collector import STATISTICS, Accumulator, Collector, GroupStats

__all__ = ["STATISTICS", "Accumulator", "Collector", "GroupStats", "capture"]
