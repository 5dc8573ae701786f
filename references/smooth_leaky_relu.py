"""The smooth leaky ReLU, slowly: one number at a time, forwards and backwards.

From Lillo & Cheney (2025), arXiv:2509.22562, equation 1: a line of the negative slope, and from it a smooth passage to
a line of slope one. Nothing of the package is used.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

TWO_FOR_ONE = False


def forward(x: Tensor, negative_slope: float = 0.1, p: float = 3.0, c: float = 5.0) -> Tensor:
    """``[B, U]`` to ``[B, U]``."""
    out = torch.zeros_like(x)
    for b, u in [(b, u) for b in range(x.shape[0]) for u in range(x.shape[1])]:
        value = float(x[b, u])
        out[b, u] = negative_slope * value + (1 - negative_slope) * value * _passage(c * value / p)
    return out


def backward(x: Tensor, grad: Tensor, negative_slope: float = 0.1, p: float = 3.0, c: float = 5.0) -> Tensor:
    """The gradient with respect to ``x``."""
    out = torch.zeros_like(x)
    for b, u in [(b, u) for b in range(x.shape[0]) for u in range(x.shape[1])]:
        value = float(x[b, u])
        share = _passage(c * value / p)
        slope = negative_slope + (1 - negative_slope) * (share + value * share * (1 - share) * c / p)
        out[b, u] = grad[b, u] * slope
    return out


def _passage(value: float) -> float:
    """From 0 far to the left to 1 far to the right."""
    return 1 / (1 + math.exp(-value))
