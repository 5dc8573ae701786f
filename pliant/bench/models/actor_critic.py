"""The networks of the benchmarks' agents: one for the policy, one for the values."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import ClassVar, final

from torch import Tensor, nn

from pliant.errors import IllegalConfiguration

__all__ = ["ActorCritic"]

_ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh, "elu": nn.ELU, "silu": nn.SiLU}


@final
class ActorCritic(nn.Module):
    """Two multi-layer perceptrons of the same shape that share nothing: a policy's and a value's.

    Initialisation: LeCun uniform, weight_OI ~ U(-b, b) with b = sqrt(3 / I), and zero biases, in the heads too.
    :attr:`init` reproduces this when a unit is drawn anew; ``log_std`` is what an agent with continuous actions adds.

    Args:
        num_inputs: features of an observation.
        num_outputs: outputs of the policy: a logit for each discrete action, or the mean of each continuous one.
        hidden: widths of the hidden layers of each network.
        activation: ``"relu"``, ``"tanh"``, ``"elu"`` or ``"silu"``.
        layer_norm: layer normalisation in front of each activation.

    Attributes:
        policy_net: hidden layers of the policy.
        value_net: hidden layers of the value.
        policy_head: its outputs.
        value_head: the value.

    Shapes: ``[..., num_inputs] -> [..., num_outputs], [...]``.

    Raises:
        IllegalConfiguration: no hidden layer, a width smaller than one, or an unknown activation.

    Source: the networks of PPO in Dohare et al. (2024), Nature 632, 768-774: 256-256, ReLU, LeCun's initialisation.

    >>> import torch
    >>> model = ActorCritic(4, 2, hidden=(8, 8))
    >>> outputs, values = model(torch.rand(5, 4))
    >>> outputs.shape, values.shape, bool((model.policy_net[0].weight.abs() <= (3 / 4) ** 0.5).all())
    (torch.Size([5, 2]), torch.Size([5]), True)
    """

    init: ClassVar[Mapping[str, str]] = {"*log_std": "zeros", "*": "lecun_uniform"}

    def __init__(
        self,
        num_inputs: int,
        num_outputs: int,
        hidden: Sequence[int] = (64, 64),
        activation: str = "relu",
        layer_norm: bool = False,
    ) -> None:
        super().__init__()
        if not hidden or min(num_inputs, num_outputs, *hidden) < 1:
            raise IllegalConfiguration(
                f"ActorCritic: needs hidden layers and positive widths, got {(num_inputs, *hidden, num_outputs)}"
            )
        if activation not in _ACTIVATIONS:
            raise IllegalConfiguration(
                f"ActorCritic: activation={activation!r} must be one of {', '.join(_ACTIVATIONS)}"
            )
        self.hidden = tuple(hidden)
        self.policy_net, self.value_net = (
            _body((num_inputs, *hidden), _ACTIVATIONS[activation], layer_norm) for _ in range(2)
        )
        self.policy_head = nn.Linear(hidden[-1], num_outputs)
        self.value_head = nn.Linear(hidden[-1], 1)
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                bound = (3 / layer.in_features) ** 0.5
                nn.init.uniform_(layer.weight, -bound, bound)
                nn.init.zeros_(layer.bias)

    def forward(self, observations: Tensor) -> tuple[Tensor, Tensor]:
        """Outputs of the policy, and values."""
        values = self.value_head(self.value_net(observations)).squeeze(-1)
        return self.policy_head(self.policy_net(observations)), values


def _body(widths: Sequence[int], activation: type[nn.Module], layer_norm: bool) -> nn.Sequential:
    layers: list[nn.Module] = []
    for num_inputs, num_outputs in itertools.pairwise(widths):
        layers.append(nn.Linear(num_inputs, num_outputs))
        if layer_norm:
            layers.append(nn.LayerNorm(num_outputs))
        layers.append(activation())
    return nn.Sequential(*layers)
