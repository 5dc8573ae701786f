"""The models of the benchmarks, by name; ``my.module:Class`` names any other."""

from __future__ import annotations

from torch import nn

from pliant.bench.models.mlp import MLP

__all__ = ["MLP", "MODELS"]

MODELS: dict[str, type[nn.Module]] = {"mlp": MLP}
"""Model classes by name; each is built as ``Class(num_inputs, num_outputs, **options)``."""
