"""L2 regularisation as decoupled weight decay."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import final

from pliant.errors import NoEffect
from pliant.interventions.base import Context, Intervention, require

__all__ = ["L2"]


@final
@dataclass(frozen=True)
class L2(Intervention):
    r"""Shrink the parameters after every step: :math:`\theta \leftarrow (1 - \alpha\lambda)\,\theta`.

    :math:`\alpha` is each parameter's current step size. For SGD this is the gradient of
    :math:`\tfrac\lambda2\|\theta\|^2` up to a term of order :math:`\alpha^2\lambda`; for Adam it is the decoupled form
    of AdamW. It works with closures, and the loss is untouched.

    Args:
        strength: :math:`\lambda >= 0`; ``0`` is a no-op.
        where: Which parameters, a pattern of names (biases and norm parameters included by default, as in
            the ``weight_decay`` of ``torch.optim``).

    State:
        None.

    Edits:
        The parameters; moments are kept.

    Source:
        Classic; decoupled: Loshchilov & Hutter (2019), arXiv:1711.05101.

    Raises:
        IllegalConfiguration: At ``attach``, for a negative strength.
        NoEffect: At ``attach``, if no parameter matches.

    Example:
        >>> L2(strength=1e-3).null()
        L2(strength=0.0, where='*')
    """

    strength: float = 1e-4
    where: str = "*"

    def null(self) -> L2:
        """Strength zero."""
        return replace(self, strength=0.0)

    def prepare(self, ctx: Context) -> None:
        """Check the strength and that there is something to shrink."""
        require(self.strength >= 0, self, "strength", ">= 0")
        if not ctx.parameters(self.where):
            raise NoEffect(f"L2: no parameter matches where={self.where!r}.")

    def after_step(self, ctx: Context) -> None:
        """One multiplication for all parameters."""
        if self.strength == 0:
            return
        names = list(ctx.parameters(self.where))
        if not names:  # this optimizer trains none of them
            return
        ctx.edit.shrink(names, [1 - rate * self.strength for rate in ctx.learning_rates(names)])
