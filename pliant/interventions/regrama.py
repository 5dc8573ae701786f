"""ReGraMa (Liu et al., 2025): periodically reset the units whose weights receive hardly any gradient."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, final

from pliant import metrics
from pliant.errors import IllegalConfiguration
from pliant.interventions.base import Context, Intervention, require
from pliant.search import Domain, Range

__all__ = ["ReGraMa"]


@final
@dataclass(frozen=True)
class ReGraMa(Intervention):
    r"""Every so many steps, reset the units whose normalised gradient magnitude is at most :math:`\tau`.

    With :math:`g_i` the mean absolute gradient of unit :math:`i`'s incoming weights in that step,

    .. math:: G_i = \frac{g_i}{\tfrac1U \sum_k g_k} \le \tau.

    It reads the gradients that the optimizer has just used, so that it hears no activations and costs nothing in
    between. It sees units of any activation function, also those that are large and learn nothing.

    Args:
        tau: Threshold :math:`\tau \ge 0` on the score; ``0`` resets the units without any gradient.
        every: Period in optimizer steps; ``None``: never (a no-op).
        where: Which unit groups, a pattern of names.

    State:
        None.

    Edits:
        Incoming weights (initial distribution), their biases (zero), norm parameters of the unit (initial values),
        outgoing weights (zero), moments of all of these (zero).

    Deviations from the published code:
        The paper writes the score with the gradient with respect to the activation, the code takes that of the
        incoming weights. The code is followed: the gradient with respect to the output of a dead ReLU is not zero.
        A group in which no unit has a gradient is left alone, where the formula is 0 / 0. Norm parameters are reset
        with their unit, not by their own gradients. Biases become zero (theirs are drawn). Weights are drawn from
        each layer's own initial distribution. Adam's step counter, one per tensor in PyTorch, is kept.

    Source:
        Liu et al., Measure gradients, not activations! Enhancing neuronal activity in deep reinforcement learning
        (2025), arXiv:2505.24061; threshold 0.01 and 1000 steps as in its section 5.1.

    Raises:
        IllegalConfiguration: At ``attach``, for a hyper-parameter out of range; in training, if gradients are not
            finite, or are gone when it is due.

    Example:
        >>> ReGraMa(tau=0.1).null()
        ReGraMa(tau=0.1, every=None, where='*')
    """

    tau: float = 0.01
    every: int | None = 1000
    where: str = "*"

    redraws: ClassVar[bool] = True
    source: ClassVar[str] = "Liu et al. 2025"
    search: ClassVar[Mapping[str, Domain]] = {
        "tau": Range(1e-3, 0.5, log=True),
        "every": Range(0.1, 10, log=True, unit="task"),
    }
    defaults: ClassVar[Mapping[str, str]] = {
        "tau": "the paper, section 5.1",
        "every": "the paper, section 5.1",
        "where": "all hidden units, as in the paper's algorithm",
    }

    def null(self) -> ReGraMa:
        """Never due."""
        return replace(self, every=None)

    def unit_pattern(self) -> str:
        """The groups that it edits."""
        return self.where

    def next_step(self, ctx: Context) -> int:
        """The end of the period."""
        return ctx.clock.next(self.every)

    def prepare(self, ctx: Context) -> None:
        """Check the hyper-parameters."""
        require(0 <= self.tau < float("inf"), self, "tau", "finite and >= 0")
        require(self.every is None or self.every >= 1, self, "every", "None or >= 1")

    def after_step(self, ctx: Context) -> None:
        """Reset what receives no gradient, when due."""
        groups = ctx.groups(self.where)
        if not ctx.clock.every(self.every) or not groups:
            return
        found = [(group, ctx.gradient_magnitude(group)) for group in groups]
        if all(magnitude is None for _, magnitude in found):
            raise IllegalConfiguration(
                f"ReGraMa reads the gradients of step {ctx.clock.step} right after it, but there are none. Clear them "
                "before the backward pass, not inside optimizer.step() or a closure after its backward pass."
            )
        inactive_units = []
        for group, magnitude in found:  # all are checked before any is edited
            if magnitude is not None:  # a network may have used one of its heads only
                finite = ctx.check_finite(magnitude, group, "gradients")
                learns = (magnitude > 0).any(-1, keepdim=True)
                inactive_units.append((group, metrics.dormant_mask(magnitude, self.tau) & finite & learns))
        for group, inactive in inactive_units:
            ctx.edit.reset(group, inactive, reason=f"no gradient (score <= {self.tau})")
