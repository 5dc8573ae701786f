"""How good the best of k settings is: what a method owes to the effort spent on tuning it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["BestOf", "best_of_k"]

_TINY = 1e-9  # sums of probabilities are this exact


class BestOf(NamedTuple):
    """The outcome of choosing the best of ``k`` settings: its mean over all choices of k, and their quartiles.

    Example:
        >>> from pliant.statistics import best_of_k
        >>> best = best_of_k([0.5, 0.7, 0.9])[1]
        >>> best.k, round(best.mean, 3)
        (2, 0.833)
    """

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
    values = np.array([shown[i] for i in order], dtype=np.float64)
    weights = _weights(num)
    means = np.multiply(weights, values, out=np.zeros_like(weights), where=weights > 0).sum(1)  # 0 times infinity is 0
    by_value = np.argsort(values, kind="stable")
    below = np.cumsum(weights[:, by_value], axis=1)
    low, high = (values[by_value][np.argmax(below >= share - _TINY, axis=1)] for share in (0.25, 0.75))
    return [BestOf(k, *map(float, row)) for k, row in enumerate(zip(means, low, high, strict=True), start=1)]


def _weights(num: int) -> NDArray[np.float64]:
    """``[k, i]``: the probability that the i-th is the best of k, from the last one down.

    The binomials of many settings are larger than any float, the quotients of neighbours are not.
    """
    k = np.arange(1, num + 1, dtype=np.float64)
    found = np.zeros((num, num))
    column = k / num
    for i in range(num, 0, -1):
        found[:, i - 1] = column
        column = column * np.maximum(i - k, 0.0) / max(i - 1, 1)
    return found
