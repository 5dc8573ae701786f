"""Regenerative regularisation, L2 Init (Kumar et al., 2023): pull the parameters to where they began."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from pliant.interventions.base import Context, PerParameter, require
from pliant.interventions.weight_penalty import APPLY_DEFAULT, WeightPenalty, wide
from pliant.search import Domain, Range
from pliant.sharded import whole

__all__ = ["L2Init"]


@final
@dataclass(frozen=True)
class L2Init(WeightPenalty):
    r"""Pull every parameter to its initial value :math:`\theta_0`, its value at ``attach``.

    .. math:: R(\theta) = \tfrac12\|\theta - \theta_0\|_2^2 \quad\text{or}\quad R(\theta) = \|\theta - \theta_0\|_1

    Decoupled, the first is :math:`\theta \leftarrow \theta - \alpha\lambda(\theta - \theta_0)`, with each parameter's
    current step size :math:`\alpha`; the second moves each entry by :math:`\alpha\lambda` towards its initial value
    and not beyond it (the proximal step).

    Args:
        strength: :math:`\lambda >= 0`; ``0`` is a no-op.
        where: Which parameters, a pattern of names.
        apply: ``"decoupled"`` after the step, ``"gradient"`` before it, or ``"loss"``, through ``handle.penalty()``.
        norm: ``"l2"`` (L2 Init) or ``"l1"`` (L1 Init).

    State:
        ``initial``: the parameters at ``attach``.

    Edits:
        The parameters, or their gradients; moments are kept.

    Deviations from the published code:
        That adds the term to the loss, which is ``apply="loss"``, or ``"gradient"`` with the same result. It leaves
        layer norm's parameters out, which ``where`` has to do here. Initial values are those at ``attach``, also after
        a resumed run. The variants with fresh initial values at each step and with a Huber distance are left out.

    Source:
        Kumar et al., Maintaining Plasticity in Continual Learning via Regenerative Regularization (2023),
        arXiv:2308.11958.

    Raises:
        IllegalConfiguration: At ``attach``, for a hyper-parameter out of range.
        NoEffect: At ``attach``, if no parameter matches.

    Example:
        >>> L2Init(strength=1e-3).null()
        L2Init(strength=0.0, where='*', apply='decoupled', norm='l2')
    """

    strength: float = 1e-2
    norm: str = "l2"

    elementwise: ClassVar[bool] = True
    state: ClassVar[Mapping[str, PerParameter]] = {"initial": PerParameter("initial")}
    source: ClassVar[str] = "Kumar et al. 2023"
    search: ClassVar[Mapping[str, Domain]] = {"strength": Range(1e-6, 1e-1, log=True)}
    defaults: ClassVar[Mapping[str, str]] = {
        "strength": "largest value of the sweep in the authors' code (1e-2 to 1e-5), which has no default of its own",
        "where": "all parameters; the authors' code leaves those of layer norm out",
        "apply": APPLY_DEFAULT,
        "norm": "the paper's method; L1 is its ablation",
    }

    def prepare(self, ctx: Context) -> None:
        """Check the hyper-parameters."""
        require(self.norm in ("l2", "l1"), self, "norm", "'l2' or 'l1'")
        super().prepare(ctx)

    def value(self, ctx: Context, tensors: Mapping[str, Tensor]) -> Tensor:
        """The distance, summed over parameters."""
        initial = ctx.parameter_state("initial")
        away = [wide(tensor - whole(initial[name])) for name, tensor in tensors.items()]
        if self.norm == "l1":
            return torch.stack([item.abs().sum() for item in away]).sum()
        return torch.stack([item.square().sum() for item in away]).sum() / 2

    def gradient(self, ctx: Context, tensors: Mapping[str, Tensor]) -> list[Tensor]:
        """How far each entry is from where it began, or its sign."""
        away = self._away(ctx, tensors)
        return list(torch._foreach_sign(away)) if self.norm == "l1" else away

    def decouple(self, ctx: Context, values: Mapping[str, Tensor]) -> None:
        """Move towards the initial values."""
        names = list(values)
        moves = [rate * self.strength for rate in ctx.learning_rates(names)]
        if self.norm == "l2":
            initial = ctx.parameter_state("initial")
            ctx.edit.shrink(names, [1 - move for move in moves], towards=[initial[name] for name in names])
            return
        terms = [-item.clamp(-move, move) for item, move in zip(self._away(ctx, values), moves, strict=True)]
        ctx.edit.add(names, terms)

    def _away(self, ctx: Context, tensors: Mapping[str, Tensor]) -> list[Tensor]:
        initial = ctx.parameter_state("initial")
        return list(torch._foreach_sub(list(tensors.values()), [initial[name] for name in tensors]))
