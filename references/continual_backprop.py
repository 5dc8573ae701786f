"""Continual backprop, slowly: the published algorithm for a plain MLP, one unit at a time.

Written from the paper's text (Dohare et al., Nature 632, 2024, algorithm 1), with the running mean corrected for its
start at zero and the order of operations of the authors' generate-and-test code. Nothing is vectorised over units and
nothing of the package is used. The other utilities and the bias are those of the paper of 2021 (arXiv:2108.06325).

What happens after every optimizer step, for every hidden layer:

1. every unit grows one step older;
2. its utility's running mean takes in |h| times the sum of its absolute outgoing weights;
3. the budget grows by the replacement rate for every mature unit (older than the threshold);
4. while the budget holds a whole unit, the mature unit of lowest utility is replaced: fresh incoming weights, zero
   bias, zero outgoing weights, zero optimizer moments; age, utility start anew.

Draws follow a protocol, so that another implementation can be compared draw by draw: the units replaced in one layer
in one step take their weights from one call, in the order of their indices.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class SlowContinualBackprop:
    """The algorithm on ``[nn.Linear, activation, nn.Linear, ..., nn.Linear]``.

    Args:
        linears: The linear layers, in order; hidden layer ``l`` is produced by ``linears[l]``.
        optimizer: Whose moments belong to them.
        draw: ``draw(rows, columns, bound)`` gives fresh values, uniform on ``[-bound, bound]``.
    """

    def __init__(
        self,
        linears: list[nn.Linear],
        optimizer: torch.optim.Optimizer,
        draw,
        *,
        replacement_rate: float,
        maturity_threshold: int,
        decay_rate: float,
        utility: str = "contribution",
        compensate_bias: bool = False,
    ) -> None:
        self.kind, self.compensate = utility, compensate_bias
        self.linears, self.optimizer, self.draw = linears, optimizer, draw
        self.rate, self.threshold, self.decay = replacement_rate, maturity_threshold, decay_rate
        hidden = [layer.out_features for layer in linears[:-1]]
        self.age = [[0] * size for size in hidden]
        self.utility = [[0.0] * size for size in hidden]  # uncorrected running means
        self.mean = [[0.0] * size for size in hidden]  # of the activation itself
        self.budget = [0.0] * len(hidden)
        self.replaced: list[tuple[int, int, tuple[int, ...]]] = []  # (step, layer, units)
        self.step = 0

    def after_step(self, features: list[Tensor]) -> None:
        """Act.

        Args:
            features: Post-activation features of each hidden layer in this step's forward pass, ``[B, U]``.
        """
        self.step += 1
        chosen = [self._test(layer, act) for layer, act in enumerate(features)]
        for layer, units in enumerate(chosen):
            if units:
                self._replace(layer, units)
                self.replaced.append((self.step, layer, tuple(units)))

    def _test(self, layer: int, act_BU: Tensor) -> list[int]:
        corrected = []
        for unit in range(act_BU.shape[1]):
            center = self._center(layer, unit)  # before this batch
            self.age[layer][unit] += 1
            deviation = float((act_BU[:, unit] - center).abs().mean())
            new = self._worth(layer, unit, float(act_BU[:, unit].abs().mean()), deviation)
            old = self.utility[layer][unit]
            self.utility[layer][unit] = self.decay * old + (1 - self.decay) * new
            old = self.mean[layer][unit]
            self.mean[layer][unit] = self.decay * old + (1 - self.decay) * float(act_BU[:, unit].mean())
            if self.kind in ("weight", "adaptation"):  # what the weights are at present needs no average
                corrected.append(new)
            else:
                corrected.append(self.utility[layer][unit] / (1 - self.decay ** self.age[layer][unit]))
        mature = [unit for unit, age in enumerate(self.age[layer]) if age > self.threshold]
        self.budget[layer] += self.rate * len(mature)
        units: list[int] = []
        while self.budget[layer] >= 1 and len(units) < len(mature):
            left = [unit for unit in mature if unit not in units]
            units.append(min(left, key=lambda unit: corrected[unit]))
            self.budget[layer] -= 1
        return sorted(units)

    def _center(self, layer: int, unit: int) -> float:
        """The running mean of a unit's activation, corrected for its start at zero."""
        age = self.age[layer][unit]
        return self.mean[layer][unit] / (1 - self.decay**age) if age else 0.0

    def _worth(self, layer: int, unit: int, activity: float, deviation: float) -> float:
        """The utility of one step, by its name."""
        outgoing = float(self.linears[layer + 1].weight.detach()[:, unit].abs().sum())
        incoming = float(self.linears[layer].weight.detach()[unit].abs().sum())
        return {
            "contribution": activity * outgoing,
            "zero_contribution": deviation * outgoing,
            "adaptable_contribution": deviation * outgoing / incoming,
            "feature_by_input": deviation / incoming,
            "weight": outgoing,
            "adaptation": 1 / incoming,
        }[self.kind]

    def _replace(self, layer: int, units: list[int]) -> None:
        producer, consumer = self.linears[layer], self.linears[layer + 1]
        fresh = self.draw(len(units), producer.in_features, producer.in_features**-0.5)
        with torch.no_grad():
            for unit in units if self.compensate else []:
                for target in range(consumer.out_features):
                    consumer.bias[target] += consumer.weight[target, unit] * self._center(layer, unit)
            for row, unit in enumerate(units):
                for column in range(producer.in_features):
                    producer.weight[unit, column] = fresh[row, column]
                producer.bias[unit] = 0
                for target in range(consumer.out_features):
                    consumer.weight[target, unit] = 0
                for moment in self._moments(producer.weight):
                    moment[unit, :] = 0
                for moment in self._moments(producer.bias):
                    moment[unit] = 0
                for moment in self._moments(consumer.weight):
                    moment[:, unit] = 0
                self.age[layer][unit] = 0
                self.utility[layer][unit] = self.mean[layer][unit] = 0.0

    def _moments(self, parameter: Tensor) -> list[Tensor]:
        state = self.optimizer.state.get(parameter, {})
        return [value for value in state.values() if isinstance(value, Tensor) and value.shape == parameter.shape]


class PublishedTest:
    """The test of the authors' code for one layer: how many units, and which, without weights.

    ``accumulate=True``, contribution utility. Means stand where the paper has sums: the ranking is the same.
    """

    def __init__(self, size: int, *, replacement_rate: float, maturity_threshold: int, decay_rate: float) -> None:
        self.rate, self.threshold, self.decay = replacement_rate, maturity_threshold, decay_rate
        self.age, self.utility = torch.zeros(size, dtype=torch.float64), torch.zeros(size, dtype=torch.float64)
        self.left = 0.0

    def __call__(self, act_BU: Tensor, outgoing_OU: Tensor) -> list[int]:
        self.age += 1
        correction = 1 - self.decay**self.age
        new = outgoing_OU.abs().mean(0) * act_BU.abs().mean(0)
        self.utility = self.decay * self.utility + (1 - self.decay) * new
        corrected = self.utility / correction
        eligible = torch.where(self.age > self.threshold)[0]
        if eligible.numel() == 0:
            return []
        number = self.rate * eligible.numel() + self.left
        self.left = number - int(number)
        if int(number) == 0:
            return []
        lowest = torch.topk(-corrected[eligible], int(number))[1]
        units = sorted(eligible[lowest].tolist())
        self.utility[units] = 0
        self.age[units] = 0
        return units
