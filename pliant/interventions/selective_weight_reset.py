"""Selective weight reinitialisation (Hernandez-Garcia et al., 2025): renew the single weights of least use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, final

import torch
from torch import Tensor

from pliant.devices import can_read
from pliant.errors import IllegalConfiguration, NoEffect
from pliant.interventions.base import Context, Intervention, require
from pliant.search import Domain, Range

__all__ = ["SelectiveWeightReset"]


@final
@dataclass(frozen=True)
class SelectiveWeightReset(Intervention):
    r"""Every so many steps, give the least useful weights of each tensor new values.

    The utility of a weight is what the loss would change by without it, to first order, or its magnitude:

    .. math:: u_j = |w_j \, \partial L / \partial w_j| \quad\text{or}\quad u_j = |w_j|.

    Of each tensor by itself, those are renewed with :math:`u_j \le f \cdot \overline{u}` (``rule="threshold"``), or the
    share :math:`f` of smallest :math:`u_j` (``"proportional"``; a fraction of a weight is renewed with that
    probability).

    Args:
        factor: :math:`f`; ``>= 0`` of the mean utility, or the share in [0, 1] of the weights.
        rule: ``"threshold"`` or ``"proportional"``.
        utility: ``"gradient"`` or ``"magnitude"``.
        to: ``"resample"``: drawn from the tensor's initial distribution; ``"mean"``: that distribution's mean, which
            is zero for weights and one for the gains of norms (the rows of weight norm, which need a direction, are
            drawn all the same).
        every: Period in optimizer steps; ``None``: never (a no-op).
        where: Which parameters, a pattern of names (biases and norm parameters included by default, as published).

    State:
        None.

    Edits:
        Single entries of the parameters; their moments become those of new entries.

    Deviations from the published code:
        Moments of renewed weights are cleared (theirs are kept). A tensor whose utilities are all zero is left alone
        (theirs would be renewed wholly by the threshold). Tensors without a gradient at the step are left out. The
        running mean of utilities that their code offers, and their experiments do not use, is not offered.

    Source:
        Hernandez-Garcia, Dohare, Luo & Sutton, Reinitializing weights vs units for maintaining plasticity in neural
        networks (CoLLAs 2025), arXiv:2508.00212, and its code.

    Raises:
        IllegalConfiguration: At ``attach``, for a hyper-parameter out of range, or where an initial distribution is
            unknown; in training, if gradients are not finite, or are gone when they are needed.
        NoEffect: At ``attach``, if no parameter matches.

    Example:
        >>> SelectiveWeightReset(0.01, rule="proportional", utility="magnitude").null().every is None
        True
    """

    factor: float = 1e-5
    rule: Literal["threshold", "proportional"] = "threshold"
    utility: Literal["gradient", "magnitude"] = "gradient"
    to: Literal["resample", "mean"] = "resample"
    every: int | None = 2048
    where: str = "*"

    redraws: ClassVar[bool] = True
    source: ClassVar[str] = "Hernandez-Garcia et al. 2025"
    search: ClassVar[Mapping[str, Domain]] = {
        "factor": Range(1e-6, 0.1, log=True),
        "every": Range(0.1, 10, log=True, unit="task"),
    }
    defaults: ClassVar[Mapping[str, str]] = {
        "factor": "the authors' code, final runs of Permuted MNIST with three layers of 100 units",
        "rule": "as factor",
        "utility": "as factor",
        "to": "as factor",
        "every": "as factor",
        "where": "all parameters, as in the authors' code",
    }

    def null(self) -> SelectiveWeightReset:
        """Never due."""
        return replace(self, every=None)

    def next_step(self, ctx: Context) -> int:
        """The end of the period."""
        return ctx.clock.next(self.every)

    def prepare(self, ctx: Context) -> None:
        """Check the hyper-parameters, and that there are parameters whose initial distribution is known."""
        require(self.rule in ("threshold", "proportional"), self, "rule", "'threshold' or 'proportional'")
        require(self.utility in ("gradient", "magnitude"), self, "utility", "'gradient' or 'magnitude'")
        require(self.to in ("resample", "mean"), self, "to", "'resample' or 'mean'")
        if self.rule == "threshold":
            require(0 <= self.factor < float("inf"), self, "factor", "finite and >= 0")
        else:
            require(0 <= self.factor <= 1, self, "factor", "in [0, 1]")
        require(self.every is None or self.every >= 1, self, "every", "None or >= 1")
        names = list(ctx.parameters(self.where))
        if not names:
            raise NoEffect(f"SelectiveWeightReset: no parameter matches where={self.where!r}.")
        for name in names:
            ctx.edit.init_of(name)

    def after_step(self, ctx: Context) -> None:
        """Renew what is of least use, when due."""
        if not ctx.clock.every(self.every):
            return
        names = list(ctx.parameters(self.where))
        if self.utility == "gradient" and names:
            names = self._with_gradient(ctx, names)
        masks = {name: self._mask(ctx, name) for name in names}  # all are checked before any is edited
        for name, mask in masks.items():
            if mask is not None:
                zero = self.to == "mean" and ctx.edit.init_of(name).kind != "constant"
                zero = zero and not ctx.edit.is_direction(name)
                ctx.edit.reset_weights(name, mask, to="zero" if zero else "init", reason=f"low {self.utility} utility")

    def _with_gradient(self, ctx: Context, names: list[str]) -> list[str]:
        parameters = ctx.parameters(self.where)
        found = [name for name in names if parameters[name].grad is not None]
        if not found:
            raise IllegalConfiguration(
                f"SelectiveWeightReset reads the gradients of step {ctx.clock.step} right after it, but there are "
                "none. Clear them before the backward pass, not inside optimizer.step() or a closure after its "
                "backward pass; or use utility='magnitude'."
            )
        return found

    def _mask(self, ctx: Context, name: str) -> Tensor | None:
        """Which entries to renew; ``None`` where it is known that there are none."""
        weights = ctx.whole(name)
        utility = weights.to(torch.float64 if weights.dtype == torch.float64 else torch.float32)
        if self.utility == "gradient":
            gradient = ctx.gradient(name)
            assert gradient is not None
            utility = utility * gradient.to(utility.dtype)
        utility = utility.abs().reshape(1 if ctx.num_members is None else ctx.num_members, -1)
        finite = ctx.check_finite(utility, name, "weights or gradients").all(-1, keepdim=True)
        if self.rule == "threshold":
            mask = utility <= self.factor * utility.mean(-1, keepdim=True)
        else:
            count = utility.shape[-1] * self.factor
            more = ctx.edit.uniform(name).reshape(-1, 1) < count - int(count)
            if can_read(more) and int(count) == 0 and not bool(more.any()):
                return None
            order = utility.argsort(dim=-1, stable=True)
            rank = torch.arange(utility.shape[-1], device=utility.device)
            mask = torch.zeros_like(utility, dtype=torch.bool).scatter_(-1, order, rank < int(count) + more)
        return (mask & finite & (utility > 0).any(-1, keepdim=True)).reshape(weights.shape)
