"""Weight clipping, slowly: one weight at a time, for linear and convolutional layers as PyTorch initialises them.

From Elsayed et al. (2024), arXiv:2407.01704, and the authors' code. Nothing of the package is used.
"""

from __future__ import annotations

import torch
from torch import nn


def clip(model: nn.Module, kappa: float) -> None:
    """After the step: the bound of a layer's weights and biases is one over the root of its fan-in."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                bound = kappa / module.weight[0].numel() ** 0.5
                for parameter in module.parameters():
                    flat = parameter.view(-1)
                    for index in range(flat.numel()):
                        flat[index] = max(-bound, min(bound, float(flat[index])))
