"""Contract settings of the regularisers, so strong that they act within a few steps."""

from __future__ import annotations

from typing import Any

from pliant.interventions import L2

METHODS: dict[str, Any] = {
    "l2": L2(0.5),
}
SEEDLESS: frozenset[str] = frozenset({"l2"})
"""Those that draw nothing, so that another seed changes nothing."""
