"""Is a difference more than chance, and is it still, after so many were looked at?"""

from __future__ import annotations

import math
from collections.abc import Sequence

from pliant.intervals import Estimate, t_quantile

__all__ = ["holm", "p_value"]


def p_value(difference: Estimate) -> float:
    r"""The two-sided p-value of Student's test that a mean is zero, from the mean and its interval.

    It is below 0.05 exactly where the interval of :func:`pliant.intervals.estimate` or
    :func:`pliant.intervals.paired_difference` excludes zero: one test, told in two ways. With
    :math:`\theta = \arctan(t / \sqrt\nu)` and :math:`\nu = n - 1`, it is one minus

    .. math:: \tfrac{2}{\pi}\left(\theta + \sin\theta \left(\cos\theta + \tfrac23 \cos^3\theta + \dots\right)\right)
        \text{ for odd } \nu, \qquad
        \sin\theta \left(1 + \tfrac12 \cos^2\theta + \tfrac{1 \cdot 3}{2 \cdot 4} \cos^4\theta + \dots\right)
        \text{ for even } \nu,

    both up to :math:`\cos^{\nu-2}\theta`.

    Args:
        difference: A mean with Student's interval, of at least two values.

    Returns:
        A number in [0, 1]; NaN where there is no interval. Equal values have no spread: 0, or 1 if all of them are 0.

    Source:
        Abramowitz and Stegun (1964), 26.7.3 and 26.7.4.

    Example:
        >>> from pliant.intervals import estimate
        >>> round(p_value(estimate([1.0, 2.0, 3.0])), 4)
        0.0742
    """
    if difference.num < 2 or not math.isfinite(difference.half_width):
        return math.nan
    if difference.half_width == 0:
        return float(difference.mean == 0)
    df = difference.num - 1
    t = abs(difference.mean) * t_quantile(df) / difference.half_width
    theta = math.atan2(t, math.sqrt(df))
    cos, sin = math.cos(theta), math.sin(theta)
    term, total = (cos, 0.0) if df % 2 else (1.0, 0.0)
    for power in range(1 if df % 2 else 0, df - 1, 2):
        total += term
        term *= cos * cos * (power + 1) / (power + 2)
    inside = 2 / math.pi * (theta + sin * total) if df % 2 else sin * total
    return min(1.0, max(0.0, 1 - inside))


def holm(p_values: Sequence[float]) -> list[float]:
    r"""P-values corrected for being many: Holm's step-down.

    With the p-values sorted, :math:`\tilde p_{(i)} = \max_{j \le i} \min(1, (m - j + 1)\, p_{(j)})`. Rejecting where
    :math:`\tilde p \le \alpha` keeps the probability of even one false discovery among all m at most :math:`\alpha`,
    whatever the dependence between them. It rejects all that Bonferroni's correction does, and more.

    Args:
        p_values: Of one family of comparisons; NaN for one that could not be made, which stays NaN and counts for
            nothing.

    Returns:
        The corrected ones in the same order.

    Raises:
        ValueError: For a number outside [0, 1].

    Source:
        Holm (1979), A simple sequentially rejective multiple test procedure, Scandinavian Journal of Statistics 6.

    Example:
        >>> [round(p, 3) for p in holm([0.01, 0.04, 0.03, 0.005])]
        [0.03, 0.06, 0.06, 0.02]
    """
    if any(p < 0 or p > 1 for p in p_values):
        raise ValueError(f"p-values are in [0, 1], not {list(p_values)}")
    order = sorted((i for i, p in enumerate(p_values) if not math.isnan(p)), key=lambda i: p_values[i])
    adjusted, worst = [math.nan] * len(p_values), 0.0
    for position, i in enumerate(order):
        worst = max(worst, min(1.0, (len(order) - position) * p_values[i]))
        adjusted[i] = worst
    return adjusted
