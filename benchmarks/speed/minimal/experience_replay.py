"""Experience replay by hand."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from benchmarks.speed.minimal.base import Minimal
from pliant.interventions import ExperienceReplay

METHOD = ExperienceReplay()


class ByHand(Minimal):
    """A reservoir of a thousand examples; as many replayed as new."""

    def __init__(self, model: nn.Sequential, optimizer: Optimizer) -> None:
        super().__init__(model, optimizer)
        self.x, self.y = torch.empty(1000, 784), torch.empty(1000, dtype=torch.int64)
        self.seen = 0

    def extend(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Replay, then keep."""
        kept = min(self.seen, 1000)
        old = torch.randperm(kept)[: len(x)]
        longer = torch.cat([x, self.x[old]]), torch.cat([y, self.y[old]])
        count = self.seen + torch.arange(len(x))
        slots = torch.where(count < 1000, count, (torch.rand(len(x)) * (count + 1)).long())
        taken = (slots < 1000).nonzero().flatten()
        self.x[slots[taken]], self.y[slots[taken]] = x[taken], y[taken]
        self.seen += len(x)
        return longer
