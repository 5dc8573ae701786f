"""Weights chosen by validation: the best of a task's passes, for each member by itself."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn

from pliant.bench.batches import TestData
from pliant.bench.measure import evaluate

__all__ = ["BestWeights"]


@final
class BestWeights:
    """Keeps, for each member, the model of the pass after which it was best on held-out examples.

    Optimizer state and what interventions know stay those of the last pass, as in the published experiments.

    Args:
        model: of all members.
        valid: the examples.
        stacked: whether the model is a stack.
    """

    def __init__(self, model: nn.Module, valid: TestData, *, stacked: bool) -> None:
        self.model, self.valid, self.stacked = model, valid, stacked
        self.best_S: Tensor | None = None
        self.kept: dict[str, Tensor] = {}

    def look(self, lower_is_better: bool) -> None:
        """A pass has ended: keep the members that are better than ever in this task; the first of equals stays."""
        score_S = evaluate(self.model, self.valid, self.stacked).score()
        better_S = torch.ones_like(score_S, dtype=torch.bool)
        if self.best_S is not None:
            better_S = (score_S < self.best_S) if lower_is_better else (score_S > self.best_S)
            better_S |= self.best_S.isnan()
        state = self.model.state_dict()
        if self.best_S is None:
            self.kept = {name: tensor.clone() for name, tensor in state.items()}
            self.best_S = score_S
            return
        self.best_S = torch.where(better_S, score_S, self.best_S)
        for name, tensor in state.items():
            if self.stacked:
                self.kept[name][better_S] = tensor[better_S]
            elif bool(better_S):
                self.kept[name].copy_(tensor)

    def restore(self) -> None:
        """Put the kept models back."""
        with torch.no_grad():
            for name, tensor in self.model.state_dict().items():
                tensor.copy_(self.kept[name])
