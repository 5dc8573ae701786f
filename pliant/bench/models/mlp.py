"""The multi-layer perceptron of the benchmarks."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import ClassVar, final

import torch
from torch import nn

from pliant.errors import IllegalConfiguration

__all__ = ["MLP"]


@final
class MLP(nn.Sequential):
    """Linear layers with ReLU between them: ``num_inputs - hidden[0] - ... - hidden[-1] - num_outputs``.

    Initialisation: He uniform, weight_OI ~ U(-b, b) with b = sqrt(6 / I), and zero biases, in the head too. The
    initialisation name ``"kaiming_uniform"`` (:attr:`init`) reproduces exactly this when a unit is drawn anew.

    Args:
        num_inputs: features per example.
        num_outputs: logits per example.
        hidden: widths of the hidden layers.
        generator: source of the initial weights; None means the global one.

    Shapes: ``[..., num_inputs] -> [..., num_outputs]``.

    Raises:
        IllegalConfiguration: a width is smaller than one, or there is no hidden layer.

    Source: the network of the online permuted MNIST problem, Dohare et al. (2024), Nature 632, 768-774.

    >>> model = MLP(64, 10, hidden=(100, 100))
    >>> model(torch.rand(5, 64)).shape
    torch.Size([5, 10])
    >>> bool((model.hidden_0.weight.abs() <= (6 / 64) ** 0.5).all() and (model.head.bias == 0).all())
    True
    """

    init: ClassVar[str] = "kaiming_uniform"

    def __init__(
        self,
        num_inputs: int,
        num_outputs: int,
        hidden: Sequence[int] = (100, 100, 100),
        generator: torch.Generator | None = None,
    ) -> None:
        widths = [num_inputs, *hidden, num_outputs]
        if not hidden or min(widths) < 1:
            raise IllegalConfiguration(f"MLP: needs hidden layers and positive widths, got {tuple(widths)}")
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        for depth, width in enumerate(hidden):
            layers[f"hidden_{depth}"] = nn.Linear(widths[depth], width)
            layers[f"relu_{depth}"] = nn.ReLU()
        layers["head"] = nn.Linear(hidden[-1], num_outputs)
        super().__init__(layers)
        for layer in self:
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu", generator=generator)
                nn.init.zeros_(layer.bias)
