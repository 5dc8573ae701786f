r"""Saturated and frozen units: where a unit's activation function is flat, its incoming weights hardly learn."""

from __future__ import annotations

import math

from torch import Tensor

from pliant.metrics._inputs import all_finite, floating, nan_where_broken, on_share_of_samples

__all__ = ["frozen_fraction", "frozen_mask", "saturated_fraction", "saturated_mask"]


def saturated_mask(derivative_NU: Tensor, tau: float = 0.05, share: float = 0.95) -> Tensor:
    r"""Which units are saturated: :math:`|f'(z_i(x))| < \tau` on more than ``share`` of the samples.

    The derivative is that of the unit's own activation function at its pre-activation. Unlike a gradient of the loss
    it depends neither on how small the loss is nor on the layers above. A ReLU that is off has derivative 0, so a
    unit that is active on fewer than ``1 - share`` of the samples counts, and a dead one always does.

    Args:
        derivative_NU: :math:`f'(z)`, shape ``[..., N, U]``: N samples (for convolutions samples times positions, for
            tokens those that are not padding), U units.
        tau: Threshold on :math:`|f'|`, ``> 0``, in the derivative's own units. For tanh 0.05 is :math:`|h| > 0.975`;
            the derivative of a sigmoid is at most 0.25, so take a fifth of it there or the like.
        share: In ``[0, 1]``. 1 asks for all samples.

    Returns:
        Bool, shape ``[..., U]``; ``False`` throughout a member whose data is not finite.

    Raises:
        ValueError: If ``tau`` is not above 0, ``share`` not in ``[0, 1]``, or the input has fewer than two axes or is
            empty.

    Source:
        The chain rule; Joudaki et al. (2025), arXiv 2510.00304, for units that are frozen. Their code measures
        something else under the name, see :data:`pliant.metrics.CATALOGUE`.

    Cost: one pass over ``N * U`` entries per member, no host synchronisation.

    Example:
        >>> import torch
        >>> z_NU = torch.tensor([[0.0, 9.0], [1.0, -9.0]])
        >>> saturated_mask(1 - z_NU.tanh() ** 2)
        tensor([False,  True])
    """
    if not (math.isfinite(tau) and tau > 0):
        raise ValueError(f"tau must be a finite number > 0, not {tau}; frozen_mask counts derivatives of exactly 0")
    derivative = floating(derivative_NU, axes=2, what="derivative_NU")
    return on_share_of_samples(derivative.abs() < tau, share) & all_finite(derivative, axes=2).unsqueeze(-1)


def saturated_fraction(derivative_NU: Tensor, tau: float = 0.05, share: float = 0.95) -> Tensor:
    r"""Fraction of the units that are saturated: the mean of :func:`saturated_mask`.

    Args:
        derivative_NU: :math:`f'(z)`, shape ``[..., N, U]``.
        tau: Threshold on :math:`|f'|`, ``> 0``.
        share: Of the samples, in ``[0, 1]``.

    Returns:
        Fraction in ``[0, 1]``, shape ``[...]``, NaN where a member's data is not finite.

    Raises:
        ValueError: As :func:`saturated_mask`.

    Source:
        As :func:`saturated_mask`.

    Cost: one pass over ``N * U`` entries per member, no host synchronisation.

    Example:
        >>> import torch
        >>> derivative_NU = (torch.randn(64, 8) > 0).float()     # of a ReLU: off on about half of the samples
        >>> saturated_fraction(derivative_NU)
        tensor(0.)
        >>> assert saturated_fraction(0 * derivative_NU) == 1
    """
    derivative = floating(derivative_NU, axes=2, what="derivative_NU")
    mask = saturated_mask(derivative, tau, share)
    return nan_where_broken(mask.to(derivative.dtype).mean(-1), all_finite(derivative, axes=2))


def frozen_mask(derivative_NU: Tensor, tol: float = 0.0) -> Tensor:
    r"""Which units are frozen: :math:`|f'(z_i(x))| \le` ``tol`` on every sample.

    With ``tol=0`` no gradient at all reaches the incoming weights of such a unit on these samples: a step of plain
    gradient descent leaves them as they are, to the bit. Layers below may still move it out.

    Args:
        derivative_NU: :math:`f'(z)`, shape ``[..., N, U]``.
        tol: ``>= 0``. Above 0 for activations whose derivative never is exactly 0.

    Returns:
        Bool, shape ``[..., U]``; ``False`` throughout a member whose data is not finite.

    Raises:
        ValueError: If ``tol`` is negative or not finite, or the input has fewer than two axes or is empty.

    Source:
        Joudaki et al. (2025), arXiv 2510.00304, theorem 2.1: frozen units.

    Cost: one pass over ``N * U`` entries per member, no host synchronisation.

    Example:
        >>> import torch
        >>> derivative_NU = torch.tensor([[0.0, 0.0, 1.0], [0.0, 1.0, 1.0]])
        >>> frozen_mask(derivative_NU)
        tensor([ True, False, False])
        >>> assert (frozen_mask(derivative_NU) <= frozen_mask(derivative_NU[:1])).all()   # more samples, fewer units
    """
    if not (math.isfinite(tol) and tol >= 0):
        raise ValueError(f"tol must be a finite number >= 0, not {tol}")
    derivative = floating(derivative_NU, axes=2, what="derivative_NU")
    return (derivative.abs() <= tol).all(-2) & all_finite(derivative, axes=2).unsqueeze(-1)


def frozen_fraction(derivative_NU: Tensor, tol: float = 0.0) -> Tensor:
    """Fraction of the units that are frozen: the mean of :func:`frozen_mask`.

    Args:
        derivative_NU: The derivatives, shape ``[..., N, U]``.
        tol: ``>= 0``.

    Returns:
        Fraction in ``[0, 1]``, shape ``[...]``, NaN where a member's data is not finite.

    Raises:
        ValueError: As :func:`frozen_mask`.

    Source:
        As :func:`frozen_mask`.

    Cost: one pass over ``N * U`` entries per member, no host synchronisation.

    Example:
        >>> import torch
        >>> frozen_fraction(torch.tensor([[0.0, 0.0, 1.0, 0.5], [0.0, 1.0, 1.0, 0.0]]))
        tensor(0.2500)
    """
    derivative = floating(derivative_NU, axes=2, what="derivative_NU")
    mask = frozen_mask(derivative, tol)
    return nan_where_broken(mask.to(derivative.dtype).mean(-1), all_finite(derivative, axes=2))
