"""Trainability of a network on a task, read from a loss curve."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

__all__ = ["Trainability", "tau_trainability"]


class Trainability(NamedTuple):
    r"""What :func:`tau_trainability` found.

    Attributes:
        trainable: Whether the loss fell to :math:`\tau` or below within the budget.
        steps: :math:`T_\tau`, the first step at which it had; ``None`` where it never did (censored at ``budget``).
        lowest: :math:`\min_t L_t`, NaN where no loss is finite.
        final: :math:`L_T`, the last loss of the curve.
        tau: The threshold.
        budget: The last step of the curve.
    """

    trainable: bool
    steps: int | None
    lowest: float
    final: float
    tau: float
    budget: int


def tau_trainability(losses: Sequence[float], tau: float, *, steps: Sequence[int] | None = None) -> Trainability:
    r"""Whether a network learns a task to a loss of :math:`\tau` within a budget, and when.

    .. math:: \text{trainable}(\theta_0; \tau, T) \iff \min_{t \le T} L(\theta_t) \le \tau,
        \qquad T_\tau = \min\{t : L(\theta_t) \le \tau\}

    It depends on the task, the optimizer, the budget and how the losses were averaged, not on the network alone.
    A loss that is not a number never reaches a threshold. Where the threshold is not reached, all that is known is
    that :math:`T_\tau` is larger than the budget: no number is made up for it.

    Args:
        losses: The curve, one loss per point.
        tau: The threshold, finite.
        steps: The optimizer steps done at each point, increasing; ``None``: 0, 1, 2, ...

    Returns:
        The summary.

    Raises:
        ValueError: For an empty curve, a threshold that is not finite, or steps that do not fit.

    Source:
        The name is from arXiv:2509.22335 (versions 1 and 2), for parameters from which gradient descent brings the loss
        below :math:`\tau` in a reasonable number of steps. Deviation: here the number of steps is stated, and it is a
        property of a run.

    Example:
        >>> found = tau_trainability([2.0, 0.9, 0.4, 0.5], 0.5, steps=[0, 10, 20, 30])
        >>> found.trainable, found.steps, found.lowest, found.final
        (True, 20, 0.4, 0.5)
        >>> tau_trainability([2.0, 0.9], 0.5).steps is None
        True
    """
    if not losses:
        raise ValueError("the curve is empty")
    if not math.isfinite(tau):
        raise ValueError(f"tau must be a finite number, not {tau}")
    at = range(len(losses)) if steps is None else steps
    if len(at) != len(losses) or any(b <= a for a, b in pairwise(at)):
        raise ValueError(f"steps must be increasing and as many as the losses ({len(losses)})")
    reached = next((int(step) for step, loss in zip(at, losses, strict=True) if loss <= tau), None)
    lowest = min((loss for loss in losses if math.isfinite(loss)), default=math.nan)
    return Trainability(reached is not None, reached, float(lowest), float(losses[-1]), float(tau), int(at[-1]))
