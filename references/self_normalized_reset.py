"""Self-normalised resets, slowly: every gap between firings in a list, one unit at a time, for a plain MLP.

From Farias & Jozefiak (2024), arXiv:2410.20098, and its code: a unit that is positive for no sample of a batch is
silent in it. When a silence ends its length is noted; a silence as long as the unit's threshold ends in a reset: fresh
incoming weights, a zero bias and zero outgoing weights. Now and then the threshold becomes the percentile of the
lengths since the last time, where that is less than the threshold, and else grows by a factor. Silences of length
zero, between firings in successive batches, are not among the lengths. Optimizer moments of what changed are cleared.
Time is counted in batches. Nothing of the package is used.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from references.renewal import renew


class SlowSelfNormalizedReset:
    """The algorithm on ``[nn.Linear, activation, nn.Linear, ..., nn.Linear]``.

    Args:
        linears: The linear layers, in order.
        optimizer: Whose moments belong to them.
        draw: ``draw(rows, columns, bound)`` gives fresh values, uniform on ``[-bound, bound]``.
    """

    def __init__(
        self,
        linears: list[nn.Linear],
        optimizer: torch.optim.Optimizer,
        draw,
        *,
        percentile: float,
        initial_threshold: int,
        min_threshold: int,
        max_threshold: int,
        expansion: float,
        update_every: int,
        min_active: float = 0.0,
        check_every: int = 1,
    ) -> None:
        self.linears, self.optimizer, self.draw = linears, optimizer, draw
        self.percentile, self.expansion, self.min_active = percentile, expansion, min_active
        self.least, self.most, self.update_every, self.check_every = (
            min_threshold,
            max_threshold,
            update_every,
            check_every,
        )
        sizes = [layer.out_features for layer in linears[:-1]]
        self.silent = [[0] * size for size in sizes]
        self.threshold = [[initial_threshold] * size for size in sizes]
        self.lengths: list[list[list[int]]] = [[[] for _ in range(size)] for size in sizes]
        self.step = 0
        self.replaced: list[tuple[int, int, tuple[int, ...]]] = []

    def after_step(self, features: list[Tensor]) -> None:
        """Act; ``features`` are the hidden layers' activations in this step's forward pass, ``[B, U]`` each."""
        self.step += 1
        for layer, act_BU in enumerate(features):
            for unit in range(act_BU.shape[1]):
                positive = sum(1 for value in act_BU[:, unit].tolist() if value > 0)
                if positive / act_BU.shape[0] > self.min_active:
                    self.lengths[layer][unit].append(self.silent[layer][unit])
                    self.silent[layer][unit] = 0
                else:
                    self.silent[layer][unit] = min(self.silent[layer][unit] + 1, self.most)
        if self.step % self.check_every == 0:
            for layer, silent in enumerate(self.silent):
                units = [unit for unit, length in enumerate(silent) if length >= self.threshold[layer][unit]]
                for unit in units:
                    self.lengths[layer][unit].append(silent[unit])
                    silent[unit] = 0
                if units:
                    renew(self.linears, self.optimizer, self.draw, layer, units)
                    self.replaced.append((self.step, layer, tuple(units)))
        if self.step % self.update_every == 0:
            for layer, threshold in enumerate(self.threshold):
                for unit, old in enumerate(threshold):
                    if self.lengths[layer][unit]:
                        threshold[unit] = self._updated(old, self.lengths[layer][unit])
                    self.lengths[layer][unit] = []

    def _updated(self, threshold: int, lengths: list[int]) -> int:
        gaps = sorted(length for length in lengths if length > 0)
        quantile = 1
        if gaps:
            quantile = next(gap for place, gap in enumerate(gaps, 1) if place / len(gaps) >= self.percentile)
        new = quantile if quantile < threshold else int(self.expansion * threshold)
        return max(self.least, min(new, self.most))
