"""Weight decay and steps of effective rank, slowly: plain loops, the authors' formula with its small numbers.

From Prakash, He, Guo et al. (2025), arXiv:2509.22335, and the authors' code. Nothing of the package is used.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

_SMALL = 1e-8


def effective_rank(features: Tensor) -> Tensor:
    """Of samples by units, with the singular values of the transposed matrix, one by one."""
    sizes = torch.linalg.svd(features.T, full_matrices=False)[1]
    total = max(float(sizes.detach().sum()), _SMALL)
    entropy = torch.zeros((), dtype=features.dtype)
    for size in sizes:
        share = size / (sizes.sum() if total > _SMALL else total)
        entropy = entropy - share * torch.log(share + _SMALL)
    return torch.exp(entropy)


def participation(features: Tensor) -> Tensor:
    """The squared sum of the squared singular values over the sum of their squares."""
    squares = torch.linalg.svd(features, full_matrices=False)[1] ** 2
    return squares.sum() ** 2 / (squares**2).sum()


def features_of(model: nn.Sequential, x: Tensor) -> list[Tensor]:
    """What every linear layer but the first gets."""
    found = []
    for layer in model:
        if isinstance(layer, nn.Linear) and layer is not model[0]:
            found.append(x)
        x = layer(x)
    return found


class SlowL2EffectiveRank:
    """Keeps the minibatches since the last step of effective rank, and makes that step by plain gradient descent."""

    def __init__(
        self, model: nn.Sequential, strength: float, l2: float, every: int, repeats: int, keep: int | None, rank: str
    ) -> None:
        self.model, self.strength, self.l2, self.every, self.repeats = model, strength, l2, every, repeats
        self.keep, self.rank = keep, {"singular": effective_rank, "gram": participation}[rank]
        self.batches: list[Tensor] = []

    def before_step(self) -> None:
        """Coupled weight decay."""
        for parameter in self.model.parameters():
            assert parameter.grad is not None
            parameter.grad += self.l2 * parameter.detach()

    def loss(self, x: Tensor) -> Tensor:
        """Minus the mean rank of the layers."""
        ranks = [self.rank(features) for features in features_of(self.model, x)]
        return -torch.stack(ranks).mean()

    def after_step(self, x: Tensor) -> None:
        """Take the minibatch, and when there are enough, step."""
        self.batches.append(x)
        if len(self.batches) < self.every:
            return
        together = torch.cat(self.batches[-(self.keep or self.every) :])
        self.batches = []
        for _ in range(self.repeats):
            parameters = list(self.model.parameters())
            gradients = torch.autograd.grad(self.loss(together), parameters, allow_unused=True)
            with torch.no_grad():
                for parameter, gradient in zip(parameters, gradients, strict=True):
                    if gradient is not None:
                        parameter -= self.strength * gradient
