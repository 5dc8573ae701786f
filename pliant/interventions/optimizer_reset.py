"""Optimizer reset: forget the optimizer's moments, or its step counter, and keep the weights (Asadi et al., 2023)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, final

from torch.optim import SGD, Adadelta, Optimizer, RMSprop, Rprop

from pliant.errors import NoEffect
from pliant.interventions.base import Context, Intervention, require
from pliant.search import Choice, Domain

__all__ = ["OptimizerReset"]


@final
@dataclass(frozen=True)
class OptimizerReset(Intervention):
    r"""At task boundaries, or every so many steps, put the optimizer's state back to where it began; weights stay.

    .. math:: m \leftarrow 0, \quad v \leftarrow 0, \quad t \leftarrow 0 \qquad \text{(Adam)}

    ``OptimizerReset(part="step")`` with Adam is Adam-Rel: the moments stay, and the time of the bias correction starts
    again.

    Args:
        every: Period in optimizer steps; ``None``: at task boundaries.
        part: ``"all"``: moments and step counters; ``"moments"``: the moments only; ``"step"``: only the counters, and
            what is computed from them (NAdam's product of momentum coefficients, ASGD's step size); ``"none"``:
            nothing (a no-op).
        where: Whose state, a pattern of parameter names.

    State:
        None.

    Edits:
        The optimizer's state of the parameters: every entry as it was before the first step, which is zero for most
        (:mod:`pliant.optimizer_state` knows the others).

    Deviations from the published code:
        See the method's page.

    Source:
        Asadi et al., Resetting the Optimizer in Deep RL: An Empirical Study (2023), arXiv:2306.17833; step counter
        alone: Ellis et al., Adam on Local Time (2024), arXiv:2412.17113.

    Raises:
        IllegalConfiguration: At ``attach``, for an argument out of range.
        NoEffect: At ``attach``, if no parameter matches, or the optimizer keeps nothing that could be reset.
        NotYetSupported: When it first acts, if the optimizer keeps unknown state (``attach(..., moments=...)`` says
            what it is).

    Example:
        >>> OptimizerReset(every=2000).null()
        OptimizerReset(every=2000, part='none', where='*')
    """

    every: int | None = None
    part: Literal["all", "moments", "step", "none"] = "all"
    where: str = "*"

    source: ClassVar[str] = "Asadi et al. 2023"
    search: ClassVar[Mapping[str, Domain]] = {"part": Choice(("all", "moments"))}
    defaults: ClassVar[Mapping[str, str]] = {
        "every": "when the objective changes, as in the paper: there, at each update of the target network",
        "part": "the paper: all internal parameters of the optimizer (Adam's two moments and its step counter)",
        "where": "all parameters, as in the paper",
    }

    @property
    def needs_boundary(self) -> bool:
        """Whether it waits for task boundaries."""
        return self.every is None and self.part != "none"

    def null(self) -> OptimizerReset:
        """No part of the state."""
        return replace(self, part="none")

    def next_step(self, ctx: Context) -> int:
        """The end of the period."""
        return ctx.clock.next(self.every)

    def prepare(self, ctx: Context) -> None:
        """Check the arguments, and that there is a state to be reset."""
        require(self.every is None or self.every >= 1, self, "every", "None or >= 1")
        require(self.part in ("all", "moments", "step", "none"), self, "part", "'all', 'moments', 'step' or 'none'")
        if self.part == "none":
            return
        if not ctx.parameters(self.where):
            raise NoEffect(f"OptimizerReset: this optimizer trains no parameter that matches where={self.where!r}.")
        why = _without(ctx.optimizer, self.part)
        if why is not None:
            raise NoEffect(
                f"OptimizerReset: part={self.part!r} would do nothing: {type(ctx.optimizer).__name__} {why}."
            )

    def after_step(self, ctx: Context) -> None:
        """When due by steps."""
        if ctx.clock.every(self.every):
            self._restart(ctx)

    def at_task_boundary(self, ctx: Context, data: Any = None) -> None:
        """When due by tasks."""
        if self.every is None:
            self._restart(ctx)

    def _restart(self, ctx: Context) -> None:
        if self.part != "none":
            ctx.edit.restart(list(ctx.parameters(self.where)), part=self.part, reason="optimizer reset")


def _without(optimizer: Optimizer, part: str) -> str | None:
    """Why an optimizer has nothing that could be reset, if so."""
    if isinstance(optimizer, SGD) and not any(group["momentum"] for group in optimizer.param_groups):
        return "without momentum keeps no state"
    if part == "step" and isinstance(optimizer, (SGD, RMSprop, Adadelta, Rprop)):
        return "makes the same update at whatever step"
    return None
