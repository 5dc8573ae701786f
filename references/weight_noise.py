"""Noise on weights, slowly: each tensor by itself, after the step.

Perturbed gradient descent adds the noise inside the step, so that it is multiplied by the step size. Nothing of the
package is used.
"""

from __future__ import annotations

import torch
from torch import nn


def perturb(model: nn.Module, draw, rate: float, noise_scale: float, relative_to: str) -> None:
    """Add the noise; ``draw(shape)`` gives standard normal values."""
    with torch.no_grad():
        for parameter in model.parameters():
            entries = [float(entry) for entry in parameter.view(-1)]
            deviation = {
                "nothing": noise_scale,
                "step_size": rate * noise_scale,
                "entry": noise_scale * (sum(entry**2 for entry in entries) / len(entries)) ** 0.5,
            }[relative_to]
            parameter += deviation * draw(tuple(parameter.shape)).to(parameter.dtype)
