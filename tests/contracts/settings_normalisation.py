"""Contract settings of the methods that normalise weights or activations, so strong that they act at once."""

from __future__ import annotations

from typing import Any

from pliant.interventions import NormalizeAndProject

METHODS: dict[str, Any] = {
    "normalize_and_project": NormalizeAndProject(decay=0.1, unnormalised="ignore"),
    "normalize_and_project_jointly": NormalizeAndProject(every=3, affine="project", unnormalised="ignore"),
}
SEEDLESS: frozenset[str] = frozenset({"normalize_and_project", "normalize_and_project_jointly"})
"""Those that draw nothing, so that another seed changes nothing."""
