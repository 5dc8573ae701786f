"""Scores at equal cost, and what an improvement costs."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TypeVar

from pliant.intervals import Estimate

__all__ = ["at_budget", "cost_per_gain"]

T = TypeVar("T")


def at_budget(points: Iterable[tuple[float, T]], budget: float, *, tolerance: float = 0.01) -> T | None:
    """What a method reaches at a fixed budget: its run with the largest cost that is not above it.

    The choice goes by cost alone, never by score, so that it cannot be lucky.

    Args:
        points: Cost and outcome of each run of the method.
        budget: The largest cost that is allowed.
        tolerance: By which fraction a cost may exceed it and still count as equal.

    Returns:
        The outcome; ``None`` where every run costs more. Of runs that cost the same the first one counts.

    Raises:
        ValueError: For a cost or budget that is negative or not finite.

    Example:
        >>> at_budget([(1.0, "one pass"), (2.0, "two passes"), (4.0, "four")], 3.0)
        'two passes'
    """
    found: tuple[float, T] | None = None
    for cost, outcome in points:
        if not (math.isfinite(cost) and cost >= 0 and math.isfinite(budget)):
            raise ValueError(f"costs and budgets are finite and not negative, not {cost} and {budget}")
        if cost <= budget * (1 + tolerance) and (found is None or cost > found[0]):
            found = (cost, outcome)
    return None if found is None else found[1]


def cost_per_gain(cost: float, reference_cost: float, gain: Estimate) -> Estimate:
    r"""What one unit of improvement costs: :math:`(c - c_0) / (a - a_0)`.

    Args:
        cost: Of the method, in any unit.
        reference_cost: Of what it improves on, in the same unit.
        gain: The difference of the scores, larger is better, with its interval.

    Returns:
        The cost per unit with the bounds that follow from those of the gain; negative where the method is cheaper. All
        NaN where the interval of the gain reaches zero: an improvement that is not shown has no price.

    Source:
        The incremental cost-effectiveness ratio of health economics: Drummond et al., Methods for the Economic
        Evaluation of Health Care Programmes (2015), chapter 4.

    Example:
        >>> cost_per_gain(30.0, 20.0, Estimate(0.5, 0.4, 0.625, 10))
        Estimate(mean=20.0, low=16.0, high=25.0, num=10, num_excluded=0)
        >>> cost_per_gain(30.0, 20.0, Estimate(0.5, -0.1, 1.1, 10)).mean
        nan
    """
    if not (gain.low > 0 and math.isfinite(cost) and math.isfinite(reference_cost)):
        return Estimate(math.nan, math.nan, math.nan, gain.num, gain.num_excluded)
    extra = cost - reference_cost
    low, high = sorted((extra / gain.low, extra / gain.high))
    return Estimate(extra / gain.mean, low, high, gain.num, gain.num_excluded)
