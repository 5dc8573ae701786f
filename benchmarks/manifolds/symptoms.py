"""What the studies measure on the units of a network, as this package defines it and as it was published."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.manifolds.common import rounded
from pliant import metrics
from pliant.forward import untouched
from pliant.manifolds import Partition
from pliant.observation import GroupObservation, observe
from pliant.units import UnitGraph

__all__ = ["SYMPTOMS", "features", "published_cloning", "published_saturated", "symptoms"]

SYMPTOMS: Mapping[str, str] = {
    "dead": "dead units",
    "saturated": "saturated units",
    "cloned": "cloned units",
    "duplicate": "duplicates, as published",
    "published_saturated": "saturated units, as published",
    "rank": "effective rank / units",
    "feature_rank": "effective rank of the features / dimensions",
}
"""Name to title; the ranks fall where the others rise."""


def published_saturated(act_NU: Tensor, grad_NU: Tensor, tau: float = 1e-4, share: float = 0.99) -> float:
    r"""The published share of saturated units: :math:`|g_{ni}| / \overline{|h_i|} < \tau` on more than ``share`` of n.

    With :math:`g` the gradient of the mean loss by the activation: a small loss alone makes it 1.

    >>> act_NU, grad_NU = torch.ones(10, 2), torch.tensor([[1.0, 1e-6]]).expand(10, 2)
    >>> published_saturated(act_NU, grad_NU), published_saturated(act_NU, 1e-6 * grad_NU)
    (0.5, 1.0)
    """
    small_NU = grad_NU.abs() / act_NU.abs().mean(0).clamp_min(1e-12) < tau
    return float((small_NU.double().mean(0) > share).double().mean())


def published_cloning(values_NU: Tensor, labels_U: Tensor) -> float:
    r"""The published measure of cloning, of one matrix: 1 - mean of std over clones / (std over units + 1e-10).

    A ratio of deviations, sample by sample; its published mean divides by forward and backward matrices while it adds
    up the forward ones, so that perfect clones have 0.5.

    >>> published_cloning(torch.tensor([[1.0, 1.0, 3.0, 3.0]]), torch.tensor([0, 0, 1, 1]))
    1.0
    """
    order = torch.argsort(labels_U, stable=True)
    size = int(torch.bincount(labels_U)[0])
    blocks_NBK = values_NU[:, order].unflatten(1, (-1, size))
    within_NB = blocks_NBK.std(2, correction=0)
    across_N = values_NU.std(1, correction=0)
    return 1.0 - float((within_NB.mean(1) / (across_N + 1e-10)).mean())


def hidden(groups: Mapping[str, GroupObservation], units: UnitGraph) -> list[GroupObservation]:
    """The groups that hold units between two layers; heads and residual streams are left out."""
    return [group for name, group in groups.items() if units[name].site == "hidden"]


def features(model: Any, inputs: Tensor) -> Tensor:
    """What the last layer reads, ``[N, D]``, in evaluation mode."""
    seen: list[Tensor] = []
    handle = model.head.register_forward_pre_hook(lambda _, given: seen.append(given[0].detach()))
    try:
        with untouched(model, False), torch.no_grad():
            model(inputs)
    finally:
        handle.remove()
    return seen[0]


def symptoms(
    model: nn.Module,
    inputs: Tensor,
    loss: Callable[[Tensor], Tensor],
    units: UnitGraph,
    *,
    similarity: float = 0.95,
) -> dict[str, float | None]:
    """All of ``SYMPTOMS`` in evaluation mode; the mean over hidden groups.

    Args:
        model: With a ``head``.
        inputs: A batch.
        loss: From the output to a mean loss.
        units: The model's unit graph.
        similarity: From which on two units are clones.
    """
    groups = hidden(observe(model, inputs, loss, units=units, mode="eval").groups, units)
    found: dict[str, list[float]] = {name: [] for name in SYMPTOMS}
    for group in groups:
        act_NU = group.act_NU
        found["dead"].append(float(metrics.dead_fraction(act_NU, tol=1e-7, share=0.95)))
        if group.derivative_NU is not None:
            found["saturated"].append(float(metrics.saturated_fraction(group.derivative_NU)))
        found["cloned"].append(float(metrics.cloned_fraction(act_NU, similarity)))
        same = metrics.cloned_fraction(act_NU, similarity, sign="same", centred=False, count="spare")
        found["duplicate"].append(float(same))
        if group.grad_NU is not None:
            found["published_saturated"].append(published_saturated(act_NU, group.grad_NU))
        found["rank"].append(float(metrics.effective_rank(act_NU, centred=True)) / group.size)
    seen = features(model, inputs)
    found["feature_rank"] = [float(metrics.effective_rank(seen, centred=True)) / seen.shape[1]]
    return {name: _mean(values) for name, values in found.items()}


def _mean(values: list[float]) -> float | None:
    finite = [value for value in values if value == value]
    return rounded(sum(finite) / len(finite)) if finite else None


def published_ratio(model: nn.Module, partition: Partition, inputs: Any, loss: Callable[[Any], Tensor]) -> float:
    """The published number of the name R²: its mean over forward matrices, and 0 for each backward one."""
    seen = observe(model, inputs, loss, units=partition.units)
    values = []
    for name in partition.labels:
        if name in seen.groups and partition.num_blocks(name) < partition.units[name].size:
            labels = torch.tensor(partition.of(name))
            values.append(published_cloning(seen.groups[name].act_NU, labels))
    return sum(values) / (2 * len(values))
