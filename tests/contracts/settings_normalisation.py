"""Contract settings of the methods that normalise weights or activations, so strong that they act at once."""

from __future__ import annotations

from typing import Any

METHODS: dict[str, Any] = {}
SEEDLESS: frozenset[str] = frozenset()
"""Those that draw nothing, so that another seed changes nothing."""
