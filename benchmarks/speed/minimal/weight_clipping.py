"""Weight clipping by hand."""

from __future__ import annotations

import torch

from benchmarks.speed.minimal.base import Minimal
from pliant.interventions import WeightClipping

METHOD = WeightClipping(1.0)


class ByHand(Minimal):
    """Each layer by one over the root of its fan-in."""

    def after_step(self) -> None:
        """Clip."""
        with torch.no_grad():
            for layer in self.linears:
                bound = layer.in_features**-0.5
                layer.weight.clamp_(-bound, bound)
                layer.bias.clamp_(-bound, bound)
