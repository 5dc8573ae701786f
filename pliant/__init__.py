"""Pliant keeps neural networks able to learn: measure, diagnose and prevent loss of plasticity in any PyTorch model."""

from pliant.attach import Handle, attach
from pliant.errors import (
    IllegalConfiguration,
    NoEffect,
    NotYetSupported,
    PliantError,
    RecordError,
    UnsupportedError,
    UnsupportedOp,
)
from pliant.interventions import L2, ContinualBackprop, FreshStart, ReDo, ShrinkAndPerturb
from pliant.monitor import Monitor, monitor
from pliant.units import UnitGraph, UnitGroup, find_units
from pliant.units.verify import verify

__version__ = "0.1.0"

__all__ = [  # noqa: RUF022 (grouped by purpose)
    # what the units are
    "find_units",
    "verify",
    "UnitGraph",
    "UnitGroup",
    # measuring
    "monitor",
    "Monitor",
    # acting
    "attach",
    "Handle",
    "ContinualBackprop",
    "FreshStart",
    "L2",
    "ReDo",
    "ShrinkAndPerturb",
    # errors
    "PliantError",
    "UnsupportedError",
    "UnsupportedOp",
    "NotYetSupported",
    "IllegalConfiguration",
    "NoEffect",
    "RecordError",
]
