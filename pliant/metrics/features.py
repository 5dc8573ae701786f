r"""The size of a layer's features, and how often its units are on."""

from __future__ import annotations

import torch
from torch import Tensor

from pliant.metrics._inputs import all_finite, floating, nan_where_broken

__all__ = ["active_fraction", "feature_norm"]


def active_fraction(act_NU: Tensor) -> Tensor:
    r"""Share of the activations that are above zero.

    .. math:: \frac{1}{NU} \, \bigl|\{ (n, i) : h_i(x_n) > 0 \}\bigr|

    It counts entries, not units: half is what a ReLU layer with symmetric pre-activations has, and it may stay there
    while single units die.

    Args:
        act_NU: Activations, shape ``[..., N, U]``.

    Returns:
        Share in ``[0, 1]``, shape ``[...]``, NaN where a member's data is not finite.

    Raises:
        ValueError: If the input has fewer than two axes or is empty.

    Source:
        Abbas et al. (2023), arXiv 2303.07507, count non-zero activations of ReLU networks in the same way.

    Cost: one pass over ``N * U`` entries per member, no host synchronisation.

    Example:
        >>> active_fraction(torch.tensor([[0.0, 2.0], [0.0, 1.0]]))
        tensor(0.5000)
    """
    act = floating(act_NU, axes=2, what="act_NU")
    return nan_where_broken((act > 0).to(act.dtype).mean((-2, -1)), all_finite(act, axes=2))


def feature_norm(act_NU: Tensor) -> Tensor:
    r"""Mean Euclidean length of a sample's features.

    .. math:: \frac1N \sum_n \lVert h(x_n) \rVert_2

    Args:
        act_NU: Activations, shape ``[..., N, U]``.

    Returns:
        Shape ``[...]``, ``>= 0``, in the activations' own units, NaN where a member's data is not finite.

    Raises:
        ValueError: If the input has fewer than two axes or is empty.

    Source:
        Lyle et al. (2024), *Disentangling the causes of plasticity loss in neural networks*, arXiv 2402.18762, where
        the mean of its square is penalised.

    Cost: one pass over ``N * U`` entries per member, no host synchronisation.

    Example:
        >>> feature_norm(torch.tensor([[3.0, 4.0], [0.0, 1.0]]))
        tensor(3.)
    """
    act = floating(act_NU, axes=2, what="act_NU")
    largest = act.abs().amax((-2, -1), keepdim=True)
    divisor = torch.where(largest == 0, torch.ones_like(largest), largest)
    norm = torch.linalg.vector_norm(act / divisor, dim=-1).mean(-1) * divisor[..., 0, 0]
    return nan_where_broken(norm, all_finite(act, axes=2))
