r"""Ranks of a matrix: in how many directions a layer's activations really vary.

Three of these and of :mod:`pliant.metrics.moments` are called "stable rank" somewhere;
:data:`pliant.metrics.CATALOGUE` says by whom.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from pliant.metrics._inputs import nan_where_broken, prepared_matrix

__all__ = ["approximate_rank", "effective_rank", "numerical_rank", "srank", "stable_rank"]


def effective_rank(matrix: Tensor, centred: bool = False) -> Tensor:
    r"""Effective rank: the exponential of the entropy of the normalised singular values.

    .. math:: \operatorname{erank}(A) = \exp\Bigl(-\sum_k p_k \ln p_k\Bigr), \qquad
        p_k = \frac{\sigma_k}{\sum_j \sigma_j}, \qquad 0 \ln 0 = 0

    It is :math:`r` when :math:`A` has :math:`r` equal singular values and no others, and falls towards 1 as one of them
    outgrows the rest. By default the matrix is taken as it is: an offset that all examples share is then one
    large direction, which hides the others.

    Args:
        matrix: Shape ``[..., N, U]``, usually the activations of U units on N examples. N should be several
            times U, since the value cannot exceed ``min(N, U)``.
        centred: Subtract each column's mean first.

    Returns:
        Shape ``[...]``, in ``[1, min(N, U)]``. 0 for an all-zero matrix, where the formula is 0/0: it spans
        nothing, and 1 would claim a direction. NaN where a member's data is not finite.

    Raises:
        ValueError: If the input has fewer than two axes or is empty.

    Source:
        Roy and Vetterli (2007), *The effective rank: a measure of effective dimensionality*, EUSIPCO,
        definition 1. Kumar et al.'s "srank" and the 99 % count that some codes call effective or stable rank
        are other quantities.

    Cost: one singular value decomposition, ``O(N U min(N, U))`` per member: on one CPU core about 1 ms for
    512 x 100 and 50 ms for 2000 x 512. The eigenvalues of the Gram matrix would be the shortcut, but squaring
    the matrix loses half of the digits exactly where a collapsing rank lives, in the small singular values;
    in double precision, which makes up for it, the shortcut measured 0.9 to 1.6 times as fast: not worth a
    second path.

    Example:
        >>> effective_rank(torch.eye(5)).round(decimals=4)
        tensor(5.)
        >>> one_direction_NU = torch.outer(torch.rand(20), torch.rand(8))
        >>> assert abs(effective_rank(one_direction_NU) - 1) < 1e-3
        >>> act_NU = torch.randn(20, 8)                          # scale is no matter, nor a rotation
        >>> assert torch.isclose(effective_rank(act_NU), effective_rank(100 * act_NU.mT), rtol=1e-4)
    """
    sigma, _, finite = _singular_values(matrix, centred)
    total = sigma.sum(-1, keepdim=True)
    p = sigma / torch.where(total == 0, torch.ones_like(total), total)
    rank = torch.special.entr(p).sum(-1).exp()
    return nan_where_broken(rank.masked_fill(total.squeeze(-1) == 0, 0.0), finite)


def stable_rank(matrix: Tensor, centred: bool = False) -> Tensor:
    r"""Stable rank: the squared Frobenius norm over the squared spectral norm.

    .. math:: \operatorname{srank}(A) = \frac{\lVert A \rVert_F^2}{\lVert A \rVert_2^2}
        = \frac{\sum_k \sigma_k^2}{\max_k \sigma_k^2}

    Never above the rank, and hardly moved by small singular values: a large mean activation, one direction
    that all examples share, is enough to bring it close to 1.

    Args:
        matrix: Shape ``[..., N, U]``, usually the activations of U units on N examples, or a weight.
        centred: Subtract each column's mean first.

    Returns:
        Shape ``[...]``, in ``[1, min(N, U)]``; 0 for an all-zero matrix, where the formula is 0/0. NaN where
        a member's data is not finite.

    Raises:
        ValueError: If the input has fewer than two axes or is empty.

    Source:
        Rudelson and Vershynin (2007), *Sampling from large matrices*, Journal of the ACM 54, under the name
        "numerical rank". Deviation from the field: the "stable rank" of Dohare et al. (2024) is the number of singular
        values that make up 99 % of their sum, which is :func:`srank`; that of Joudaki et al. (2025) is
        :func:`~pliant.metrics.participation_ratio`.

    Cost: one singular value decomposition, as :func:`effective_rank`.

    Example:
        >>> stable_rank(torch.diag(torch.tensor([2.0, 1.0, 1.0]))).round(decimals=4)
        tensor(1.5000)
        >>> act_NU = torch.randn(20, 8)
        >>> assert 1 <= stable_rank(act_NU) <= torch.linalg.matrix_rank(act_NU)
    """
    sigma, _, finite = _singular_values(matrix, centred)
    return nan_where_broken(_relative_to_largest(sigma).square().sum(-1), finite)


def srank(matrix: Tensor, delta: float = 0.01, centred: bool = False) -> Tensor:
    r"""How many of the largest singular values make up all but a share :math:`\delta` of their sum.

    .. math:: \min \Bigl\{ k : \frac{\sum_{i \le k} \sigma_i}{\sum_i \sigma_i} \ge 1 - \delta \Bigr\}

    Args:
        matrix: Shape ``[..., N, U]``, usually the activations of U units on N examples.
        delta: In ``[0, 1)``.
        centred: Subtract each column's mean first.

    Returns:
        A whole number as a float, shape ``[...]``, in ``[1, min(N, U)]``; 0 for an all-zero matrix, NaN where a
        member's data is not finite. A sum that reaches the share up to rounding has reached it.

    Raises:
        ValueError: If ``delta`` is not in ``[0, 1)``, or the input has fewer than two axes or is empty.

    Source:
        Kumar, Agarwal, Ghosh and Levine (2021), *Implicit under-parameterization inhibits data-efficient deep
        reinforcement learning*, arXiv 2010.14498, with :math:`\delta = 0.01`.

    Cost: one singular value decomposition, as :func:`effective_rank`.

    Example:
        >>> srank(torch.diag(torch.tensor([98.0, 1.0, 0.6, 0.4])))
        tensor(2.)
        >>> act_NU = torch.randn(40, 8)                          # leaving out more never needs more directions
        >>> assert srank(act_NU, delta=0.1) <= srank(act_NU, delta=0.01) <= 8
    """
    if not 0 <= delta < 1:
        raise ValueError(f"delta must be in [0, 1), not {delta}")
    sigma, _, finite = _singular_values(matrix, centred)
    return nan_where_broken(_count_for_share(sigma, 1 - delta), finite)


def approximate_rank(matrix: Tensor, share: float = 0.99, centred: bool = False) -> Tensor:
    r"""How many of the largest singular values make up a share of the sum of their squares.

    .. math:: \min \Bigl\{ k : \frac{\sum_{i \le k} \sigma_i^2}{\sum_i \sigma_i^2} \ge \text{share} \Bigr\}

    The number of principal components that explain the share of the variance, if ``centred``; of the energy, if not.

    Args:
        matrix: Shape ``[..., N, U]``, usually the activations of U units on N examples.
        share: In ``(0, 1]``.
        centred: Subtract each column's mean first.

    Returns:
        A whole number as a float, shape ``[...]``, in ``[1, min(N, U)]``; 0 for an all-zero matrix, NaN where a
        member's data is not finite.

    Raises:
        ValueError: If ``share`` is not in ``(0, 1]``, or the input has fewer than two axes or is empty.

    Source:
        Yang et al. (2020), *Harnessing structures for value-based planning and reinforcement learning*, arXiv
        1909.12255; logged under this name by the published code of Dohare et al. (2024).

    Cost: one singular value decomposition, as :func:`effective_rank`.

    Example:
        >>> approximate_rank(torch.diag(torch.tensor([10.0, 1.0, 0.9, 0.1])))
        tensor(2.)
        >>> act_NU = torch.randn(40, 8)                          # squares favour the large ones
        >>> assert approximate_rank(act_NU, share=0.99) <= srank(act_NU, delta=0.01)
    """
    if not 0 < share <= 1:
        raise ValueError(f"share must be in (0, 1], not {share}")
    sigma, _, finite = _singular_values(matrix, centred)
    return nan_where_broken(_count_for_share(_relative_to_largest(sigma).square(), share), finite)


def numerical_rank(
    matrix: Tensor,
    tol: float = 0.01,
    relative_to: Literal["samples", "largest", "nothing"] = "samples",
    centred: bool = False,
) -> Tensor:
    r"""How many singular values are above a tolerance.

    .. math:: \Bigl|\{\, k : \sigma_k / c > \text{tol} \,\}\Bigr|, \qquad
        c = \sqrt N \text{ (samples)}, \; \sigma_1 \text{ (largest)}, \; 1 \text{ (nothing)}

    Args:
        matrix: Shape ``[..., N, U]``, usually the activations of U units on N examples.
        tol: ``>= 0``, in units of the matrix, or dimensionless relative to the largest.
        relative_to: What singular values are measured by. ``"samples"`` keeps their size as the batch grows.
        centred: Subtract each column's mean first.

    Returns:
        A whole number as a float, shape ``[...]``, in ``[0, min(N, U)]``; NaN where a member's data is not finite.

    Raises:
        ValueError: If ``tol`` is negative or not finite, ``relative_to`` is unknown, or the input has fewer than two
            axes or is empty.

    Source:
        Lyle, Rowland and Dabney (2022), *Understanding and preventing capacity loss in reinforcement learning*, arXiv
        2204.09560: the feature rank, relative to samples with tolerance 0.01.

    Cost: one singular value decomposition, as :func:`effective_rank`.

    Example:
        >>> numerical_rank(torch.diag(torch.tensor([2.0, 1.0, 1e-3])))
        tensor(2.)
        >>> act_NU = torch.randn(40, 8)                          # with tolerance 0 the rank of linear algebra
        >>> assert numerical_rank(act_NU, tol=1e-5, relative_to="largest") == torch.linalg.matrix_rank(act_NU)
    """
    if not (math.isfinite(tol) and tol >= 0):
        raise ValueError(f"tol must be a finite number >= 0, not {tol}")
    if relative_to not in ("samples", "largest", "nothing"):
        raise ValueError(f"relative_to must be 'samples', 'largest' or 'nothing', not {relative_to!r}")
    sigma, scale, finite = _singular_values(matrix, centred)
    if relative_to == "largest":
        above = _relative_to_largest(sigma) > tol
    else:
        # The scale stands apart, so that a sum of squares cannot leave the range of the type.
        above = sigma * scale / (math.sqrt(matrix.shape[-2]) if relative_to == "samples" else 1.0) > tol
    return nan_where_broken(above.to(sigma.dtype).sum(-1), finite)


def _relative_to_largest(sigma: Tensor) -> Tensor:
    """Singular values over the largest of them, so that their squares stay in range whatever the scale."""
    largest = sigma.amax(-1, keepdim=True)
    return sigma / torch.where(largest == 0, torch.ones_like(largest), largest)


def _count_for_share(values: Tensor, share: float) -> Tensor:
    """The smallest number of leading values whose sum reaches this share of the whole, up to rounding."""
    total = values.sum(-1, keepdim=True)
    reached = values.cumsum(-1) >= share * total * (1 - 8 * torch.finfo(values.dtype).eps)
    count = (~reached).to(values.dtype).sum(-1) + 1
    return count.clamp(max=float(values.shape[-1])).masked_fill(total.squeeze(-1) == 0, 0.0)


def _singular_values(matrix: Tensor, centred: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Singular values ``[..., min(N, U)]`` of the scaled matrices, their scale, and which are finite."""
    prepared, scale, finite = prepared_matrix(matrix, centred)
    return torch.linalg.svdvals(prepared), scale, finite
