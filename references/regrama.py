"""ReGraMa, slowly: reset the units of a plain MLP whose incoming weights receive hardly any gradient, one at a time.

From Liu et al. (2025), arXiv:2505.24061: a unit's score is the mean absolute gradient of its incoming weights divided
by the mean of that over its layer; every so many steps the units with a score of at most tau get fresh incoming
weights, a zero bias and zero outgoing weights. All layers are scored before any is changed; a layer without any
gradient is left alone. Optimizer moments of what changed are cleared. Nothing of the package is used.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from references.renewal import renew


class SlowReGraMa:
    """The algorithm on ``[nn.Linear, activation, nn.Linear, ..., nn.Linear]``.

    Args:
        linears: The linear layers, in order.
        optimizer: Whose moments belong to them.
        draw: ``draw(rows, columns, bound)`` gives fresh values, uniform on ``[-bound, bound]``.
    """

    def __init__(
        self, linears: list[nn.Linear], optimizer: torch.optim.Optimizer, draw, *, tau: float, every: int
    ) -> None:
        self.linears, self.optimizer, self.draw, self.tau, self.every = linears, optimizer, draw, tau, every
        self.step = 0
        self.replaced: list[tuple[int, int, tuple[int, ...]]] = []

    def after_step(self, features: list[Tensor]) -> None:
        """Act; the gradients of this step are still there."""
        self.step += 1
        if self.step % self.every:
            return
        chosen = []
        for linear in self.linears[:-1]:
            gradients = linear.weight.grad.tolist()
            magnitudes = [sum(abs(entry) for entry in row) / len(row) for row in gradients]
            mean = sum(magnitudes) / len(magnitudes)
            chosen.append([u for u, size in enumerate(magnitudes) if mean > 0 and size / mean <= self.tau])
        for layer, units in enumerate(chosen):
            if units:
                renew(self.linears, self.optimizer, self.draw, layer, units)
                self.replaced.append((self.step, layer, tuple(units)))
