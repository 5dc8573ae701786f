r"""The size of a network's weights."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from pliant.metrics._inputs import floating

__all__ = ["weight_magnitude"]


def weight_magnitude(tensors: Iterable[Tensor], members: bool = False) -> Tensor:
    r"""Mean absolute value over all entries of the given tensors.

    .. math:: \frac{\sum_t \sum_j |w_{t,j}|}{\sum_t n_t}

    Every entry counts alike, so a large matrix counts for more than a small one. Weights that keep growing
    make each step relatively smaller, and the loss surface sharper: one of the known companions of lost
    plasticity.

    Args:
        tensors: The tensors to measure, of any shapes; usually the weight matrices of a network without its
            biases and normalisation parameters (published figures differ in this: say which).
        members: If true, every tensor is ``[S, ...]`` and the leading axis, the ensemble members, is kept.

    Returns:
        Shape ``[]``, or ``[S]`` with ``members``, in the weights' own units, ``>= 0``; ``float64`` if one of
        the tensors is, ``float32`` otherwise. NaN if an entry is NaN or infinite (with ``members``: of that
        member).

    Raises:
        ValueError: If no tensor is given, one is empty, a bare tensor is given instead of a collection, or
            with ``members`` the leading axes differ.

    Source:
        Dohare et al. (2024), *Loss of plasticity in deep continual learning*, Nature 632, "average weight
        magnitude": for Online Permuted MNIST over the four weight matrices, without biases.

    Cost: one pass over all entries, no host synchronisation.

    Example:
        >>> weight_magnitude([torch.tensor([[1.0, -3.0]]), torch.tensor([[2.0], [-2.0]])])
        tensor(2.)
        >>> weight_SOI = torch.randn(3, 4, 5)                    # three members
        >>> each = torch.stack([weight_magnitude([weight_OI]) for weight_OI in weight_SOI])
        >>> assert torch.allclose(weight_magnitude([weight_SOI], members=True), each)
    """
    if isinstance(tensors, Tensor):
        raise ValueError("tensors must be a collection of tensors; wrap a single one in a list")
    weights = [floating(w, axes=int(members), what=f"tensors[{i}]") for i, w in enumerate(tensors)]
    if not weights:
        raise ValueError("no tensors given: the mean magnitude of no weights is not defined")
    if members and len({len(w) for w in weights}) > 1:
        raise ValueError(f"the tensors disagree on the number of members: {[len(w) for w in weights]}")
    # Members, or a single one, as rows: [S, n]. Adding promotes to the widest type among the tensors.
    rows = [w.abs().reshape(len(w) if members else 1, -1) for w in weights]
    total = rows[0].sum(-1)
    for row in rows[1:]:
        total = total + row.sum(-1)
    mean = total / sum(row.shape[-1] for row in rows)
    mean = mean.masked_fill(~torch.isfinite(mean), float("nan"))
    return mean if members else mean.squeeze(0)
