r"""NaN and infinity: the one metric for which they are the data."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from pliant.metrics._inputs import same_members

__all__ = ["non_finite_fraction"]


def non_finite_fraction(tensors: Iterable[Tensor], members: bool = False) -> Tensor:
    """Share of the entries that are NaN or infinite.

    Args:
        tensors: The tensors to look at, of any shapes: weights, activations or gradients. Integers count as finite.
        members: If true, every tensor is ``[S, ...]`` and the leading axis, the ensemble members, is kept.

    Returns:
        Share in ``[0, 1]``, shape ``[]``, or ``[S]`` with ``members``; never NaN.

    Raises:
        ValueError: If no tensor is given, one is empty, a bare tensor is given instead of a collection, or with
            ``members`` the leading axes differ.

    Source:
        None; every other metric is NaN where this one is above 0.

    Cost: one pass over all entries, no host synchronisation.

    Example:
        >>> non_finite_fraction([torch.tensor([1.0, float("nan")]), torch.tensor([float("inf"), 0.0])])
        tensor(0.5000)
    """
    rows = same_members(tensors, members=members, what="tensors")
    broken = (~torch.isfinite(rows[0])).sum(-1)
    for row in rows[1:]:
        broken = broken + (~torch.isfinite(row)).sum(-1)
    share = broken.to(torch.float32) / sum(row.shape[-1] for row in rows)
    return share if members else share.squeeze(0)
