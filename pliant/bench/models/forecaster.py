"""A network that forecasts a multivariate series from a window of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

from torch import Tensor, nn

from pliant.bench.models.mlp import MLP
from pliant.errors import IllegalConfiguration

__all__ = ["Forecaster"]


@final
class Forecaster(nn.Module):
    """A gated recurrent layer reads the window; a multi-layer perceptron makes of its last state what comes next.

    Args:
        num_inputs: numbers in a window: steps times variables.
        num_outputs: variables; as many come in as go out.
        recurrent: units of the recurrent layer.
        hidden: widths of the hidden layers.

    Shapes: float32 ``[B, T, num_outputs]`` to ``[B, num_outputs]``.

    Raises:
        IllegalConfiguration: a size is not positive, or windows do not consist of whole steps.

    >>> import torch
    >>> Forecaster(48, 6)(torch.rand(3, 8, 6)).shape
    torch.Size([3, 6])
    """

    def __init__(self, num_inputs: int, num_outputs: int, recurrent: int = 32, hidden: Sequence[int] = (64,)) -> None:
        super().__init__()
        if recurrent < 1 or num_outputs < 1 or num_inputs % num_outputs:
            raise IllegalConfiguration(
                f"Forecaster: a window of {num_inputs} numbers is not made of steps of {num_outputs} variables"
            )
        self.recurrent = nn.GRU(num_outputs, recurrent, batch_first=True)
        self.tower = MLP(recurrent, num_outputs, hidden)

    def forward(self, window_BTK: Tensor) -> Tensor:
        """What follows each window."""
        steps, _ = self.recurrent(window_BTK)
        outputs: Tensor = self.tower(steps[:, -1])
        return outputs
