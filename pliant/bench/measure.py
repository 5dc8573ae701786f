"""What is measured at the end of a task: accuracies, and the health of the units on a probe batch."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pliant import metrics

__all__ = ["DORMANT_TAU", "MAX_EVALUATED", "NUM_PROBE", "UNIT_SERIES", "accuracy_and_loss", "unit_health"]

NUM_PROBE = 256
"""Examples of the current task, the first ones, on which units are measured; fewer where the task has fewer."""

MAX_EVALUATED = 4096
"""Examples of the task, the first ones, on which the accuracy after the task is measured."""

DORMANT_TAU = 0.025

UNIT_SERIES = ("dead_fraction", "dormant_fraction", "effective_rank_fraction", "stable_rank")

_CHUNK = 512


def accuracy_and_loss(model: nn.Module, inputs_SNF: Tensor, targets_SN: Tensor, stacked: bool) -> tuple[Tensor, Tensor]:
    """Return accuracy and mean cross-entropy of each member, ``[S]`` each, in evaluation mode and without grad."""
    num_members, num_examples = targets_SN.shape
    hits = torch.zeros(num_members, dtype=torch.float64)
    losses = torch.zeros(num_members, dtype=torch.float64)
    was_training = model.training
    model.eval()
    with torch.no_grad():
        for start in range(0, num_examples, _CHUNK):
            x_SBF, y_SB = inputs_SNF[:, start : start + _CHUNK], targets_SN[:, start : start + _CHUNK]
            logits_SBC = model(x_SBF) if stacked else model(x_SBF[0]).unsqueeze(0)
            hits += (logits_SBC.argmax(-1) == y_SB).sum(1)
            losses += F.cross_entropy(logits_SBC.mT, y_SB, reduction="none").double().sum(1)
    model.train(was_training)
    return hits / num_examples, losses / num_examples


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
    for act_SNU in activations.values():
        size = act_SNU.shape[-1]
        num_units += size
        sums["dead_fraction"] += metrics.dead_fraction(act_SNU) * size
        sums["dormant_fraction"] += metrics.dormant_fraction(act_SNU.abs().mean(-2), DORMANT_TAU) * size
        sums["effective_rank_fraction"] += metrics.effective_rank(act_SNU) / size
        sums["stable_rank"] += metrics.stable_rank(act_SNU)
    weights = {"dead_fraction": num_units, "dormant_fraction": num_units}
    return {name: total / weights.get(name, len(activations)) for name, total in sums.items()}
