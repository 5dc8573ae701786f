"""The benchmarks' network with another activation or with norms, for the methods that are layers.

``model = "benchmarks.activations:ActivationMLP"`` names one, from the root of the repository.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import ClassVar

from torch import nn

from pliant.bench.names import unknown
from pliant.nn import CReLU, DeepFourierFeatures, SmoothLeakyReLU

__all__ = ["ActivationMLP", "NormedMLP"]

TWO_FOR_ONE = {"crelu": CReLU, "deep_fourier_features": DeepFourierFeatures}
NAMES = ("relu", "smooth_leaky_relu", *TWO_FOR_ONE)


class ActivationMLP(nn.Sequential):
    """Linear layers with an activation between them, of which ``hidden`` says the widths *behind* the activations.

    Where an activation gives two outputs for one unit, there are half as many units, so that every network has layers
    of the same width to read. Weights are initialised as in ``pliant.bench.models.MLP``.

    Args:
        num_inputs: Features per example.
        num_outputs: Logits per example.
        hidden: Widths behind the activations; even numbers where there are two outputs for one unit.
        activation: ``"relu"``, ``"smooth_leaky_relu"``, ``"crelu"`` or ``"deep_fourier_features"``.
        negative_slope: Of ``"smooth_leaky_relu"``.

    Shapes: ``[..., num_inputs] -> [..., num_outputs]``.
    """

    init: ClassVar[str] = "kaiming_uniform"

    def __init__(
        self,
        num_inputs: int,
        num_outputs: int,
        hidden: Sequence[int] = (100, 100, 100),
        activation: str = "relu",
        negative_slope: float = 0.1,
    ) -> None:
        if activation not in NAMES:
            raise unknown("activation", activation, NAMES)
        widths = [num_inputs, *hidden]
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        for depth, width in enumerate(hidden):
            two = TWO_FOR_ONE.get(activation)
            layers[f"hidden_{depth}"] = nn.Linear(widths[depth], width // 2 if two else width)
            one = nn.ReLU() if activation == "relu" else SmoothLeakyReLU(negative_slope)
            layers[f"activation_{depth}"] = two() if two else one
        layers["head"] = nn.Linear(hidden[-1], num_outputs)
        super().__init__(layers)
        for layer in self:
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)


class NormedMLP(nn.Sequential):
    """Linear layers with layer normalisation and ReLU between them.

    The normalisation has neither gain nor offset of its own: it holds no parameters, so that seeds and settings can be
    stacked.

    Args:
        num_inputs: Features per example.
        num_outputs: Logits per example.
        hidden: Widths of the hidden layers.

    Shapes: ``[..., num_inputs] -> [..., num_outputs]``.
    """

    init: ClassVar[str] = "kaiming_uniform"

    def __init__(self, num_inputs: int, num_outputs: int, hidden: Sequence[int] = (100, 100, 100)) -> None:
        widths = [num_inputs, *hidden]
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        for depth, width in enumerate(hidden):
            layers[f"hidden_{depth}"] = nn.Linear(widths[depth], width)
            layers[f"norm_{depth}"] = nn.LayerNorm(width, elementwise_affine=False)
            layers[f"relu_{depth}"] = nn.ReLU()
        layers["head"] = nn.Linear(hidden[-1], num_outputs)
        super().__init__(layers)
        for layer in self:
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)
