"""Shrink and perturb (Ash & Adams, 2020)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, final

from pliant.interventions.base import Context, Intervention, require

__all__ = ["ShrinkAndPerturb"]


@final
@dataclass(frozen=True)
class ShrinkAndPerturb(Intervention):
    r"""Pull every parameter towards the origin and add a little of a fresh network.

    .. math:: \theta \leftarrow \lambda\,\theta + \sigma\,\theta_{new}, \qquad \theta_{new} \sim \text{its initial
              distribution.}

    Parameters that start at a constant (the gains of norms at 1, many biases at 0) go to
    :math:`\lambda\theta + (1-\lambda)\,\text{constant}`.

    Args:
        shrink: :math:`\lambda` in [0, 1]; ``1`` keeps the weights.
        noise_scale: :math:`\sigma >= 0`, the share of a fresh initialisation that is added.
        every: Period in optimizer steps; ``None``: at task boundaries.
        where: Which parameters, a pattern of names.

    State:
        None.

    Edits:
        The parameters; optimizer moments are kept.

    Deviations from the published code:
        The Nature experiments' variant (weight decay plus Gaussian noise at every step) is
        ``ShrinkAndPerturb(shrink=1 - step_size * weight_decay, noise_scale=..., every=1)`` up to the distribution of
        the noise, which here is each tensor's initial one.

    Source:
        Ash & Adams, On Warm-Starting Neural Network Training (2020), arXiv:1910.08475.

    Raises:
        IllegalConfiguration: At ``attach``, for a hyper-parameter out of range, or where an initial distribution is
            unknown.

    Example:
        >>> ShrinkAndPerturb(0.8, 0.1).null()
        ShrinkAndPerturb(shrink=1.0, noise_scale=0.0, every=None, where='*')
    """

    shrink: float = 0.4
    noise_scale: float = 0.1
    every: int | None = None
    where: str = "*"

    redraws: ClassVar[bool] = True

    @property
    def needs_boundary(self) -> bool:
        """Whether it waits for task boundaries."""
        return self.every is None

    def null(self) -> ShrinkAndPerturb:
        """Keep the weights and add nothing."""
        return replace(self, shrink=1.0, noise_scale=0.0)

    def next_step(self, ctx: Context) -> int:
        """The end of the period."""
        return ctx.clock.next(self.every)

    def prepare(self, ctx: Context) -> None:
        """Check the hyper-parameters and that every initial distribution is known."""
        require(0 <= self.shrink <= 1, self, "shrink", "in [0, 1]")
        require(self.noise_scale >= 0, self, "noise_scale", ">= 0")
        require(self.every is None or self.every >= 1, self, "every", "None or >= 1")
        for name in ctx.parameters(self.where):
            ctx.edit.init_of(name)

    def after_step(self, ctx: Context) -> None:
        """When due by steps."""
        if ctx.clock.every(self.every):
            self._apply(ctx)

    def at_task_boundary(self, ctx: Context, data: Any = None) -> None:
        """When due by tasks."""
        if self.every is None:
            self._apply(ctx)

    def _apply(self, ctx: Context) -> None:
        if self.shrink == 1 and self.noise_scale == 0:
            return
        for name, parameter in ctx.parameters(self.where).items():
            init = ctx.edit.init_of(name)
            if init.kind == "constant" or self.noise_scale == 0:
                centre = init.scale if init.kind == "constant" else 0.0
                value = parameter.detach() * self.shrink + (1 - self.shrink) * centre
            else:
                noise = ctx.edit.draw(name).to(parameter.dtype)
                value = parameter.detach() * self.shrink + noise * self.noise_scale
            ctx.edit.assign(name, value, moments="keep")
