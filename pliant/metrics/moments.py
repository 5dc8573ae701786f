r"""Second moments of features: over how many directions they spread, and how far they are from doing so evenly."""

from __future__ import annotations

import torch
from torch import Tensor

from pliant.metrics._inputs import nan_where_broken, prepared_matrix

__all__ = ["isotropy_gap", "participation_ratio"]


def participation_ratio(matrix: Tensor, centred: bool = True) -> Tensor:
    r"""Participation ratio of the covariance's eigenvalues: how many directions share the variance.

    .. math:: \frac{\bigl(\sum_k \lambda_k\bigr)^2}{\sum_k \lambda_k^2}
        = \frac{\lVert A \rVert_F^4}{\lVert A^\top A \rVert_F^2}, \qquad \lambda_k = \sigma_k^2

    Args:
        matrix: Shape ``[..., N, U]``, usually the activations of U units on N examples.
        centred: Subtract each column's mean first, which makes the eigenvalues those of the covariance.

    Returns:
        Shape ``[...]``, in ``[1, min(N, U)]``; 0 where nothing varies (all-zero, if not ``centred``), NaN where a
        member's data is not finite.

    Raises:
        ValueError: If the input has fewer than two axes or is empty, or is one sample that should be centred.

    Source:
        Gao et al. (2017), *A theory of multineuronal dimensionality, dynamics and measurement*, bioRxiv 214262.

    Cost: one Gram matrix of the smaller side, ``O(N U min(N, U))`` without a decomposition, much below
    :func:`~pliant.metrics.effective_rank`; the small eigenvalues, for which that would not do, hardly count here.

    Example:
        >>> act_NU = torch.cat([torch.eye(4), -torch.eye(4)])    # four directions alike, mean zero
        >>> participation_ratio(act_NU).round(decimals=4)
        tensor(4.)
        >>> assert torch.isclose(participation_ratio(act_NU + 5), participation_ratio(act_NU), rtol=1e-3)
    """
    matrix, _, finite = prepared_matrix(matrix, centred)
    trace, squares = _second_moments(matrix)
    ratio = trace.square() / torch.where(squares == 0, torch.ones_like(squares), squares)
    return nan_where_broken(ratio.clamp(max=float(min(matrix.shape[-2:]))), finite)


def isotropy_gap(matrix: Tensor, relative: bool = True) -> Tensor:
    r"""How far the second moments of features are from being the same in every direction.

    .. math:: \lVert A \rVert_F^2 - \frac{(\operatorname{tr} A)^2}{U} = U \operatorname{Var}_k(\lambda_k), \qquad
        A = \tfrac1N \Phi^\top \Phi

    with the eigenvalues :math:`\lambda_k` of A; ``relative`` divides by :math:`\lVert A \rVert_F^2`, which makes it one
    minus the participation ratio (not centred) over U.

    Args:
        matrix: Features, shape ``[..., N, U]``.
        relative: Whether it is a share of :math:`\lVert A \rVert_F^2`.

    Returns:
        Shape ``[...]``: in ``[0, 1]``, 1 where all are zero; if not ``relative`` ``>= 0``, in the features' units to
        the fourth power. NaN where a member's data is not finite.

    Raises:
        ValueError: If the input has fewer than two axes or is empty.

    Source:
        The feature penalty of SPHERE (2026), arXiv 2605.04712, from its published code; not relative there.

    Cost: as :func:`participation_ratio`.

    Example:
        >>> isotropy_gap(torch.eye(4))
        tensor(0.)
        >>> isotropy_gap(torch.ones(6, 4))                       # one direction of four
        tensor(0.7500)
    """
    prepared, scale, finite = prepared_matrix(matrix, centred=False)
    trace, squares = _second_moments(prepared)
    gap = (squares - trace.square() / matrix.shape[-1]).clamp(min=0)
    if relative:
        value = torch.where(squares == 0, torch.ones_like(gap), gap / torch.where(squares == 0, 1.0, squares))
    else:
        value = gap * (scale.squeeze(-1).square() / matrix.shape[-2]).square()
    return nan_where_broken(value, finite)


def _second_moments(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Trace and squared Frobenius norm of the Gram matrix, through the smaller of both, ``[...]``."""
    gram = matrix.mT @ matrix if matrix.shape[-1] <= matrix.shape[-2] else matrix @ matrix.mT
    return gram.diagonal(dim1=-2, dim2=-1).sum(-1), gram.square().sum((-2, -1))
