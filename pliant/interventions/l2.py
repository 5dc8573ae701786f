"""L2 regularisation: decoupled weight decay, or a term in the gradient or the loss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from pliant.interventions.base import Context
from pliant.interventions.weight_penalty import APPLY_DEFAULT, WeightPenalty, wide
from pliant.search import Domain, Range

__all__ = ["L2"]


@final
@dataclass(frozen=True)
class L2(WeightPenalty):
    r"""Pull the parameters to the origin.

    .. math:: R(\theta) = \tfrac12\|\theta\|^2, \qquad \theta \leftarrow (1 - \alpha\lambda)\,\theta
              \text{ after every step (decoupled).}

    :math:`\alpha` is each parameter's current step size. For SGD this is the gradient of :math:`\lambda R` up to a
    term of order :math:`\alpha^2\lambda`; for Adam it is the decoupled form of AdamW.

    Args:
        strength: :math:`\lambda >= 0`; ``0`` is a no-op.
        where: Which parameters, a pattern of names (biases and norm parameters included by default, as in
            the ``weight_decay`` of ``torch.optim``).
        apply: ``"decoupled"`` after the step (works with closures, the loss is untouched), ``"gradient"`` before it
            (the ``weight_decay`` of ``torch.optim.Adam``), or ``"loss"``, through ``handle.penalty()``.

    State:
        None.

    Edits:
        The parameters, or their gradients; moments are kept.

    Deviations from the published code:
        None.

    Source:
        Classic; decoupled: Loshchilov & Hutter, Decoupled Weight Decay Regularization (2019), arXiv:1711.05101.

    Raises:
        IllegalConfiguration: At ``attach``, for a hyper-parameter out of range.
        NoEffect: At ``attach``, if no parameter matches.

    Example:
        >>> L2(strength=1e-3).null()
        L2(strength=0.0, where='*', apply='decoupled')
    """

    elementwise: ClassVar[bool] = True
    source: ClassVar[str] = "Loshchilov & Hutter 2019"
    search: ClassVar[Mapping[str, Domain]] = {"strength": Range(1e-6, 1e-1, log=True)}
    defaults: ClassVar[Mapping[str, str]] = {
        "strength": "choice of this library; published sweeps go from 1e-5 to 1e-2",
        "where": "all parameters, as in the weight_decay of torch.optim",
        "apply": APPLY_DEFAULT,
    }

    def value(self, ctx: Context, tensors: Mapping[str, Tensor]) -> Tensor:
        """Half the sum of squares."""
        return torch.stack([wide(tensor).square().sum() for tensor in tensors.values()]).sum() / 2

    def gradient(self, ctx: Context, tensors: Mapping[str, Tensor]) -> list[Tensor]:
        """The parameters themselves."""
        return list(tensors.values())

    def decouple(self, ctx: Context, values: Mapping[str, Tensor]) -> None:
        """One multiplication for all parameters."""
        names = list(values)
        ctx.edit.shrink(names, [1 - rate * self.strength for rate in ctx.learning_rates(names)])
