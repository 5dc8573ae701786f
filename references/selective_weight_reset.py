"""Selective weight reinitialisation, slowly: one weight at a time, for a plain MLP.

From Hernandez-Garcia et al. (2025), arXiv:2508.00212, and its code: right after the optimizer's step, every so many
steps, each tensor by itself. The utility of a weight is its magnitude, or the magnitude of its product with its
gradient. Renewed are the weights whose utility is at most a factor of the tensor's mean utility, or the given share of
least utility, of which the fractional part of a weight is decided by chance. New values are drawn from the initial
distribution or are its mean. Optimizer moments of what changed are cleared, and a tensor without any utility is left
alone. Nothing of the package is used.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class SlowSelectiveWeightReset:
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
        factor: float,
        rule: str,
        utility: str,
        to: str,
        every: int,
    ) -> None:
        self.linears, self.optimizer, self.draw = linears, optimizer, draw
        self.factor, self.rule, self.utility, self.to, self.every = factor, rule, utility, to, every
        self.step = 0
        self.replaced: list[tuple[int, int]] = []

    def after_step(self, features: list[Tensor]) -> None:
        """Act; the gradients of this step are still there."""
        self.step += 1
        if self.step % self.every:
            return
        parameters = [(p, linear.in_features**-0.5) for linear in self.linears for p in (linear.weight, linear.bias)]
        chosen = [self._choose(parameter) for parameter, _ in parameters]
        for (parameter, bound), places in zip(parameters, chosen, strict=True):
            self._renew(parameter, bound, sorted(places))
        self.replaced.append((self.step, sum(map(len, chosen))))

    def _choose(self, parameter: Tensor) -> list[int]:
        weights, gradients = parameter.flatten().tolist(), parameter.grad.flatten().tolist()
        if self.utility == "magnitude":
            utility = [abs(w) for w in weights]
        else:
            utility = [abs(w * g) for w, g in zip(weights, gradients, strict=True)]
        if self.rule == "threshold":
            bound = self.factor * sum(utility) / len(utility)
            places = [place for place, value in enumerate(utility) if value <= bound]
        else:
            share = len(utility) * self.factor
            chance = float(self.draw(1, 1, 0.5)) + 0.5
            count = int(share) + (chance < share - int(share))
            places = sorted(range(len(utility)), key=lambda place: utility[place])[:count]
        return places if any(utility) else []

    def _renew(self, parameter: Tensor, bound: float, places: list[int]) -> None:
        fresh = [0.0] * len(places)
        if self.to == "resample" and places:
            fresh = self.draw(1, len(places), bound)[0].tolist()
        with torch.no_grad():
            for place, value in zip(places, fresh, strict=True):
                parameter.view(-1)[place] = value
                for moment in self.optimizer.state.get(parameter, {}).values():
                    if isinstance(moment, Tensor) and moment.shape == parameter.shape:
                        moment.view(-1)[place] = 0
