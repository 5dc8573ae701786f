"""Regenerative regularisation, slowly: one weight at a time, and the penalties as the authors add them to the loss.

From Kumar et al. (2023), arXiv:2308.11958. Nothing of the package is used.
"""

from __future__ import annotations

import torch
from torch import Tensor


def pull(parameters: list[Tensor], initial: list[Tensor], rate: float, strength: float, norm: str) -> None:
    """After the step: a share of the way to where each weight began (L2), or a fixed move, not beyond it (L1)."""
    with torch.no_grad():
        for parameter, start in zip(parameters, initial, strict=True):
            flat, goal = parameter.view(-1), start.view(-1)
            for index in range(flat.numel()):
                away = float(flat[index] - goal[index])
                if norm == "l2":
                    flat[index] = flat[index] - rate * strength * away
                else:
                    move = min(abs(away), rate * strength)
                    flat[index] = flat[index] - (move if away > 0 else -move)


def penalty(parameters: list[Tensor], initial: list[Tensor], norm: str) -> Tensor:
    """Half the squared distance to the initial values, or the absolute distance."""
    pairs = list(zip(parameters, initial, strict=True))
    if norm == "l2":
        return sum(((p - start) ** 2).sum() / 2 for p, start in pairs)
    return sum((p - start).abs().sum() for p, start in pairs)
