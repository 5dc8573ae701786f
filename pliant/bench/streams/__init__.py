"""The streams, one file each; ``STREAMS`` looks them up by name, ``my.module:Class`` names any other."""

from __future__ import annotations

from pliant.bench.streams.base import Stream, Task
from pliant.bench.streams.permuted_digits import PermutedDigits
from pliant.bench.streams.permuted_mnist import PermutedMNIST
from pliant.bench.streams.random_label_digits import RandomLabelDigits
from pliant.bench.streams.stationary_digits import StationaryDigits

__all__ = [
    "STREAMS",
    "PermutedDigits",
    "PermutedMNIST",
    "RandomLabelDigits",
    "StationaryDigits",
    "Stream",
    "Task",
]

STREAMS: dict[str, type] = {
    cls.name: cls for cls in (PermutedDigits, PermutedMNIST, RandomLabelDigits, StationaryDigits)
}
"""Stream classes by the name that experiments and the command line use."""
