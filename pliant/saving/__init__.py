"""Saved state and the model that it meets: what fits, what has another name, what has grown, and a report of it."""

from __future__ import annotations

from pliant.saving.fit import READABLE, STATE_VERSION, OnMismatch, Present, check_choice, extended, fit
from pliant.saving.grown import fitted_model, fitted_optimizer
from pliant.saving.leading import old_units_lead
from pliant.saving.names import Renames, plain, shape_text
from pliant.saving.report import Carried, LoadReport

__all__ = [
    "READABLE",
    "STATE_VERSION",
    "Carried",
    "LoadReport",
    "OnMismatch",
    "Present",
    "Renames",
    "check_choice",
    "extended",
    "fit",
    "fitted_model",
    "fitted_optimizer",
    "old_units_lead",
    "plain",
    "shape_text",
]
