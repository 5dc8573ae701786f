"""L2 regularisation, slowly: one weight at a time, and the penalty as autograd sees it.

Decoupled as in Loshchilov & Hutter (2019), arXiv:1711.05101. Nothing of the package is used.
"""

from __future__ import annotations

import torch
from torch import Tensor


def shrink(parameters: list[Tensor], rate: float, strength: float) -> None:
    """After the step: every weight loses a share of itself."""
    with torch.no_grad():
        for parameter in parameters:
            flat = parameter.view(-1)
            for index in range(flat.numel()):
                flat[index] = flat[index] - rate * strength * flat[index]


def penalty(parameters: list[Tensor]) -> Tensor:
    """Half the sum of squares."""
    return sum((parameter**2).sum() / 2 for parameter in parameters)
