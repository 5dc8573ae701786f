"""Noise on gradients by hand."""

from __future__ import annotations

import torch

from benchmarks.speed.minimal.base import Minimal
from pliant.interventions import GradientNoise

METHOD = GradientNoise(0.01)


class ByHand(Minimal):
    """A share of each gradient's norm times normal numbers."""

    def before_step(self) -> None:
        """Draw and add."""
        with torch.no_grad():
            for parameter in self.model.parameters():
                if parameter.grad is not None:
                    parameter.grad.add_(torch.randn_like(parameter) * (0.01 * parameter.grad.norm()))
