"""Per-unit statistics of activations, gathered by forward hooks while the user's loop runs."""

from pliant.stats.capture import capture
from pliant.stats.collector import STATISTICS, Collector, GroupStats

__all__ = ["STATISTICS", "Collector", "GroupStats", "capture"]
