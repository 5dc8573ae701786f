"""Per-unit statistics of activations, gathered by forward hooks while the user's loop runs."""

from pliant.stats.capture import capture
from pliant.stats.collector import MAX_WAITING, STATISTICS, Accumulator, Collector, GroupStats

__all__ = ["MAX_WAITING", "STATISTICS", "Accumulator", "Collector", "GroupStats", "capture"]
