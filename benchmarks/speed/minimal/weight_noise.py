"""Noise on weights by hand."""

from __future__ import annotations

import torch

from benchmarks.speed.minimal.base import Minimal
from pliant.interventions import WeightNoise

METHOD = WeightNoise(0.01)


class ByHand(Minimal):
    """Normal numbers times the step size."""

    def after_step(self) -> None:
        """Draw and add."""
        rate = self.optimizer.param_groups[0]["lr"]
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=rate * 0.01)
