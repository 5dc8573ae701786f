"""Self-normalised resets by hand."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from benchmarks.speed.minimal.base import Minimal
from pliant.interventions import SelfNormalizedReset

METHOD = SelfNormalizedReset()


class ByHand(Minimal):
    """A counter, a threshold and a histogram for each hidden unit."""

    def __init__(self, model: nn.Sequential, optimizer: Optimizer) -> None:
        super().__init__(model, optimizer)
        sizes = [layer.out_features for layer in self.linears[:-1]]
        self.silent = [torch.zeros(size, dtype=torch.long) for size in sizes]
        self.threshold = [torch.full((size,), METHOD.initial_threshold) for size in sizes]
        self.gaps = [torch.zeros(size, METHOD.max_threshold + 1, dtype=torch.long) for size in sizes]
        self.active: list[Tensor] = []
        self.step = 0
        for module in model:
            if isinstance(module, nn.ReLU):
                module.register_forward_hook(lambda _module, _args, out: self.active.append(out.detach()))

    def after_step(self) -> None:
        """Count, reset, and update the thresholds now and then."""
        self.step += 1
        with torch.no_grad():
            for layer, act in enumerate(self.active):
                silent, gaps = self.silent[layer], self.gaps[layer]
                fires = act.amax(0) > 0
                gaps.scatter_add_(1, silent[:, None], fires[:, None].long())
                silent.add_(1).clamp_(max=METHOD.max_threshold).masked_fill_(fires, 0)
                overdue = silent >= self.threshold[layer]
                if overdue.any():
                    gaps.scatter_add_(1, silent[:, None], overdue[:, None].long())
                    silent.masked_fill_(overdue, 0)
                    self.renew(layer, overdue.nonzero()[:, 0])
                if self.step % METHOD.update_every == 0:
                    self.update(layer)
        self.active.clear()

    def update(self, layer: int) -> None:
        """Each threshold follows its unit's silences."""
        gaps, threshold = self.gaps[layer], self.threshold[layer]
        counts = gaps[:, 1:].cumsum(1)
        quantile = (counts < METHOD.percentile * counts[:, -1:]).sum(1) + 1
        new = torch.where(quantile < threshold, quantile, (threshold * METHOD.expansion).long())
        self.threshold[layer] = new.clamp(METHOD.min_threshold, METHOD.max_threshold)
        gaps.zero_()
