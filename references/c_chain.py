"""C-CHAIN, slowly: a list of whole copies of the network, as the authors' code keeps it.

From Tang et al. (2025), arXiv:2506.00592, and the authors' code, with running means that are exponential after the
first ``window`` steps. Nothing of the package is used.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


class SlowCChain:
    """The algorithm on any network with one output."""

    def __init__(self, model: nn.Module, *, share: float, lag: int, start: int, window: int, every: int = 1) -> None:
        self.model, self.share, self.lag, self.start, self.window = model, share, lag, start, window
        self.every = every
        self.history = [copy.deepcopy(model)]  # after 0, 1, 2, ... steps
        self.mean_loss = self.mean_churn = 0.0
        self.coefficients: list[float] = []

    def penalty(self, loss: Tensor, x: Tensor) -> Tensor:
        """The term; call it once in each step, before the backward pass."""
        num_steps = len(self.history) - 1
        if num_steps < self.lag or (num_steps + 1) % self.every:  # at the second of two steps, at the third of three
            self.now = None
            return torch.zeros((), dtype=torch.float64)
        with torch.no_grad():
            target = self.history[-1 - self.lag](x)
        churn = ((self.model(x) - target) ** 2).mean()
        self.now = (abs(float(loss.detach())), float(churn.detach()))
        coefficient = self.share * self.mean_loss / (self.mean_churn + 1e-8)
        if num_steps < self.start:
            return torch.zeros((), dtype=torch.float64)
        self.coefficients.append(coefficient)
        return self.every * coefficient * churn

    def after_step(self) -> None:
        """Remember the network, and what was seen."""
        self.history.append(copy.deepcopy(self.model))
        if self.now is not None:
            covered = min(max(len(self.history) - 1 - self.lag, self.every), max(self.window, self.every))
            count = covered / self.every
            loss, churn = self.now
            self.mean_loss += (loss - self.mean_loss) / count
            self.mean_churn += (churn - self.mean_churn) / count
