"""The metrics of what one look has seen."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from pliant.errors import IllegalConfiguration
from pliant.metrics import CATALOGUE, dormant_fraction, gradient_dormant_fraction, non_finite_fraction
from pliant.observation.values import GroupObservation, Observation

__all__ = ["MEASURABLE", "WHOLE", "measure"]

WHOLE = "model"
"""The key of what is measured on the whole model."""

_BETWEEN_LOOKS = frozenset(["churn", "update_to_weight_ratio"])
_PER_SAMPLE = frozenset(["gradient_interference", "gradient_rank", "empirical_fisher_trace"])
_FROM_START = frozenset(["weight_growth", "distance_from_initialisation"])

_OF_MODELS = frozenset(name for name, info in CATALOGUE.items() if info.needs == "model")

MEASURABLE = tuple(name for name in CATALOGUE if name not in _BETWEEN_LOOKS | _PER_SAMPLE | _OF_MODELS)
"""Metrics that one look suffices for; those of :data:`pliant.metrics.CATALOGUE` but for two that compare two moments,
those that take the gradient of every example, and those that need the model itself."""


def measure(
    observation: Observation, names: Sequence[str] = MEASURABLE, *, initial: Mapping[str, Tensor] | None = None
) -> dict[str, dict[str, float]]:
    """Metrics of an observation, with their default arguments.

    Args:
        observation: What was seen.
        names: Names out of :data:`MEASURABLE`.
        initial: Parameters by name as they were in the beginning (or those of a fresh twin: ``twin.weights``), for
            ``weight_growth`` and ``distance_from_initialisation``; without them, these two are left out by default,
            and refused by name.

    Returns:
        Metric to unit group to value; what belongs to the whole model is under ``"model"``. A group that lacks what a
        metric needs (:attr:`GroupObservation.missing`) has no entry, so a metric may have none at all. Values are NaN
        where data is not finite.

    Raises:
        IllegalConfiguration: For a name that is not measurable.

    Example:
        >>> import torch
        >>> from pliant.observation import observe
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> with torch.no_grad():
        ...     _ = model[0].weight[:2].zero_(), model[0].bias[:2].fill_(-1)
        >>> seen = observe(model, torch.randn(64, 4), lambda output: output.square().mean())
        >>> measure(seen, ["dead_fraction", "frozen_fraction"])
        {'dead_fraction': {'0': 0.25}, 'frozen_fraction': {'0': 0.25}}
    """
    values: dict[str, dict[str, float]] = {}
    for name in names:
        if name not in MEASURABLE:
            raise _unknown(name)
        if name in _FROM_START and initial is None:
            if names is MEASURABLE:
                continue
            raise IllegalConfiguration(
                f"{name} compares weights with those of the beginning: pass them as initial=, for example the weights "
                "of an observation of a fresh twin."
            )
        values[name] = _of_model(observation, name, initial or {})
        for group, seen in observation.groups.items():
            value = _of_group(seen, name)
            if value is not None:
                values[name][group] = float(value)
    return values


def _unknown(name: str) -> IllegalConfiguration:
    if name in _BETWEEN_LOOKS:
        why = "compares two moments: call pliant.metrics on what was seen at both"
    elif name in _PER_SAMPLE:
        why = "needs the gradient of every example: call pliant.metrics on them"
    elif name in _OF_MODELS:
        why = f"needs more than one pass through the model: call {CATALOGUE[name].module}.{name} on model and batch"
    else:
        why = f"is no metric; nearest: {', '.join(difflib.get_close_matches(name, MEASURABLE, n=3) or MEASURABLE)}"
    return IllegalConfiguration(f"{name!r} {why}.")


def _of_group(seen: GroupObservation, name: str) -> Tensor | None:
    if name == "non_finite_fraction":
        return non_finite_fraction([seen.act_NU])
    info = CATALOGUE[name]
    if info.per != "layer":
        return None
    if name == "dormant_fraction":
        return dormant_fraction(seen.act_NU.abs().mean(-2))
    if name == "gradient_dormant_fraction":
        return None if seen.incoming_gradient_U is None else gradient_dormant_fraction(seen.incoming_gradient_U)
    matrix_NU = {"activations": seen.act_NU, "derivatives": seen.derivative_NU, "gradients": seen.grad_NU}[info.needs]
    return None if matrix_NU is None else info.function(matrix_NU)


def _of_model(observation: Observation, name: str, initial: Mapping[str, Tensor]) -> dict[str, float]:
    matrices = {key: weight for key, weight in observation.weights.items() if weight.ndim >= 2}
    value: Tensor | None = None
    if name == "non_finite_fraction":
        tensors = [*observation.weights.values(), *observation.gradients.values(), *observation.outputs]
        value = non_finite_fraction([tensor for tensor in tensors if tensor.numel()])
    elif name in _FROM_START:
        both = [key for key in matrices if key in initial]
        compare: Callable[..., Tensor] = CATALOGUE[name].function
        value = compare([matrices[key] for key in both], [initial[key] for key in both]) if both else None
    elif name == "weight_magnitude":
        filled = [weight for weight in matrices.values() if weight.numel()]
        value = CATALOGUE[name].function(filled) if filled else None
    elif name == "gradient_norm":
        found = [value for key, value in observation.gradients.items() if key in observation.trainable]
        value = CATALOGUE[name].function(found) if found else None
    elif CATALOGUE[name].needs == "outputs" and CATALOGUE[name].per == "network":
        logits_NC = observation.logits_NC
        fits = observation.is_classification is not False or name != "entropy"
        value = CATALOGUE[name].function(logits_NC) if logits_NC is not None and logits_NC.numel() and fits else None
    return {} if value is None else {WHOLE: float(value)}
