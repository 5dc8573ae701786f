"""What is measured at the end of a task: scores, and the health of the units on a probe batch."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from pliant import metrics
from pliant.bench.batches import TestData
from pliant.bench.objective import Meter

__all__ = ["DORMANT_TAU", "MAX_EVALUATED", "NUM_PAST", "NUM_PROBE", "UNIT_SERIES", "evaluate", "unit_health"]

NUM_PROBE = 256
"""Examples of the current task, the first ones, on which units are measured; fewer where the task has fewer."""

MAX_EVALUATED = 4096
"""Examples of the task, the first ones, on which the score after the task is measured."""

NUM_PAST = 5
"""Earlier tasks, the latest, on whose test sets forgetting is measured."""

DORMANT_TAU = 0.025

UNIT_SERIES = ("dead_fraction", "dormant_fraction", "effective_rank_fraction", "stable_rank")

_CHUNK = 512


def evaluate(model: nn.Module, data: TestData, stacked: bool) -> Meter:
    """Return score and mean loss of each member on some examples, in evaluation mode and without grad.

    Args:
        model: of all members.
        data: for each member as many examples.
        stacked: whether the model is a stack; otherwise there is one member.
    """
    num_members, num_examples = data.inputs.shape[:2]
    meter = Meter(data.heads.objective, num_members)
    was_training = model.training
    model.eval()
    with torch.no_grad():
        for start in range(0, num_examples, _CHUNK):
            x, y = data.inputs[:, start : start + _CHUNK], data.targets[:, start : start + _CHUNK]
            outputs = model(x) if stacked else model(x[0]).unsqueeze(0)
            meter.add(data.heads.select(outputs).unsqueeze(0), data.heads.targets(y.unsqueeze(0)))
    model.train(was_training)
    return meter


def unit_health(activations: Mapping[str, Tensor], num_members: int) -> dict[str, Tensor]:
    """Return the unit metrics of each member, averaged over unit groups.

    ``dead_fraction`` and ``dormant_fraction`` (threshold :data:`DORMANT_TAU`) count units over all groups;
    ``effective_rank_fraction`` (effective rank over the group's size) and ``stable_rank`` are means over groups.

    Args:
        activations: group name to ``[S, N, U]``.
        num_members: S; without any group all values are NaN.

    Returns:
        Series name to float64 ``[S]``.
    """
    if not activations:
        return {name: torch.full((num_members,), float("nan"), dtype=torch.float64) for name in UNIT_SERIES}
    sums = {name: torch.zeros(num_members, dtype=torch.float64) for name in UNIT_SERIES}
    num_units = 0
    for found in activations.values():
        act_SNU = found.cpu()
        size = act_SNU.shape[-1]
        num_units += size
        sums["dead_fraction"] += metrics.dead_fraction(act_SNU) * size
        sums["dormant_fraction"] += metrics.dormant_fraction(act_SNU.abs().mean(-2), DORMANT_TAU) * size
        sums["effective_rank_fraction"] += metrics.effective_rank(act_SNU) / size
        sums["stable_rank"] += metrics.stable_rank(act_SNU)
    weights = {"dead_fraction": num_units, "dormant_fraction": num_units}
    return {name: total / weights.get(name, len(activations)) for name, total in sums.items()}
