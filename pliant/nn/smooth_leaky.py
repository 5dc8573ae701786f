"""Smooth-Leaky (Lillo & Cheney, 2025): a leaky ReLU without a kink."""

from __future__ import annotations

import math
from typing import final

import torch
from torch import Tensor, nn

from pliant.errors import IllegalConfiguration

__all__ = ["SmoothLeakyReLU"]


@final
class SmoothLeakyReLU(nn.Module):
    r"""A leaky ReLU whose slopes pass smoothly into one another.

    .. math:: f(x) = \alpha x + (1 - \alpha)\, x\, \operatorname{sigmoid}(c x / p)

    Far to the left its slope is :math:`\alpha`, far to the right 1, at zero :math:`(1 + \alpha) / 2`; gradients
    therefore do not vanish on either side.

    Args:
        negative_slope: :math:`\alpha` in [0, 1]; ``1`` is the identity, ``0`` is SiLU of a scaled input.
        p: :math:`p > 0`, the width of the passage.
        c: :math:`c > 0`, its steepness; only :math:`c / p` matters.

    Shapes: any; the output has the input's.

    Source:
        Lillo & Cheney, Activation Function Design Sustains Plasticity in Continual Learning (2025), arXiv:2509.22562,
        equation 1; defaults as in its figure of the function.

    Raises:
        IllegalConfiguration: For an option out of range.

    Example:
        >>> act = SmoothLeakyReLU(negative_slope=0.1)
        >>> act(torch.tensor([-100.0, 0.0, 100.0]))
        tensor([-10.,   0., 100.])
    """

    def __init__(self, negative_slope: float = 0.1, p: float = 3.0, c: float = 5.0) -> None:
        super().__init__()
        for name, value, valid, is_valid in (
            ("negative_slope", negative_slope, "in [0, 1]", 0 <= negative_slope <= 1),
            ("p", p, "positive", 0 < p < math.inf),
            ("c", c, "positive", 0 < c < math.inf),
        ):
            if not is_valid:
                raise IllegalConfiguration(f"SmoothLeakyReLU: {name}={value!r} is out of range; it must be {valid}.")
        self.negative_slope, self.p, self.c = negative_slope, p, c

    def forward(self, x: Tensor) -> Tensor:
        """Apply it."""
        return x * (self.negative_slope + (1 - self.negative_slope) * torch.sigmoid(x * (self.c / self.p)))

    def extra_repr(self) -> str:
        """Show the options."""
        return f"negative_slope={self.negative_slope}, p={self.p}, c={self.c}"
