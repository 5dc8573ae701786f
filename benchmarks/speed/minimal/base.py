"""What a method by hand may do in a training step, and the network that it is written for."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

__all__ = ["Minimal", "network"]

WIDTH, DEPTH, NUM_INPUTS, NUM_CLASSES, BATCH_SIZE = 512, 3, 784, 10, 128


def network(seed: int = 0) -> nn.Sequential:
    """Linear and ReLU in turn, three hidden layers of 512, ten outputs; the linear layers are ``model[0::2]``."""
    torch.manual_seed(seed)
    widths = [NUM_INPUTS, *[WIDTH] * DEPTH]
    layers: list[nn.Module] = []
    for fan_in, fan_out in itertools.pairwise(widths):
        layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(WIDTH, NUM_CLASSES))


class Minimal:
    """A method by hand; a subclass ``ByHand`` overrides what it needs.

    The timed step is: ``x, y = by_hand.extend(x, y)``, forward, ``loss = by_hand.add_to_loss(loss, x)``, backward,
    ``by_hand.before_step()``, ``optimizer.step()``, ``by_hand.after_step()``.

    Args:
        model: :func:`network`.
        optimizer: Its optimizer.
    """

    def __init__(self, model: nn.Sequential, optimizer: Optimizer) -> None:
        self.model, self.optimizer = model, optimizer
        self.linears = [module for module in model if isinstance(module, nn.Linear)]

    def extend(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The batch that is trained on."""
        return x, y

    def add_to_loss(self, loss: Tensor, x: Tensor) -> Tensor:
        """The loss with the method's term."""
        return loss

    def before_step(self) -> None:
        """Gradients are there, weights are old."""

    def after_step(self) -> None:
        """Weights are new."""

    def renew(self, layer: int, units: Tensor) -> None:
        """Fresh weights, and zero moments, for some units of a hidden layer, under ``no_grad``.

        Args:
            layer: The hidden layer, from 0.
            units: Indices of its units, ``[n]``.
        """
        incoming, outgoing = self.linears[layer], self.linears[layer + 1]
        bound = incoming.in_features**-0.5
        incoming.weight[units] = torch.empty(len(units), incoming.in_features).uniform_(-bound, bound)
        incoming.bias[units] = 0
        outgoing.weight[:, units] = 0
        for parameter, index in (
            (incoming.weight, units),
            (incoming.bias, units),
            (outgoing.weight, (slice(None), units)),
        ):
            for value in self.optimizer.state[parameter].values():
                if value.shape == parameter.shape:
                    value[index] = 0
