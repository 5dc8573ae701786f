"""What the published continual-backprop learner does in a step, written anew: the yardstick of ``engine.py``.

One network, one example (or batch) at a time: forward with the activations of every hidden layer, loss, backward,
optimizer step, then generate and test in every hidden layer. As published, the utility of every unit is brought up to
date at every step, which reads every weight matrix twice (as outgoing weights of one layer, as incoming weights of the
next), whatever the utility needs of it; units are counted, chosen and replaced layer by layer.

Source: Dohare et al. (2024), Nature 632, 768-774; the order of the work is that of the authors' code.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["PublishedLearner"]


class PublishedLearner:
    """Continual backprop for an MLP with ReLU, trained by SGD.

    Args:
        widths: from inputs to outputs.
        loss: ``"cross_entropy"`` or ``"mse"``.
        lr: step size.
        replacement_rate: expected replacements per mature unit and step; None: backpropagation alone.
        maturity_threshold: steps for which a new unit is protected.
        decay_rate: of the running averages.
        seed: of the initial weights.
    """

    def __init__(
        self,
        widths: Sequence[int],
        loss: str,
        lr: float,
        replacement_rate: float | None = 1e-4,
        maturity_threshold: int = 100,
        decay_rate: float = 0.99,
        seed: int = 0,
    ) -> None:
        torch.manual_seed(seed)
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(widths))
        for layer in self.layers:
            nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)
        self.loss = {"cross_entropy": F.cross_entropy, "mse": F.mse_loss}[loss]
        self.optimizer = torch.optim.SGD(self.layers.parameters(), lr=lr)
        self.rate, self.maturity, self.decay = replacement_rate, maturity_threshold, decay_rate
        hidden = widths[1:-1]
        self.utility = [torch.zeros(size) for size in hidden]
        self.mean = [torch.zeros(size) for size in hidden]
        self.age = [torch.zeros(size) for size in hidden]
        self.due = [0.0 for _ in hidden]
        self.bounds = [(6 / size) ** 0.5 for size in widths[:-2]]
        self.num_replaced = 0

    def learn(self, x_BI: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """One step; returns loss and outputs before the update."""
        features: list[Tensor] = []
        act = x_BI
        for layer in self.layers[:-1]:  # type: ignore[union-attr]
            act = F.relu(layer(act))
            features.append(act)
        outputs = self.layers[-1](act)
        loss = self.loss(outputs, target)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.rate:
            with torch.no_grad():
                chosen = [self._test(i, act.detach()) for i, act in enumerate(features)]
                for i, units in enumerate(chosen):
                    if units is not None:
                        self._renew(i, units)
        return loss.detach(), outputs.detach()

    def _test(self, i: int, act_BU: Tensor) -> Tensor | None:
        """Bring the utilities of a layer up to date; return the units to be replaced."""
        assert self.rate is not None
        age, utility, mean, decay = self.age[i], self.utility[i], self.mean[i], self.decay
        age += 1
        utility *= decay
        correction = 1 - decay**age
        mean *= decay
        mean += (1 - decay) * act_BU.mean(0)
        expected = mean / correction
        outgoing = self.layers[i + 1].weight.abs().mean(0)  # type: ignore[union-attr]
        incoming = self.layers[i].weight.abs().mean(1)  # type: ignore[union-attr]
        utility += (1 - decay) * outgoing * (act_BU - expected).abs().mean(0) / incoming
        corrected = utility / correction
        eligible = torch.where(age > self.maturity)[0]
        if eligible.shape[0] == 0:
            return None
        self.due[i] += self.rate * eligible.shape[0]
        count = int(self.due[i])
        self.due[i] -= count
        if count == 0:
            return None
        units = eligible[torch.topk(-corrected[eligible], count)[1]]
        utility[units] = 0
        mean[units] = 0
        return units

    def _renew(self, i: int, units: Tensor) -> None:
        """New incoming weights, zero bias, zero outgoing weights."""
        before, after = self.layers[i], self.layers[i + 1]
        before.weight[units] = torch.empty(len(units), before.weight.shape[1]).uniform_(-self.bounds[i], self.bounds[i])  # type: ignore[operator]
        before.bias[units] = 0  # type: ignore[operator]
        after.weight[:, units] = 0  # type: ignore[operator]
        self.age[i][units] = 0
        self.num_replaced += len(units)
