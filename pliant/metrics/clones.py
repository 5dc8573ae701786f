r"""Cloned units: units of one layer that have become copies of each other."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from pliant.devices import can_read
from pliant.metrics._inputs import all_finite, centre_columns, floating, nan_where_broken

__all__ = ["clone_labels", "cloned_fraction", "cloned_mask", "num_distinct_units"]

Sign = Literal["any", "same"]


def clone_labels(act_NU: Tensor, similarity: float = 0.95, sign: Sign = "any", centred: bool = True) -> Tensor:
    r"""Which cluster of copies each unit belongs to.

    Two units are copies if their correlation over the samples exceeds ``similarity``; a cluster is what such pairs
    connect. With ``sign="any"`` a unit that is minus another one is a copy, too.

    .. math:: \left|\operatorname{corr}_x(h_i, h_j)\right| > \text{similarity}

    Args:
        act_NU: Activations, shape ``[..., N, U]``: N samples (for convolutions samples times positions, for tokens
            those that are not padding), at least 3, better several times U: chance alone brings units of few samples
            together.
        similarity: In ``[0, 1)``.
        sign: ``"any"`` counts correlations near -1, ``"same"`` does not.
        centred: False takes the cosine of the activations as they are instead of the correlation. An offset that all
            units share then makes copies of them.

    Returns:
        Long, shape ``[..., U]``: the lowest member of each unit's cluster. Units that do not vary stay alone: nothing
        can be said of them here, see :func:`~pliant.metrics.dead_mask`. So do all units of a member whose data is not
        finite.

    Raises:
        ValueError: If ``similarity`` is not in ``[0, 1)``, ``sign`` is unknown, there are fewer than three samples
            (two, if not ``centred``), or the input has fewer than two axes or is empty.

    Source:
        Joudaki et al. (2025), *Barriers for learning in an evolving world*, arXiv 2510.00304, for cloned units.
        Deviation: their code takes cosines, pairs, and positive signs only, see :func:`cloned_fraction`.

    Cost: one ``U x U`` matrix per member, ``O(N U^2)``; no host synchronisation on an accelerator.

    Example:
        >>> a_N, b_N = torch.tensor([1.0, 2.0, 0.0, 4.0]), torch.tensor([0.0, 3.0, 1.0, -2.0])
        >>> clone_labels(torch.stack([a_N, b_N, 2 * a_N + 1, -b_N], dim=1))
        tensor([0, 1, 0, 1])
    """
    near, _, _ = _neighbours(act_NU, similarity, sign, centred)
    return _components(near)


def cloned_mask(act_NU: Tensor, similarity: float = 0.95, sign: Sign = "any", centred: bool = True) -> Tensor:
    """Which units have a copy among the other units: those in a cluster of two or more.

    Args:
        act_NU: Activations, shape ``[..., N, U]``.
        similarity: In ``[0, 1)``.
        sign: ``"any"`` or ``"same"``.
        centred: Correlation if true, cosine if not.

    Returns:
        Bool, shape ``[..., U]``; ``False`` for units that do not vary, and throughout a member whose data is not
        finite.

    Raises:
        ValueError: As :func:`clone_labels`.

    Source:
        As :func:`clone_labels`.

    Cost: as :func:`clone_labels`.

    Example:
        >>> act_NU = torch.tensor([[1.0, 2.0, 0.0], [2.0, 4.0, 0.0], [0.0, 0.0, 3.0], [4.0, 8.0, 0.0]])
        >>> cloned_mask(act_NU)
        tensor([ True,  True, False])
    """
    near, _, _ = _neighbours(act_NU, similarity, sign, centred)
    return _others(near).any(-1)


def cloned_fraction(
    act_NU: Tensor,
    similarity: float = 0.95,
    sign: Sign = "any",
    centred: bool = True,
    count: Literal["all", "spare"] = "all",
) -> Tensor:
    r"""Fraction of the units that are copies of others.

    Args:
        act_NU: Activations, shape ``[..., N, U]``.
        similarity: In ``[0, 1)``.
        sign: ``"any"`` or ``"same"``.
        centred: Correlation if true, cosine if not.
        count: ``"all"`` counts every unit of a cluster of two or more: the mean of :func:`cloned_mask`. ``"spare"``
            counts the units that a later unit is a copy of: of k exact copies k - 1, so that the fraction of a layer of
            pairs is one half.

    Returns:
        Fraction in ``[0, 1]``, shape ``[...]``. NaN where a member's data is not finite, and where no unit varies:
        nothing could have been compared.

    Raises:
        ValueError: If ``count`` is unknown, or as :func:`clone_labels`.

    Source:
        As :func:`clone_labels`. With ``sign="same", centred=False, count="spare"`` it is the fraction of duplicate
        units of their published code; there its threshold is 0.95 as well.

    Cost: as :func:`clone_labels`.

    Example:
        >>> act_NU = torch.randn(64, 8)
        >>> pairs_NU = torch.cat([act_NU, act_NU], dim=1)
        >>> cloned_fraction(act_NU), cloned_fraction(pairs_NU), cloned_fraction(pairs_NU, count="spare")
        (tensor(0.), tensor(1.), tensor(0.5000))
    """
    if count not in ("all", "spare"):
        raise ValueError(f"count must be 'all' or 'spare', not {count!r}")
    near, varies, finite = _neighbours(act_NU, similarity, sign, centred)
    mask = (near.triu(1) if count == "spare" else _others(near)).any(-1)
    dtype = torch.float64 if act_NU.dtype == torch.float64 else torch.float32
    return nan_where_broken(mask.to(dtype).mean(-1), finite & varies.any(-1))


def num_distinct_units(act_NU: Tensor, similarity: float = 0.95, sign: Sign = "any", centred: bool = True) -> Tensor:
    """How many different units there are: clusters of copies, units that do not vary left out.

    Args:
        act_NU: Activations, shape ``[..., N, U]``.
        similarity: In ``[0, 1)``.
        sign: ``"any"`` or ``"same"``.
        centred: Correlation if true, cosine if not.

    Returns:
        A whole number as a float, shape ``[...]``, in ``[0, U]``; 0 where no unit varies, NaN where a member's data is
        not finite.

    Raises:
        ValueError: As :func:`clone_labels`.

    Source:
        As :func:`clone_labels`: the number of blocks of the layer's partition.

    Cost: as :func:`clone_labels`.

    Example:
        >>> act_NU = torch.randn(64, 4)
        >>> num_distinct_units(torch.cat([act_NU, -act_NU, torch.zeros(64, 2)], dim=1))
        tensor(4.)
    """
    near, varies, finite = _neighbours(act_NU, similarity, sign, centred)
    labels = _components(near)
    first = labels == torch.arange(labels.shape[-1], device=labels.device)
    dtype = torch.float64 if act_NU.dtype == torch.float64 else torch.float32
    return nan_where_broken((first & varies).to(dtype).sum(-1), finite)


def _neighbours(act_NU: Tensor, similarity: float, sign: Sign, centred: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Which units are copies of which, bool ``[..., U, U]``; which of them vary; which members are finite."""
    if not 0 <= similarity < 1:
        raise ValueError(f"similarity must be in [0, 1), not {similarity}")
    if sign not in ("any", "same"):
        raise ValueError(f"sign must be 'any' or 'same', not {sign!r}")
    act = floating(act_NU, axes=2, what="act_NU")
    needed = 3 if centred else 2
    if act.shape[-2] < needed:
        raise ValueError(
            f"act_NU has {act.shape[-2]} samples: on fewer than {needed} all units look like copies of each other; "
            "measure on more, better on several times as many as there are units"
        )
    finite = all_finite(act, axes=2)
    act = act.masked_fill(~finite[..., None, None], 0.0)
    if centred:
        act = centre_columns(act, act_NU.dtype)
    largest = act.abs().amax(-2, keepdim=True)
    varies = largest.squeeze(-2) > 0
    act = act / torch.where(largest == 0, torch.ones_like(largest), largest)
    norm = torch.linalg.vector_norm(act, dim=-2, keepdim=True)
    act = act / torch.where(norm == 0, torch.ones_like(norm), norm)
    cosines = act.mT @ act
    near = (cosines.abs() if sign == "any" else cosines) > similarity
    near = near & varies.unsqueeze(-1) & varies.unsqueeze(-2)
    return near | _diagonal(near), varies, finite


def _diagonal(square: Tensor) -> Tensor:
    return torch.eye(square.shape[-1], dtype=torch.bool, device=square.device)


def _others(near: Tensor) -> Tensor:
    """The same without each unit itself."""
    return near & ~_diagonal(near)


def _components(near: Tensor) -> Tensor:
    """The lowest unit that each one is connected to, long ``[..., U]``.

    Every unit takes the lowest label among its neighbours, tells it to the unit whose label it had, and then follows
    labels of labels: connected parts merge in a number of rounds that grows with the logarithm of their size.
    """
    width = near.shape[-1]
    labels = torch.arange(width, device=near.device).expand(near.shape[:-1]).contiguous()
    for _ in range(2 * max(1, math.ceil(math.log2(max(width, 2)))) + 2):
        lowest = torch.where(near, labels.unsqueeze(-2), width).amin(-1)
        merged = labels.scatter_reduce(-1, labels, lowest, "amin").minimum(lowest)
        merged = merged.gather(-1, merged)
        merged = merged.gather(-1, merged)
        if can_read(merged) and torch.equal(merged, labels):
            break
        labels = merged
    return labels
