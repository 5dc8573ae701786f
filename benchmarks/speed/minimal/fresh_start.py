"""A fresh start by hand: nothing happens between task boundaries."""

from __future__ import annotations

from benchmarks.speed.minimal.base import Minimal
from pliant.interventions import FreshStart

METHOD = FreshStart()


class ByHand(Minimal):
    """A training step is plain."""
