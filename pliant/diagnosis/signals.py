"""What one observation says of each mechanism: numbers by layer, before anything is compared.

Counts of units are exact, so that three dead units of a layer of 64 are three and not "about five per cent". What a
count means, and what any other number means, is decided against fresh twins in :mod:`pliant.diagnosis.evidence`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from pliant import metrics
from pliant.observation import GroupObservation, Observation
from pliant.observation.measure import WHOLE

__all__ = ["Reading", "Signals", "signals"]

_FLAT = 0.05  # a derivative below it is flat, as in `saturated_mask`
_SHARE = 0.95
_OFF = 0.02  # beside the layer's mean activation: there a flat unit is off, not saturated
_COPIED = 0.999  # a correlation that learning the same classes does not give; units that have learnt reach 0.95
_CERTAIN = 0.95
_DEPENDENT = 1e-4  # beside the largest singular value: below it a direction is a copy of others, up to rounding


class Reading(NamedTuple):
    """One number.

    Attributes:
        value: The number; units are counted as a fraction of the layer.
        size: Units of the layer, for a count of units; else 0.
    """

    value: float
    size: int


Put = Callable[..., None]
"""Takes mechanism, metric, layer, value and, for counts, the size."""

Signals = Mapping[tuple[str, str, str], Reading]
"""(mechanism, metric, layer) to reading."""


def signals(seen: Observation) -> dict[tuple[str, str, str], Reading]:
    """All readings of an observation; what cannot be measured has none.

    Args:
        seen: One look, at a model or at a fresh twin.

    Example:
        >>> import torch
        >>> from pliant.observation import observe
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> with torch.no_grad():
        ...     _ = model[0].weight[:2].zero_(), model[0].bias[:2].fill_(-1)
        >>> signals(observe(model, torch.randn(64, 4)))["dead_units", "dead_fraction", "0"]
        Reading(value=0.25, size=8)
    """
    found: dict[tuple[str, str, str], Reading] = {}

    def put(mechanism: str, metric: str, layer: str, value: float | Tensor, size: int = 0) -> None:
        found[mechanism, metric, layer] = Reading(float(value), size)

    _non_finite(seen, put)
    for name, group in seen.groups.items():
        if bool(torch.isfinite(group.act_NU).all()):
            _of_units(name, group, put)
            if seen.units[name].site == "hidden":
                _of_features(name, group, put)
    _of_weights(seen, put)
    _of_outputs(seen, put)
    return found


def _non_finite(seen: Observation, put: Put) -> None:
    for name, group in seen.groups.items():
        put("non_finite", "activations", name, 1 - torch.isfinite(group.act_NU).float().mean())
    for what, tensors in (("weights", seen.weights), ("gradients", seen.gradients)):
        for name, tensor in tensors.items():
            if tensor.numel():
                put("non_finite", what, name, 1 - torch.isfinite(tensor).float().mean())
    if seen.outputs:
        bad = [1 - torch.isfinite(output).float().mean() for output in seen.outputs if output.numel()]
        put("non_finite", "outputs", WHOLE, max(map(float, bad), default=0.0))
    if seen.loss is not None:
        put("non_finite", "loss", WHOLE, 0.0 if math.isfinite(seen.loss) else 1.0)


def _of_units(name: str, group: GroupObservation, put: Put) -> None:
    """Counts of dead, saturated and dormant units; none is counted twice."""
    act_NU, size = group.act_NU, group.size
    dead = metrics.dead_mask(act_NU)
    put("dead_units", "dead_fraction", name, dead.float().mean(), size)
    dormant = metrics.dormant_mask(act_NU.abs().mean(-2)) & ~dead
    put("dormant_units", "dormant_fraction", name, dormant.float().mean(), size)
    if group.derivative_NU is not None:
        off = act_NU.abs() <= _OFF * act_NU.abs().mean()
        flat = (group.derivative_NU.abs() < _FLAT) & ~off
        saturated = (flat.float().mean(-2) >= _SHARE) & ~dead
        put("saturated_units", "saturated_fraction", name, saturated.float().mean(), size)


def _of_features(name: str, group: GroupObservation, put: Put) -> None:
    """Copies of units, and directions that are missing."""
    act_NU, size = group.act_NU, group.size
    if act_NU.shape[0] < 8 or size < 2:
        return
    put("cloned_units", "copied_fraction", name, metrics.cloned_mask(act_NU, _COPIED).float().mean(), size)
    put("cloned_units", "cloned_fraction", name, metrics.cloned_mask(act_NU).float().mean(), size)
    varying = int((act_NU != act_NU[:1]).any(0).sum())
    put("rank_collapse", "effective_rank", name, metrics.effective_rank(act_NU, centred=True))
    put("rank_collapse", "participation_ratio", name, metrics.participation_ratio(act_NU))
    if varying:
        rank = metrics.numerical_rank(act_NU.double(), tol=_DEPENDENT, relative_to="largest", centred=True)
        missing = max(0.0, min(varying, act_NU.shape[0] - 1) - float(rank))
        put("rank_collapse", "dependent_fraction", name, missing / size, size)


def _of_weights(seen: Observation, put: Put) -> None:
    """Sizes of weights, and of the gradients that reach them."""
    for name, weight in seen.weights.items():
        if weight.ndim < 2 or not weight.numel() or not bool(torch.isfinite(weight).all()):
            continue
        put("weight_growth", "weight_growth", name, weight.square().mean().sqrt())
        rows = [weight.square().flatten(1).mean(1), weight.movedim(-1, 0).square().flatten(1).mean(1)]
        put("weight_growth", "largest_row", name, max(row.max() for row in rows).sqrt())
    known = [item for name, item in seen.gradients.items() if name in seen.trainable and item.numel()]
    if known and seen.loss is not None:
        put("vanishing_gradients", "gradient_norm", WHOLE, metrics.gradient_norm(known))
        for name, gradient in seen.gradients.items():
            if gradient.ndim >= 2 and gradient.numel() and name in seen.trainable:
                put("vanishing_gradients", "gradient_norm", name, gradient.norm())


def _of_outputs(seen: Observation, put: Put) -> None:
    """How sure the outputs are where they are wrong, and whether they depend on the input."""
    logits_NC = seen.logits_NC
    if logits_NC is None or logits_NC.shape[0] < 2 or not bool(torch.isfinite(logits_NC).all()):
        return
    varying = logits_NC - logits_NC.mean(-1, keepdim=True) if seen.is_classification else logits_NC
    put("collapsed_output", "output_deviation", WHOLE, (varying - varying[:1]).std(0, correction=0).norm())
    if not seen.is_classification or logits_NC.shape[1] < 2:
        return
    put("collapsed_output", "entropy", WHOLE, metrics.entropy(logits_NC) / math.log(logits_NC.shape[1]))
    if seen.logits_grad_NC is not None:
        top = logits_NC.softmax(-1).max(-1)
        counts = seen.logits_grad_NC.abs().sum(-1) > 0
        weight = 1 / max(int(counts.sum()), 1)  # of one sample in a mean; its gradient is that times (p - target)
        pushed = seen.logits_grad_NC.gather(-1, top.indices[:, None]).squeeze(-1)
        wrong = (top.values > _CERTAIN) & (pushed > 0.5 * weight)
        put("collapsed_output", "certain_and_wrong", WHOLE, wrong.float().mean(), logits_NC.shape[0])
