"""ReDo, slowly: recycle dormant units of a plain MLP, one unit at a time.

From Sokar et al. (2023), arXiv:2302.12902: a unit's score is its mean absolute activation over a batch divided by the
mean of that over its layer; every so many steps the units with a score of at most tau get fresh incoming weights, a
zero bias and zero outgoing weights. All layers are scored before any is changed. Optimizer moments of what changed
are cleared. Nothing of the package is used.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from references.renewal import renew


class SlowReDo:
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
        """Act; ``features`` are the hidden layers' activations in this step's forward pass, ``[B, U]`` each."""
        self.step += 1
        if self.step % self.every:
            return
        chosen = []
        for act_BU in features:
            activity = [float(act_BU[:, unit].abs().mean()) for unit in range(act_BU.shape[1])]
            mean = sum(activity) / len(activity)
            chosen.append([u for u, a in enumerate(activity) if (a / mean if mean else 0.0) <= self.tau])
        for layer, units in enumerate(chosen):
            if units:
                renew(self.linears, self.optimizer, self.draw, layer, units)
                self.replaced.append((self.step, layer, tuple(units)))
