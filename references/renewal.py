"""A new life for some units of a plain MLP, one unit at a time: what the references of selective resets share.

Fresh incoming weights, a zero bias, zero outgoing weights, and zero optimizer moments of all of these. Nothing of the
package is used.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def renew(linears: list[nn.Linear], optimizer: torch.optim.Optimizer, draw, layer: int, units: list[int]) -> None:
    """Reset units of a hidden layer.

    Args:
        linears: The linear layers, in order; hidden layer ``l`` is produced by ``linears[l]``.
        optimizer: Whose moments belong to them.
        draw: ``draw(rows, columns, bound)`` gives fresh values, uniform on ``[-bound, bound]``; asked once for all
            units.
        layer: The hidden layer.
        units: Its units, in order.
    """
    producer, consumer = linears[layer], linears[layer + 1]
    fresh = draw(len(units), producer.in_features, producer.in_features**-0.5)
    with torch.no_grad():
        for row, unit in enumerate(units):
            producer.weight[unit] = fresh[row].to(producer.weight.dtype)
            producer.bias[unit] = 0
            consumer.weight[:, unit] = 0
            for parameter, index in (
                (producer.weight, (unit, slice(None))),
                (producer.bias, (unit,)),
                (consumer.weight, (slice(None), unit)),
            ):
                for value in optimizer.state.get(parameter, {}).values():
                    if isinstance(value, Tensor) and value.shape == parameter.shape:
                        value[index] = 0
