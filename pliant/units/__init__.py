"""What the hidden units of a model are: discovery, the unit graph, taps and their proofs."""

from pliant.units.discover import find_units
from pliant.units.graph import UnitGraph
from pliant.units.group import Tap, TensorSlice, UnitGroup

__all__ = ["Tap", "TensorSlice", "UnitGraph", "UnitGroup", "find_units"]
