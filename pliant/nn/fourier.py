"""Deep Fourier features (Lewandowski et al., 2024): sine and cosine of every unit, in every layer."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn

__all__ = ["DeepFourierFeatures"]


@final
class DeepFourierFeatures(nn.Module):
    r"""Sine and cosine of the input, side by side: :math:`x \mapsto [\sin x, \cos x]`.

    Where one of the two is flat the other is steep: at every :math:`x` one of them is close to linear, so that no unit
    saturates. The layer that follows has twice as many inputs: give this one half as many units to keep the width.
    The paper uses it in every hidden layer.

    Args:
        dim: Along which dimension the halves are put together: that of the units, 1 for images.

    Shapes: ``[..., U, ...] -> [..., 2 * U, ...]`` along ``dim``; unit ``u`` owns positions ``u`` and ``U + u``, which
    discovery finds, so that a reset clears both of its columns.

    Source:
        Lewandowski et al., Plastic Learning with Deep Fourier Features (2024), arXiv:2410.20634.

    Example:
        >>> DeepFourierFeatures()(torch.zeros(1, 2))
        tensor([[0., 0., 1., 1.]])
        >>> features = DeepFourierFeatures()(torch.randn(7, 5))
        >>> bool(torch.allclose(features.square().sum(-1), torch.tensor(5.0)))
        True
    """

    def __init__(self, dim: int = -1) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        """Apply it."""
        return torch.cat([torch.sin(x), torch.cos(x)], dim=self.dim)

    def extra_repr(self) -> str:
        """Show the dimension."""
        return f"dim={self.dim}"
