"""Concatenated ReLU (Shang et al., 2016; Abbas et al., 2023): both halves of the line, side by side."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn

__all__ = ["CReLU"]


@final
class CReLU(nn.Module):
    r"""Both signs of the input, each through a ReLU: :math:`x \mapsto [\max(x, 0), \max(-x, 0)]`.

    Whatever the sign of a pre-activation, one of its two outputs is active, so that no unit is ever dead. The layer
    that follows has twice as many inputs: give this one half as many units to keep the width.

    Args:
        dim: Along which dimension the halves are put together: that of the units, 1 for images.

    Shapes: ``[..., U, ...] -> [..., 2 * U, ...]`` along ``dim``; unit ``u`` owns positions ``u`` and ``U + u``, which
    discovery finds, so that a reset clears both of its columns.

    Source:
        Shang et al. (2016), arXiv:1603.05201; against loss of plasticity: Abbas et al., Loss of Plasticity in
        Continual Deep Reinforcement Learning (2023), arXiv:2303.07507.

    Example:
        >>> CReLU()(torch.tensor([[1.0, -2.0]]))
        tensor([[1., 0., 0., 2.]])
        >>> model = nn.Sequential(nn.Linear(4, 3), CReLU(), nn.Linear(6, 2))
        >>> model(torch.ones(5, 4)).shape
        torch.Size([5, 2])
    """

    def __init__(self, dim: int = -1) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        """Apply it."""
        return torch.cat([torch.relu(x), torch.relu(-x)], dim=self.dim)

    def extra_repr(self) -> str:
        """Show the dimension."""
        return f"dim={self.dim}"
