"""How good the best of k settings is: what a method owes to the effort spent on tuning it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

__all__ = ["BestOf", "best_of_k"]


class BestOf(NamedTuple):
    """The outcome of choosing the best of ``k`` settings: its mean over all choices of k, and their quartiles."""

    k: int
    mean: float
    low: float
    high: float


def best_of_k(scores: Sequence[float], reported: Sequence[float] | None = None) -> list[BestOf]:
    r"""What the best of k settings scores, for k from 1 to all of them, over every choice of k among the n tried.

    With the settings sorted by the score that chooses among them, the i-th is the best of k with probability

    .. math:: p_i = \binom{i-1}{k-1} \Big/ \binom{n}{k},

    so that :math:`\sum_i p_i r_{(i)}` is the mean over all choices, exactly. Methods tuned with different numbers of
    trials can be compared at the same k. The settings are taken to be exchangeable, as in a grid or a random search: of
    a search that learns from its trials, the curve says what random choices among its trials would have given.

    Args:
        scores: By which one chooses, one per setting, larger is better; where two are equal the earlier one wins.
        reported: What is shown of the chosen setting, such as its score on other seeds; ``None``: ``scores`` itself,
            which is optimistic, because the luck that chose it is part of it.

    Returns:
        One entry per k. ``low`` and ``high`` are quartiles over the choices: luck in what was tried, not in seeds.

    Raises:
        ValueError: Without settings, if the lengths differ, or for a NaN: say what a failed trial is worth.

    Source:
        Dodge et al. (2019), Show Your Work, EMNLP, drew with replacement, which is biased; without replacement: Tang et
        al. (2020), Showing Your Work Doesn't Always Work, ACL.

    Example:
        >>> [round(best.mean, 3) for best in best_of_k([0.2, 0.8, 0.5])]
        [0.5, 0.7, 0.8]
    """
    shown = scores if reported is None else reported
    num = len(scores)
    if num == 0 or len(shown) != num:
        raise ValueError(f"{num} scores and {len(shown)} reported ones; equally many are needed, at least one")
    if any(math.isnan(value) for value in (*scores, *shown)):
        raise ValueError("a score is NaN, which is no place among the others; say what a failed trial is worth")
    order = sorted(range(num), key=lambda i: (scores[i], -i))
    curve = []
    for k in range(1, num + 1):
        ways = math.comb(num, k)
        weighted = [(float(shown[i]), math.comb(place, k - 1)) for place, i in enumerate(order)]
        mean = math.fsum(value * weight / ways for value, weight in weighted if weight)
        weighted.sort()
        curve.append(BestOf(k, mean, _quantile(weighted, ways, 1, 4), _quantile(weighted, ways, 3, 4)))
    return curve


def _quantile(weighted: Sequence[tuple[float, int]], total: int, numerator: int, denominator: int) -> float:
    """The smallest value that at least this share of the weight does not exceed; in whole numbers, so exact."""
    seen = 0
    for value, weight in weighted:
        seen += weight
        if weight and seen * denominator >= total * numerator:
            return value
    return weighted[-1][0]
