"""UPGD, slowly: one weight at a time.

From Elsayed & Mahmood (2024), arXiv:2404.00781, and the authors' code of the experiments: a weight's utility is the
running mean of minus its gradient times its value; what is useful is changed less. Nothing of the package is used.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


class SlowUPGD:
    """The optimizer on a list of parameters with gradients, of one or two dimensions.

    Args:
        params: The parameters.
        draw: ``draw(step)`` gives a function from a shape to standard normal noise, called for each parameter in order.
    """

    def __init__(self, params, draw, *, lr, weight_decay, beta, sigma, utility, protect) -> None:
        self.params, self.draw = list(params), draw
        self.lr, self.weight_decay, self.beta, self.sigma = lr, weight_decay, beta, sigma
        self.utility, self.protect, self.count = utility, protect, 0
        self.average = [torch.zeros_like(p) for p in self.params]

    def step(self) -> None:
        """One step."""
        noise_of = self.draw(self.count)
        self.count += 1
        for p, average in zip(self.params, self.average, strict=True):
            flat, grad, weight = average.view(-1), p.grad.view(-1), p.detach().view(-1)
            for i in range(len(flat)):
                flat[i] = self.beta * flat[i] + (1 - self.beta) * -grad[i] * weight[i]
        largest = max(float(entry) for average in self.average for entry in average.flatten())
        for p, average in zip(self.params, self.average, strict=True):
            noise = noise_of(p.shape)
            rows = (p.detach(), p.grad, average, noise)
            self._update(*(t.unsqueeze(0) if t.ndim == 1 else t for t in rows), largest)

    def _update(self, weight: Tensor, grad: Tensor, average: Tensor, noise: Tensor, largest: float) -> None:
        for row in range(weight.shape[0]):
            corrected = [float(entry) / (1 - self.beta**self.count) for entry in average[row]]
            by = largest if self.utility == "global" else math.sqrt(sum(entry**2 for entry in corrected))
            for column, entry in enumerate(corrected):
                gate = 1 - 1 / (1 + math.exp(-entry / by))
                change = self.sigma * float(noise[row, column])
                change = (grad[row, column] + change) * gate if self.protect else grad[row, column] + change * gate
                weight[row, column] = (1 - self.lr * self.weight_decay) * weight[row, column] - self.lr * change
