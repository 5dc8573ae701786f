"""ReDo (Sokar et al., 2023): periodically recycle dormant units."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, final

from pliant import metrics
from pliant.interventions.base import Context, Intervention, require
from pliant.search import Domain, Range

__all__ = ["ReDo"]


@final
@dataclass(frozen=True)
class ReDo(Intervention):
    r"""Every so many steps, reset the units whose normalised activation is at most :math:`\tau`.

    .. math:: s_i = \frac{\mathbb{E}|h_i|}{\tfrac1U \sum_k \mathbb{E}|h_k|} \le \tau

    The expectation runs over the training samples of that one optimizer step, as in the authors' code.

    Args:
        tau: Threshold :math:`\tau` on the score, ``>= 0``; ``0`` resets exactly dead units.
        every: Period in optimizer steps; ``None``: never (a no-op).
        where: Which unit groups, a pattern of names.

    State:
        None.

    Edits:
        Incoming weights (initial distribution), their biases (zero), norm parameters of the unit (initial values),
        outgoing weights (zero), moments of all of these (zero).

    Deviations from the published code:
        Scores come from the batch of the step itself (theirs: from another batch, with the weights after the step).
        Weights are drawn from each layer's own initial distribution (theirs: Xavier for all). Norm parameters are
        restored, and the moments of biases cleared (their networks have no norms, and they keep these moments). Adam's
        step counter, one per tensor in PyTorch, is kept. The options of their code that its experiments leave alone
        are not offered: scaled or random outgoing weights, centred activations, a first and a last step.

    Source:
        Sokar et al., The Dormant Neuron Phenomenon in Deep Reinforcement Learning (2023), arXiv:2302.12902; threshold
        0.025 and 1000 steps as in its appendix. Code: the folder ``labs/redo`` of Dopamine.

    Raises:
        IllegalConfiguration: At ``attach``, for a hyper-parameter out of range; in training, if activations are not
            finite when it is due.

    Example:
        >>> ReDo(tau=0.1).null()
        ReDo(tau=0.1, every=None, where='*')
    """

    tau: float = 0.025
    every: int | None = 1000
    where: str = "*"

    needs: ClassVar[frozenset[str]] = frozenset({"mean_abs_activation"})
    redraws: ClassVar[bool] = True
    source: ClassVar[str] = "Sokar et al. 2023"
    search: ClassVar[Mapping[str, Domain]] = {
        "tau": Range(1e-3, 0.5, log=True),
        "every": Range(0.1, 10, log=True, unit="task"),
    }
    defaults: ClassVar[Mapping[str, str]] = {
        "tau": "the paper's appendix, for its default replay ratio (0.1 in its other experiments)",
        "every": "the paper's appendix (the class in its code has 200,000)",
        "where": "all hidden units, as in the paper",
    }

    def null(self) -> ReDo:
        """Never due."""
        return replace(self, every=None)

    def unit_pattern(self) -> str:
        """The groups that it edits."""
        return self.where

    def samples(self, step: int) -> bool:
        """Only the steps at which it acts."""
        return self.every is not None and step % self.every == 0

    def next_step(self, ctx: Context) -> int:
        """The end of the period."""
        return ctx.clock.next(self.every)

    def prepare(self, ctx: Context) -> None:
        """Check the hyper-parameters."""
        require(0 <= self.tau < float("inf"), self, "tau", "finite and >= 0")
        require(self.every is None or self.every >= 1, self, "every", "None or >= 1")

    def after_step(self, ctx: Context) -> None:
        """Reset what is dormant, when due."""
        if not ctx.clock.every(self.every):
            return
        dormant_units = []
        for group in ctx.groups(self.where):  # all are checked before any is edited
            if ctx.is_seen(group):
                mean_abs = ctx.stats(group).mean_abs_activation
                finite = ctx.check_finite(mean_abs, group)
                dormant_units.append((group, metrics.dormant_mask(mean_abs, self.tau) & finite))
        for group, dormant in dormant_units:
            ctx.edit.reset(group, dormant, reason=f"dormant (score <= {self.tau})")
