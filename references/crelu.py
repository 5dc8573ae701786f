"""CReLU, slowly: one number at a time, forwards and backwards.

From Shang et al. (2016), arXiv:1603.05201, and Abbas et al. (2023), arXiv:2303.07507. Nothing of the package is used.
"""

from __future__ import annotations

import torch
from torch import Tensor

TWO_FOR_ONE = True


def forward(x: Tensor) -> Tensor:
    """``[B, U]`` to ``[B, 2 U]``: the positive parts of all units, then the negative parts of all units."""
    batch, units = x.shape
    out = torch.zeros(batch, 2 * units, dtype=x.dtype)
    for b in range(batch):
        for u in range(units):
            if x[b, u] > 0:
                out[b, u] = x[b, u]
            elif x[b, u] < 0:
                out[b, units + u] = -x[b, u]
    return out


def backward(x: Tensor, grad: Tensor) -> Tensor:
    """The gradient with respect to ``x``; zero at zero."""
    batch, units = x.shape
    out = torch.zeros_like(x)
    for b in range(batch):
        for u in range(units):
            if x[b, u] > 0:
                out[b, u] = grad[b, u]
            elif x[b, u] < 0:
                out[b, u] = -grad[b, units + u]
    return out
