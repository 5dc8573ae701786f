r"""The size of a network's weights, how far they have moved, and how far one step moves them."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from pliant.metrics._inputs import norm_of_rows, same_members

__all__ = ["distance_from_initialisation", "update_to_weight_ratio", "weight_growth", "weight_magnitude"]


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
    rows = same_members(tensors, members=members, what="tensors")
    # Adding promotes to the widest type among the tensors.
    total = rows[0].abs().sum(-1)
    for row in rows[1:]:
        total = total + row.abs().sum(-1)
    mean = total / sum(row.shape[-1] for row in rows)
    mean = mean.masked_fill(~torch.isfinite(mean), float("nan"))
    return mean if members else mean.squeeze(0)


def weight_growth(tensors: Iterable[Tensor], initial: Iterable[Tensor], members: bool = False) -> Tensor:
    r"""How many times larger the weights are than at the beginning: the ratio of their :func:`weight_magnitude`.

    .. math:: \frac{\sum_{t,j} |w_{t,j}|}{\sum_{t,j} |w^{(0)}_{t,j}|}

    Args:
        tensors: The tensors as they are.
        initial: The same tensors as they were initialised, in the same order; or those of a freshly initialised
            network, which has the same magnitude in expectation.
        members: If true, every tensor is ``[S, ...]`` and the leading axis, the ensemble members, is kept.

    Returns:
        Shape ``[]``, or ``[S]`` with ``members``, dimensionless, ``>= 0``; 1 at initialisation. NaN if an entry is
        NaN or infinite, and where all initial weights are 0: growth from nothing has no number.

    Raises:
        ValueError: If the two collections differ in number or shapes, or as :func:`weight_magnitude`.

    Source:
        Dohare et al. (2024), Nature 632, follow weight magnitude over time; the ratio is this library's, so that one
        threshold can mean the same in every layer.

    Cost: two passes over all entries, no host synchronisation.

    Example:
        >>> initial = [torch.randn(4, 3), torch.randn(2, 4)]
        >>> assert torch.isclose(weight_growth([3 * w for w in initial], initial), torch.tensor(3.0))
        >>> assert weight_growth([-w for w in initial], initial) == 1        # size, not direction
    """
    now, before = _paired(tensors, initial, what="initial")
    start = weight_magnitude(before, members)
    return weight_magnitude(now, members) / start.masked_fill(start == 0, float("nan"))


def distance_from_initialisation(
    tensors: Iterable[Tensor], initial: Iterable[Tensor], members: bool = False, relative: bool = False
) -> Tensor:
    r"""How far the weights have moved from where they began: the Euclidean distance over all entries.

    .. math:: \lVert w - w^{(0)} \rVert_2, \qquad \text{relative: divided by } \lVert w^{(0)} \rVert_2

    Args:
        tensors: The tensors as they are.
        initial: The same tensors as they were initialised, in the same order. Another draw of the initialisation is
            no substitute here: two draws are far from each other.
        members: If true, every tensor is ``[S, ...]`` and the leading axis, the ensemble members, is kept.
        relative: Divide by the norm of the initial weights.

    Returns:
        Shape ``[]``, or ``[S]`` with ``members``, ``>= 0``, in the weights' own units, or dimensionless if
        ``relative``. NaN if an entry is NaN or infinite, and if ``relative`` where all initial weights are 0.

    Raises:
        ValueError: If the two collections differ in number or shapes, or as :func:`weight_magnitude`.

    Source:
        Lyle et al. (2023), *Understanding plasticity in neural networks*, arXiv 2303.01486, among the quantities
        that they correlate with lost plasticity; Kumar et al. (2023), arXiv 2308.11958, penalise its square.

    Cost: two passes over all entries, no host synchronisation.

    Example:
        >>> distance_from_initialisation([torch.tensor([3.0, 4.0])], [torch.zeros(2)])
        tensor(5.)
        >>> w = [torch.randn(4, 3)]
        >>> assert distance_from_initialisation(w, w) == 0
    """
    now, before = _paired(tensors, initial, what="initial")
    distance, norm = _distance_and_norm(now, before, members)
    return _ratio(distance, norm) if relative else distance


def update_to_weight_ratio(before: Iterable[Tensor], after: Iterable[Tensor], members: bool = False) -> Tensor:
    r"""How much one step, or several, change the weights relative to their size.

    .. math:: \frac{\lVert w_{\text{after}} - w_{\text{before}} \rVert_2}{\lVert w_{\text{before}} \rVert_2}

    Weights that have grown tenfold make it ten times smaller for a step of the same length. What passes through a
    normalisation layer, or changes sign or not in a ReLU network, depends on this ratio and not on the step's length.

    Args:
        before: The tensors before the step, copies of them; usually the weight matrices.
        after: The same tensors after it, in the same order.
        members: If true, every tensor is ``[S, ...]`` and the leading axis, the ensemble members, is kept.

    Returns:
        Shape ``[]``, or ``[S]`` with ``members``, dimensionless, ``>= 0``. NaN if an entry is NaN or infinite, and
        where all weights were 0.

    Raises:
        ValueError: If the two collections differ in number or shapes, or as :func:`weight_magnitude`.

    Source:
        Common practice; Lyle et al. (2024), *Normalization and effective learning rates in reinforcement learning*,
        arXiv 2407.01800, call the same the effective learning rate for layers followed by a norm.

    Cost: two passes over all entries, no host synchronisation.

    Example:
        >>> update_to_weight_ratio([torch.full((4, 3), 2.0)], [torch.full((4, 3), 2.5)])
        tensor(0.2500)
    """
    old, new = _paired(before, after, what="after", first="before")
    change, norm = _distance_and_norm(new, old, members)
    return _ratio(change, norm)


def _paired(
    tensors: Iterable[Tensor], others: Iterable[Tensor], *, what: str, first: str = "tensors"
) -> tuple[list[Tensor], list[Tensor]]:
    """Two collections of the same shapes, one by one."""
    for name, collection in ((first, tensors), (what, others)):
        if isinstance(collection, Tensor):
            raise ValueError(f"{name} must be a collection of tensors; wrap a single one in a list")
    pairs = list(tensors), list(others)
    shapes = [[tuple(t.shape) if isinstance(t, Tensor) else type(t).__name__ for t in side] for side in pairs]
    if shapes[0] != shapes[1]:
        raise ValueError(f"{first} and {what} must hold the same tensors in the same order: {shapes[0]}, {shapes[1]}")
    return pairs


def _distance_and_norm(tensors: list[Tensor], origin: list[Tensor], members: bool) -> tuple[Tensor, Tensor]:
    """Distance from the origin, and the norm of the origin; NaN where an entry is not finite."""
    now = same_members(tensors, members=members, what="tensors")
    then = same_members(origin, members=members, what="origin")
    distance = norm_of_rows([a - b for a, b in zip(now, then, strict=True)])
    norm = norm_of_rows(then)
    return (distance, norm) if members else (distance.squeeze(0), norm.squeeze(0))


def _ratio(above: Tensor, below: Tensor) -> Tensor:
    return above / below.masked_fill(below == 0, float("nan"))
