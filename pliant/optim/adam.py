"""Adam with equal decay rates (Dohare et al., 2023): the step stays bounded when gradients suddenly grow."""

from __future__ import annotations

from typing import Any

import torch

from pliant.errors import IllegalConfiguration

__all__ = ["adam_equal_betas"]


def adam_equal_betas(
    params: Any,
    lr: float = 1e-3,
    beta: float = 0.99,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    foreach: bool | None = None,
) -> torch.optim.Adam:
    r"""Adam whose two running means have one decay rate, :math:`\beta_1 = \beta_2 = \beta`.

    With the usual :math:`\beta_1 < \beta_2`, a gradient that grows suddenly enters the numerator faster than the
    denominator, and the step can be :math:`(1-\beta_1)/\sqrt{1-\beta_2}` times the step size: 3.2 times by default.
    With equal rates that factor is :math:`\sqrt{1-\beta}`, below one.

    Args:
        params: Parameters, or groups of them.
        lr: Step size.
        beta: :math:`\beta` in [0, 1).
        eps: As in ``torch.optim.Adam``, and so the two below.
        weight_decay: Added to the gradient.
        foreach: Whether to use the multi-tensor form.

    Returns:
        The optimizer, a plain ``torch.optim.Adam``.

    Raises:
        IllegalConfiguration: If ``beta`` is out of range.

    Source:
        Dohare, Lan & Mahmood, Overcoming policy collapse in deep reinforcement learning (2023), and Dohare et al.
        (2024), Nature 632, whose agents use 0.99 for both.

    Example:
        >>> adam_equal_betas([torch.nn.Parameter(torch.ones(1))]).defaults["betas"]
        (0.99, 0.99)
    """
    if not 0 <= beta < 1:
        raise IllegalConfiguration(f"adam_equal_betas: beta={beta!r} is out of range; it must be in [0, 1).")
    return torch.optim.Adam(params, lr=lr, betas=(beta, beta), eps=eps, weight_decay=weight_decay, foreach=foreach)
