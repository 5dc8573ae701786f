"""Shrink and perturb (Ash & Adams, 2020), at task boundaries, periodically, or softly at every step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, final

import torch

from pliant.errors import NoEffect
from pliant.interventions.base import Context, Intervention, require
from pliant.search import Domain, Range

__all__ = ["ShrinkAndPerturb"]


@final
@dataclass(frozen=True)
class ShrinkAndPerturb(Intervention):
    r"""Pull every parameter towards the origin and add a little of a fresh network.

    .. math:: \theta \leftarrow \lambda\,\theta + \sigma\,\epsilon, \qquad \epsilon \sim \text{its initial
              distribution, or } \mathcal{N}(0, 1).

    Parameters that start at a constant (the gains of norms at 1, many biases at 0) go to
    :math:`\lambda\theta + (1-\lambda)\,\text{constant}`.

    The soft form of Juliani & Ash is ``ShrinkAndPerturb(1 - 1e-6, 1e-6, every=1)``. That of Dohare et al. is
    ``[L2(weight_decay), ShrinkAndPerturb(1.0, 1e-5, every=1, noise="normal")]``.

    Args:
        shrink: :math:`\lambda` in [0, 1]; ``1`` keeps the weights.
        noise_scale: :math:`\sigma >= 0`: the share of a fresh initialisation that is added, or the standard deviation
            of normal noise.
        every: Period in optimizer steps; ``None``: at task boundaries.
        where: Which parameters, a pattern of names.
        noise: ``"init"``: :math:`\epsilon` is drawn from each tensor's own initial distribution, and those that start
            at a constant get none; ``"normal"``: from the standard normal distribution, for all of them.

    State:
        None.

    Edits:
        The parameters; optimizer moments are kept.

    Deviations from the published code:
        Gains of norms shrink towards 1, where the authors' code shrinks them, too, towards 0.

    Source:
        Ash & Adams, On Warm-Starting Neural Network Training (2020), arXiv:1910.08475; soft: Juliani & Ash, A Study of
        Plasticity Loss in On-Policy Deep Reinforcement Learning (2024), arXiv:2405.19153; with normal noise: Dohare et
        al., Loss of plasticity in deep continual learning (Nature 2024).

    Raises:
        IllegalConfiguration: At ``attach``, for a hyper-parameter out of range, or where an initial distribution is
            needed and unknown.
        NoEffect: At ``attach``, if no parameter matches.

    Example:
        >>> ShrinkAndPerturb(0.8, 0.1).null()
        ShrinkAndPerturb(shrink=1.0, noise_scale=0.0, every=None, where='*', noise='init')
    """

    shrink: float = 0.4
    noise_scale: float = 0.1
    every: int | None = None
    where: str = "*"
    noise: Literal["init", "normal"] = "init"

    redraws: ClassVar[bool] = True
    source: ClassVar[str] = "Ash & Adams 2020"
    search: ClassVar[Mapping[str, Domain]] = {"shrink": Range(0.1, 1.0), "noise_scale": Range(1e-3, 1.0, log=True)}
    defaults: ClassVar[Mapping[str, str]] = {
        "shrink": "the authors' code, run.py --shrink",
        "noise_scale": "the authors' code, run.py --perturb",
        "every": "before each new batch of data, as in the paper",
        "where": "all parameters, as in the authors' code",
        "noise": "a fresh network as the source of noise, as in the authors' code",
    }

    @property
    def needs_boundary(self) -> bool:
        """Whether it waits for task boundaries."""
        return self.every is None and self != self.null()

    def null(self) -> ShrinkAndPerturb:
        """Keep the weights and add nothing."""
        return replace(self, shrink=1.0, noise_scale=0.0)

    def next_step(self, ctx: Context) -> int:
        """The end of the period."""
        return ctx.clock.next(self.every)

    def prepare(self, ctx: Context) -> None:
        """Check the hyper-parameters and that every initial distribution that is needed is known."""
        require(0 <= self.shrink <= 1, self, "shrink", "in [0, 1]")
        require(self.noise_scale >= 0, self, "noise_scale", ">= 0")
        require(self.every is None or self.every >= 1, self, "every", "None or >= 1")
        require(self.noise in ("init", "normal"), self, "noise", "'init' or 'normal'")
        names = ctx.parameters(self.where)
        if not names:
            raise NoEffect(f"ShrinkAndPerturb: no parameter matches where={self.where!r}.")
        if self.noise == "init":
            for name in names:
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
        parameters = ctx.parameters(self.where)
        names = list(parameters)
        if self.shrink != 1:
            centres = {name: _centre(ctx, name) for name in names}
            at_origin = [name for name in names if centres[name] == 0]
            elsewhere = [name for name in names if centres[name] != 0]
            towards = [torch.full_like(parameters[name], centres[name]) for name in elsewhere]
            ctx.edit.shrink(at_origin, [self.shrink] * len(at_origin))
            ctx.edit.shrink(elsewhere, [self.shrink] * len(elsewhere), towards=towards)
        ctx.edit.add_noise(names, self.noise_scale, noise=self.noise)


def _centre(ctx: Context, name: str) -> float:
    """Where a parameter shrinks to: the constant that it starts at, or the origin."""
    init = ctx.edit.inits.get(name)
    return init.scale if init is not None and init.kind == "constant" else 0.0
