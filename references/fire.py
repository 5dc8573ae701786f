"""FIRE, slowly: every weight matrix of a plain MLP becomes its polar factor, by the Newton-Schulz iteration.

From Han et al. (2026), arXiv:2602.08040: W is divided by its Frobenius norm, and ten times X becomes
1.5 X - 0.5 X X^T X, which drives every singular value to one; the result is multiplied by sqrt(outputs / inputs).
Biases stay. The authors make a new optimizer for the new data; here what it keeps for the weights starts again. Nothing
of the package is used.
"""

from __future__ import annotations

import torch
from torch import nn

from references.layer_reset import restart


class SlowFIRE:
    """The algorithm on ``[nn.Linear, activation, nn.Linear, ..., nn.Linear]``.

    Args:
        linears: The linear layers, in order.
        optimizer: Whose state belongs to them.
        iterations: Newton-Schulz iterations.
        every: After how many steps; ``None``: at task boundaries.
    """

    def __init__(
        self, linears: list[nn.Linear], optimizer: torch.optim.Optimizer, *, iterations: int, every: int | None
    ) -> None:
        self.linears, self.optimizer, self.iterations, self.every = linears, optimizer, iterations, every
        self.step = 0

    def after_step(self) -> None:
        """Act by steps."""
        self.step += 1
        if self.every is not None and self.step % self.every == 0:
            self.act()

    def at_task_boundary(self) -> None:
        """Act by tasks."""
        if self.every is None:
            self.act()

    def act(self) -> None:
        """Orthogonalise, in terms of the singular values: the iteration changes nothing else."""
        with torch.no_grad():
            for layer in self.linears:
                left, values, right = torch.linalg.svd(layer.weight, full_matrices=False)
                values = values / values.square().sum().sqrt()
                for _ in range(self.iterations):
                    values = 1.5 * values - 0.5 * values**3
                scale = (layer.out_features / layer.in_features) ** 0.5
                layer.weight.copy_(scale * left @ torch.diag(values) @ right)
                restart(self.optimizer, layer.weight)
