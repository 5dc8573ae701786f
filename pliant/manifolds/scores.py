r"""More dimensions inside attention heads, with scores that stay what they were.

Where every dimension :math:`j` of queries and keys is taken :math:`k_j` times, the product :math:`q^\top k` counts it
:math:`k_j` times, and the model's own factor changes by :math:`\tau`: it stays (:math:`\tau = 1`) where it is a number
that the module keeps, and becomes :math:`\tau = \sqrt{D/\tilde D}` where it is computed from the width of the head. So
the weights and biases that make queries and keys are multiplied by

.. math:: a_j = (k_j\,\tau)^{-1/2},

for equal :math:`k` thus by :math:`k^{-1/2}` or by :math:`k^{-1/4}`. Their gradients are divided by :math:`a_j k_j`.
Which it is, and which rows of a fused matrix make scores at all, is tried: who asks for the copy proves it by running
it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from pliant.units import UnitGraph, UnitGroup

__all__ = ["ScoreScale", "score_scales"]


@dataclass(frozen=True)
class ScoreScale:
    """By what the rows that make queries and keys are multiplied.

    Attributes:
        group: The group of dimensions inside heads.
        factors: One for each of its units in the narrow network.
        chunks: 0 where all that comes in makes scores. Else one fused matrix makes queries, keys and values, in this
            number of equal pieces, and only the first two thirds of each are scores.
    """

    group: str
    factors: tuple[float, ...]
    chunks: int

    def along(self, units: UnitGraph, owners: Sequence[int], tensor: str, dim: int, length: int) -> Tensor:
        """The factor of each position along a dimension of a tensor of the wide network, ``[length]``.

        Args:
            units: The unit graph of the wide network.
            owners: For each of its units, the narrow one that it is a copy of.
            tensor: The tensor.
            dim: The dimension.
            length: Its size.
        """
        found = torch.ones(length, dtype=torch.float64)
        for piece in units[self.group].slices:
            if (piece.name, piece.dim, piece.role) != (tensor, dim, "incoming"):
                continue
            where = piece.positions()
            values = torch.tensor(self.factors, dtype=torch.float64)[list(owners), None].expand(where.shape)
            is_score = torch.ones_like(where, dtype=torch.bool)
            if self.chunks:
                is_score = 3 * (where % (length // self.chunks)) < 2 * (length // self.chunks)
            found[where[is_score]] = values[is_score]
        return found


def score_scales(units: UnitGraph, counts: Mapping[str, Sequence[int]]) -> Iterable[tuple[ScoreScale, ...]]:
    """What may keep the scores, the likeliest first; nothing at all where no group of head dimensions is copied.

    Args:
        units: The unit graph of the narrow network.
        counts: Group name to the number of copies of each unit.
    """
    groups = [units[name] for name, each in counts.items() if units[name].site == "head_dims" and max(each) > 1]
    makes_scores = [group for group in groups if not group.role("outgoing")]
    fused = [group for group in groups if group.role("outgoing") and _is_in_threes(group)]
    if not makes_scores and not fused:
        return [()]
    heads = sorted({group.size for group in units if group.site == "heads"})
    layouts: list[int | None] = [None, 1, *heads] if fused else [None]  # ``None``: those are values alone
    found = []
    for layout, follows in product(layouts, (False, True)):
        scales = [_scale(group, counts[group.name], 0, follows) for group in makes_scores]
        if layout is not None:
            scales += [_scale(group, counts[group.name], layout, follows) for group in fused]
        if scales or not follows:
            found.append(tuple(scales))
    return found


def _scale(group: UnitGroup, each: Sequence[int], chunks: int, follows: bool) -> ScoreScale:
    change = math.sqrt(group.size / sum(each)) if follows else 1.0
    return ScoreScale(group.name, tuple((number * change) ** -0.5 for number in each), chunks)


def _is_in_threes(group: UnitGroup) -> bool:
    """Whether what comes in may be queries, keys and values in one matrix."""
    out = {piece.width for piece in group.role("outgoing")}
    return all(piece.width % 3 == 0 and piece.width // 3 in out for piece in group.role("incoming"))
