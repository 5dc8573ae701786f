r"""Gradients: how large they are, which units receive none, and whether samples agree on a direction."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from pliant.metrics._inputs import all_finite, floating, nan_where_broken, norm_of_rows, same_members
from pliant.metrics.dormancy import dormancy_score, dormant_fraction, dormant_mask
from pliant.metrics.rank import effective_rank

__all__ = [
    "empirical_fisher_trace",
    "gradient_covariance",
    "gradient_dormancy_score",
    "gradient_dormant_fraction",
    "gradient_dormant_mask",
    "gradient_interference",
    "gradient_norm",
    "gradient_rank",
]


def gradient_norm(grads: Iterable[Tensor], members: bool = False) -> Tensor:
    r"""Euclidean norm of the gradient over all entries of the given tensors.

    .. math:: \sqrt{\sum_t \sum_j g_{t,j}^2}

    Args:
        grads: The gradients of the parameters, of any shapes. A parameter that has none (``None``) is left out by the
            caller, who knows whether it should have had one.
        members: If true, every tensor is ``[S, ...]`` and the leading axis, the ensemble members, is kept.

    Returns:
        Shape ``[]``, or ``[S]`` with ``members``, ``>= 0``, in units of the loss over units of the parameters. NaN if
        an entry is NaN or infinite.

    Raises:
        ValueError: If no tensor is given, one is missing or empty, a bare tensor is given instead of a collection, or
            with ``members`` the leading axes differ.

    Source:
        Abbas et al. (2023), *Loss of plasticity in continual deep reinforcement learning*, arXiv 2303.07507, show
        gradients that collapse as plasticity is lost; the same number as ``torch.nn.utils.get_total_norm``.

    Cost: two passes over all entries, no host synchronisation.

    Example:
        >>> gradient_norm([torch.tensor([[3.0]]), torch.tensor([4.0, 0.0])])
        tensor(5.)
    """
    norm = norm_of_rows(same_members(grads, members=members, what="grads"))
    return norm if members else norm.squeeze(0)


def gradient_dormancy_score(mean_abs_gradient: Tensor) -> Tensor:
    r"""How much gradient each unit receives, relative to the average unit of its group.

    .. math:: G_i = \frac{\bar g_i}{\tfrac1U \sum_{k=1}^{U} \bar g_k}

    The arithmetic of :func:`~pliant.metrics.dormancy_score`, on gradients: it also sees units that are large and learn
    nothing, whatever their activation function.

    Args:
        mean_abs_gradient: :math:`\bar g_i \ge 0`, shape ``[..., U]``: the mean absolute gradient of the unit's incoming
            weights (``weight.grad.abs().mean(-1)`` of a linear layer), or the mean over samples of
            :math:`|\partial L / \partial h_i|`. The two differ: a dead ReLU still has the latter.

    Returns:
        Dimensionless scores ``>= 0``, shape ``[..., U]``. All 0 if no unit has a gradient, all NaN if the group holds
        a NaN, an infinity, or a negative number.

    Raises:
        ValueError: If the input has no unit axis or is empty.

    Source:
        Liu et al. (2025), *Measure gradients, not activations!*, arXiv 2505.24061 (GraMa): the paper writes the
        gradient with respect to the activation, its published code takes that of the incoming weights.
        Deviation: a group without gradients scores 0, where the formula is 0/0; adding 1e-8 to the denominator agrees.

    Cost: ``O(U)`` per member, no host synchronisation.

    Example:
        >>> gradient_dormancy_score(torch.tensor([0.0, 1.0, 1.0, 2.0]))
        tensor([0., 1., 1., 2.])
        >>> g = torch.rand(64)                                   # the scale of the loss is no matter
        >>> assert torch.equal(gradient_dormancy_score(g), gradient_dormancy_score(g / 1024))
    """
    return dormancy_score(floating(mean_abs_gradient, axes=1, what="mean_abs_gradient"))


def gradient_dormant_mask(mean_abs_gradient: Tensor, tau: float = 0.01) -> Tensor:
    r"""Which units receive hardly any gradient: :math:`G_i \le \tau`, see :func:`gradient_dormancy_score`.

    Args:
        mean_abs_gradient: Shape ``[..., U]``, ``>= 0``.
        tau: Threshold on the score, ``>= 0``. 0 marks the units without any gradient.

    Returns:
        Bool, shape ``[..., U]``; ``False`` throughout a group whose data is broken.

    Raises:
        ValueError: If ``tau`` is negative or not a finite number, or the input has no unit axis or is empty.

    Source:
        Liu et al. (2025), arXiv 2505.24061; threshold 0.01 as in its section 5.1.

    Cost: ``O(U)`` per member, no host synchronisation.

    Example:
        >>> gradient_dormant_mask(torch.tensor([0.0, 0.005, 1.0, 3.0]))
        tensor([ True,  True, False, False])
    """
    return dormant_mask(floating(mean_abs_gradient, axes=1, what="mean_abs_gradient"), tau)


def gradient_dormant_fraction(mean_abs_gradient: Tensor, tau: float = 0.01) -> Tensor:
    """Fraction of the units that receive hardly any gradient: the mean of :func:`gradient_dormant_mask`.

    Args:
        mean_abs_gradient: Shape ``[..., U]``, ``>= 0``.
        tau: Threshold on the score, ``>= 0``.

    Returns:
        Fraction in ``[0, 1]``, shape ``[...]``. 1 if no unit has a gradient, NaN if the data is broken.

    Raises:
        ValueError: If ``tau`` is negative or not a finite number, or the input has no unit axis or is empty.

    Source:
        As :func:`gradient_dormant_mask`.

    Cost: ``O(U)`` per member, no host synchronisation.

    Example:
        >>> gradient_dormant_fraction(torch.tensor([0.0, 0.005, 1.0, 3.0]))
        tensor(0.5000)
    """
    return dormant_fraction(floating(mean_abs_gradient, axes=1, what="mean_abs_gradient"), tau)


def gradient_covariance(grads_NP: Tensor) -> Tensor:
    r"""Cosines between the gradients of single samples.

    .. math:: C_{ij} = \frac{\langle g_i, g_j \rangle}{\lVert g_i \rVert \, \lVert g_j \rVert}

    Args:
        grads_NP: One gradient per sample as a row, shape ``[..., N, P]``.

    Returns:
        Symmetric, shape ``[..., N, N]``, in ``[-1, 1]``. A sample whose gradient is zero has no direction: its row and
        column are 0, the diagonal included. NaN throughout a member whose data is not finite.

    Raises:
        ValueError: If the input has fewer than two axes or is empty.

    Source:
        Lyle et al. (2023), *Understanding plasticity in neural networks*, arXiv 2303.01486: the gradient covariance
        matrix, normalised as here. It is not centred, so "covariance" is their name rather than what it is.

    Cost: ``O(N^2 P)`` per member, no host synchronisation.

    Example:
        >>> gradient_covariance(torch.tensor([[1.0, 0.0], [0.0, 2.0], [-3.0, 0.0]]))
        tensor([[ 1.,  0., -1.],
                [ 0.,  1.,  0.],
                [-1.,  0.,  1.]])
    """
    cosines, _, finite = _cosines(grads_NP)
    return cosines.masked_fill(~finite[..., None, None], float("nan"))


def gradient_interference(grads_NP: Tensor) -> Tensor:
    r"""Mean cosine between the gradients of two different samples.

    .. math:: \frac{1}{N(N-1)} \sum_{i \ne j} C_{ij}

    with :math:`C` of :func:`gradient_covariance`. Near 0 samples can be learned one by one; near 1 all of them pull in
    one direction, and the network cannot tell them apart; below 0 they undo each other.

    Args:
        grads_NP: One gradient per sample as a row, shape ``[..., N, P]``, N at least 2.

    Returns:
        Shape ``[...]``, in ``[-1, 1]``. Samples whose gradient is zero are left out; NaN where fewer than two remain,
        and where a member's data is not finite.

    Raises:
        ValueError: If there are fewer than two samples, or the input has fewer than two axes or is empty.

    Source:
        Lyle et al. (2023), arXiv 2303.01486, read the matrix by eye; its mean off-diagonal is a summary in one number.

    Cost: as :func:`gradient_covariance`.

    Example:
        >>> gradient_interference(torch.tensor([[1.0, 0.0], [0.0, 2.0]]))
        tensor(0.)
        >>> one_direction_NP = torch.rand(8, 1) * torch.randn(5)
        >>> assert torch.isclose(gradient_interference(one_direction_NP), torch.tensor(1.0))
    """
    if isinstance(grads_NP, Tensor) and grads_NP.ndim >= 2 and grads_NP.shape[-2] == 1:
        raise ValueError("one sample interferes with nothing; pass the gradients of two samples or more")
    cosines, has_gradient, finite = _cosines(grads_NP)
    count = has_gradient.sum(-1).to(cosines.dtype)
    off_diagonal = cosines.sum((-2, -1)) - cosines.diagonal(dim1=-2, dim2=-1).sum(-1)
    pairs = count * (count - 1)
    value = off_diagonal / pairs.masked_fill(pairs <= 0, float("nan"))
    return nan_where_broken(value, finite)


def gradient_rank(grads_NP: Tensor) -> Tensor:
    r"""Effective rank of the directions of single samples' gradients: in how many of them samples can be learned.

    .. math:: \operatorname{erank}(\hat G), \qquad \hat g_i = \frac{g_i}{\lVert g_i \rVert}

    with :func:`~pliant.metrics.effective_rank` of the matrix whose rows are the normalised gradients, so that
    :math:`\hat G \hat G^\top` is :func:`gradient_covariance`.

    Args:
        grads_NP: One gradient per sample as a row, shape ``[..., N, P]``.

    Returns:
        Shape ``[...]``, in ``[1, min(N, P)]``; 0 where no sample has a gradient, NaN where data is not finite.

    Raises:
        ValueError: If the input has fewer than two axes or is empty.

    Source:
        Lyle et al. (2023), arXiv 2303.01486, read the matrix by eye: in a network that cannot learn it degenerates. The
        rank of its directions is a summary in one number, of this library.

    Cost: one singular value decomposition, ``O(N P min(N, P))`` per member.

    Example:
        >>> gradient_rank(torch.diag(torch.tensor([1.0, 5.0, 9.0]))).round(decimals=4)
        tensor(3.)
        >>> gradient_rank(torch.tensor([[1.0, 2.0], [-2.0, -4.0]])).round(decimals=4)
        tensor(1.)
    """
    grads, _, finite = _directions(grads_NP)
    return nan_where_broken(effective_rank(grads), finite)


def empirical_fisher_trace(grads_NP: Tensor) -> Tensor:
    r"""Mean squared length of single samples' gradients: the trace of the empirical Fisher matrix.

    .. math:: \frac1N \sum_n \lVert g_n \rVert^2

    Args:
        grads_NP: The gradient of each sample's own loss as a row, shape ``[..., N, P]``.

    Returns:
        Shape ``[...]``, ``>= 0``, in squared units of a gradient; NaN where a member's data is not finite.

    Raises:
        ValueError: If the input has fewer than two axes or is empty.

    Source:
        Kunstner, Balles and Hennig (2019), *Limitations of the empirical Fisher approximation*, arXiv 1905.12558. It is
        not the Fisher matrix: labels are the given ones, not drawn from the network. For that one see
        :func:`pliant.spectrum.fisher_trace`.

    Cost: one pass over ``N * P`` entries per member, no host synchronisation.

    Example:
        >>> empirical_fisher_trace(torch.tensor([[3.0, 4.0], [0.0, 1.0]]))
        tensor(13.)
    """
    grads = floating(grads_NP, axes=2, what="grads_NP")
    return nan_where_broken(grads.square().sum(-1).mean(-1), all_finite(grads, axes=2))


def _cosines(grads_NP: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Cosines ``[..., N, N]``, which samples have a gradient ``[..., N]``, which members are finite ``[...]``."""
    grads, has_gradient, finite = _directions(grads_NP)
    return (grads @ grads.mT).clamp(-1, 1), has_gradient, finite


def _directions(grads_NP: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of length 1 (or 0) ``[..., N, P]``, which samples have a gradient, which members are finite."""
    grads = floating(grads_NP, axes=2, what="grads_NP")
    finite = all_finite(grads, axes=2)
    grads = grads.masked_fill(~finite[..., None, None], 0.0)
    largest = grads.abs().amax(-1, keepdim=True)
    has_gradient = largest.squeeze(-1) > 0
    grads = grads / torch.where(largest == 0, torch.ones_like(largest), largest)
    norm = torch.linalg.vector_norm(grads, dim=-1, keepdim=True)
    return grads / torch.where(norm == 0, torch.ones_like(norm), norm), has_gradient, finite
