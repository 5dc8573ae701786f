r"""Dormant and dead units: how many units of a group take no part in what the network computes."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pliant.metrics._inputs import all_finite, check_shape, floating, nan_where_broken, on_share_of_samples

__all__ = ["dead_fraction", "dead_mask", "dormancy_score", "dormant_fraction", "dormant_mask"]


def dormancy_score(mean_abs_activation: Tensor) -> Tensor:
    r"""How active each unit is, relative to the average unit of its group.

    .. math:: s_i = \frac{\mathbb{E}_x |h_i(x)|}{\tfrac1U \sum_{k=1}^{U} \mathbb{E}_x |h_k(x)|}

    The scores of a group average to 1, so a threshold on them means the same in every layer.

    Args:
        mean_abs_activation: :math:`\mathbb{E}_x|h_i(x)|`, shape ``[..., U]``, in the activations' own units,
            ``>= 0``. For convolutions the expectation also runs over positions; for tokens, over the tokens
            that are not padding.

    Returns:
        Dimensionless scores ``>= 0``, shape ``[..., U]``. All 0 if the whole group is silent: none of its
        units does anything. All NaN if the group holds a value that no mean of absolute values can be: NaN,
        an infinity, or a negative number.

    Raises:
        ValueError: If the input has no unit axis or is empty.

    Source:
        Sokar, Agarwal, Castro and Evci (2023), *The Dormant Neuron Phenomenon in Deep Reinforcement
        Learning*, arXiv 2302.12902, the score of their definition of a dormant neuron.
        Deviation: a silent group scores 0 here, where the formula is 0/0. Implementations that add a small
        constant to the denominator agree; those that do not give NaN.

    Cost: ``O(U)`` per member, no host synchronisation.

    Example:
        >>> dormancy_score(torch.tensor([0.0, 1.0, 1.0, 2.0]))
        tensor([0., 1., 1., 2.])
        >>> h = torch.rand(3, 64)                                # 3 members of 64 units
        >>> assert torch.allclose(dormancy_score(h).mean(-1), torch.ones(3))
        >>> assert torch.equal(dormancy_score(h), dormancy_score(8 * h))   # whatever the scale
    """
    mean_abs = floating(mean_abs_activation, axes=1, what="mean_abs_activation")
    valid = (torch.isfinite(mean_abs) & (mean_abs >= 0)).all(-1, keepdim=True)
    # Dividing by the largest first keeps the sum of very small or very large activations in range.
    largest = mean_abs.amax(-1, keepdim=True)
    silent = largest == 0
    relative = mean_abs / torch.where(silent, torch.ones_like(largest), largest)
    mean = relative.mean(-1, keepdim=True)
    score = relative / torch.where(silent, torch.ones_like(mean), mean)
    return score.masked_fill(~valid, float("nan"))


def dormant_mask(mean_abs_activation: Tensor, tau: float = 0.025) -> Tensor:
    r"""Which units are :math:`\tau`-dormant: :math:`s_i \le \tau`, with the score of :func:`dormancy_score`.

    Args:
        mean_abs_activation: :math:`\mathbb{E}_x|h_i(x)|`, shape ``[..., U]``, ``>= 0``.
        tau: Threshold on the score, dimensionless, ``>= 0``. 0 marks exactly the silent units.

    Returns:
        Bool, shape ``[..., U]``. ``False`` throughout a group whose data is broken: a mask cannot say NaN,
        and no unit should be edited because of it. Ask :func:`dormant_fraction` for a verdict, which is then
        NaN.

    Raises:
        ValueError: If ``tau`` is negative or not a finite number, or the input has no unit axis or is empty.

    Source:
        Sokar et al. (2023), arXiv 2302.12902, the definition of a dormant neuron; the field uses thresholds
        of 0.025 and 0.1, and a figure of dormant units means little without its threshold.

    Cost: ``O(U)`` per member, no host synchronisation.

    Example:
        >>> dormant_mask(torch.tensor([0.0, 0.02, 1.0, 3.0]), tau=0.1)
        tensor([ True,  True, False, False])
        >>> h = torch.rand(64)                                   # a higher threshold only adds units
        >>> assert (dormant_mask(h, tau=0.1) <= dormant_mask(h, tau=0.5)).all()
    """
    if not (math.isfinite(tau) and tau >= 0):
        raise ValueError(f"tau must be a finite number >= 0, not {tau}")
    return dormancy_score(mean_abs_activation) <= tau


def dormant_fraction(mean_abs_activation: Tensor, tau: float = 0.025) -> Tensor:
    r"""Fraction of :math:`\tau`-dormant units in one unit group.

    .. math:: \frac1U \, \bigl|\{\, i : s_i \le \tau \,\}\bigr|

    with the score :math:`s_i` of :func:`dormancy_score`.

    Args:
        mean_abs_activation: :math:`\mathbb{E}_x|h_i(x)|`, shape ``[..., U]``, ``>= 0``.
        tau: Threshold on the score, dimensionless, ``>= 0``. 0 counts exactly the silent units.

    Returns:
        Fraction in ``[0, 1]``, shape ``[...]``. 1 if the whole group is silent, NaN if its data is broken.

    Raises:
        ValueError: If ``tau`` is negative or not a finite number, or the input has no unit axis or is empty.

    Source:
        Sokar et al. (2023), arXiv 2302.12902, for one layer; for a network, average over its groups weighted
        by their sizes. Deviation: a silent group is 1, see :func:`dormancy_score`.

    Cost: ``O(U)`` per member, no host synchronisation.

    Example:
        >>> dormant_fraction(torch.tensor([0.0, 1.0, 1.0, 2.0]), tau=0.1)
        tensor(0.2500)
        >>> h = torch.rand(64)                                   # invariant to the scale of the layer
        >>> assert dormant_fraction(h) == dormant_fraction(8 * h)
        >>> assert dormant_fraction(torch.tensor([float("nan"), 1.0])).isnan()
    """
    mask = dormant_mask(mean_abs_activation, tau)
    mean_abs = floating(mean_abs_activation, axes=1, what="mean_abs_activation")
    valid = (torch.isfinite(mean_abs) & (mean_abs >= 0)).all(-1)
    return nan_where_broken(mask.to(mean_abs.dtype).mean(-1), valid)


def dead_mask(act_NU: Tensor, tol: float = 0.0, share: float = 1.0) -> Tensor:
    r"""Which units are dead on a batch: :math:`h_i(x) = 0` exactly, for every example :math:`x`.

    A dead ReLU unit passes no gradient to its incoming weights on these examples: no step on them revives it.

    Args:
        act_NU: Activations after the nonlinearity, shape ``[..., N, U]``: N examples (for convolutions, examples times
            positions), U units.
        tol: ``>= 0``. Counts :math:`|h_i(x)| \le` ``tol`` as zero; for other people's definitions.
        share: In ``[0, 1]``. A unit is dead that is zero on more than this share of the examples, or on all.

    Returns:
        Bool, shape ``[..., U]``. ``False`` throughout a member whose data is not finite, see :func:`dead_fraction` for
        a verdict.

    Raises:
        ValueError: If ``tol`` is negative or not finite, ``share`` is not in ``[0, 1]``, or the input has fewer than
            two axes or is empty: no unit is dead, or alive, on no example.

    Source:
        The published code of Dohare et al. (2024), *Loss of plasticity in deep continual learning*, Nature 632: units
        whose summed absolute activation over a sample of examples is exactly zero.

    Cost: one pass over ``N * U`` entries per member, no host synchronisation.

    Example:
        >>> dead_mask(torch.tensor([[0.0, 0.0, 2.0], [0.0, 1.0, 3.0]]))
        tensor([ True, False, False])
        >>> act_NU = torch.randn(32, 8).relu()                   # more examples can only revive units
        >>> assert (dead_mask(act_NU) <= dead_mask(act_NU[:4])).all()
    """
    check_shape(act_NU, axes=2, what="act_NU")
    if not (math.isfinite(tol) and tol >= 0):
        raise ValueError(f"tol must be a finite number >= 0, not {tol}")
    act_NU = act_NU.detach()
    silent = act_NU == 0 if tol == 0 else floating(act_NU, axes=2, what="act_NU").abs() <= tol
    return on_share_of_samples(silent, share) & all_finite(act_NU, axes=2).unsqueeze(-1)


def dead_fraction(act_NU: Tensor, tol: float = 0.0, share: float = 1.0) -> Tensor:
    """Fraction of the units that are dead on a batch: the mean of :func:`dead_mask`.

    Args:
        act_NU: Activations after the nonlinearity, shape ``[..., N, U]``.
        tol: ``>= 0``; what counts as zero.
        share: Of the examples, in ``[0, 1]``.

    Returns:
        Fraction in ``[0, 1]``, shape ``[...]``, NaN where a member's data is not finite. ``float64`` for ``float64``
        activations, ``float32`` otherwise.

    Raises:
        ValueError: As :func:`dead_mask`.

    Source:
        As :func:`dead_mask`.

    Cost: one pass over ``N * U`` entries per member, no host synchronisation.

    Example:
        >>> act_NU = torch.tensor([[0.0, 0.0, 2.0, 1.0], [0.0, 1.0, 3.0, 0.0]])
        >>> dead_fraction(act_NU)
        tensor(0.2500)
        >>> stack_SNU = torch.stack([act_NU, torch.zeros(2, 4)])             # two members at once
        >>> assert dead_fraction(stack_SNU).tolist() == [0.25, 1.0]
    """
    dtype = torch.float64 if isinstance(act_NU, Tensor) and act_NU.dtype == torch.float64 else torch.float32
    mask = dead_mask(act_NU, tol, share)
    return nan_where_broken(mask.to(dtype).mean(-1), all_finite(act_NU.detach(), axes=2))
