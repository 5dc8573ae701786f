"""Hare and tortoise: a slow average of the network, to which the fast one returns now and then (Lee et al., 2024)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, final

import torch
from torch import Tensor

from pliant.errors import NoEffect
from pliant.interventions.base import Context, Intervention, Snapshot, require
from pliant.interventions.fresh_start import FreshStart
from pliant.interventions.layer_reset import LayerReset
from pliant.interventions.state import StateKind
from pliant.search import Choice, Domain, Range
from pliant.sharded import here

__all__ = ["HareAndTortoise"]


@final
@dataclass(frozen=True)
class HareAndTortoise(Intervention):
    r"""After every step the slow network takes a small step towards the fast one, which now and then goes back to it.

    .. math:: \bar\theta \leftarrow \beta\,\bar\theta + (1-\beta)\,\theta, \qquad
              \theta \leftarrow \bar\theta \text{ every } k \text{ steps}

    The slow network, the tortoise, is the one to evaluate: ``handle.snapshot("tortoise")`` gives its tensors by name.

    Args:
        decay: :math:`\beta` in [0, 1).
        every: :math:`k`, the period in optimizer steps; ``None``: the fast network never goes back, and is trained as
            without the method (a no-op but for the average).

    State:
        The tortoise: all parameters and buffers, in the model's type.

    Edits:
        Every ``every`` steps, all trained parameters, and their modules' floating-point buffers; optimizer moments are
        kept.

    Deviations from the published code:
        See the method's page.

    Source:
        Lee et al., Slow and Steady Wins the Race: Maintaining Plasticity with Hare and Tortoise Networks (2024),
        arXiv:2406.02596.

    Raises:
        IllegalConfiguration: At ``attach``, for a hyper-parameter out of range.
        NoEffect: At ``attach``, if the optimizer trains nothing.

    Example:
        >>> HareAndTortoise().null()
        HareAndTortoise(decay=0.999, every=None)
    """

    decay: float = 0.999
    every: int | None = 200

    state: ClassVar[Mapping[str, StateKind]] = {"tortoise": Snapshot()}
    acts_in_quiet: ClassVar[bool] = True
    source: ClassVar[str] = "Lee et al. 2024"
    search: ClassVar[Mapping[str, Domain]] = {
        "decay": Choice((0.9, 0.99, 0.999, 0.9999)),
        "every": Range(0.1, 10, log=True, unit="task"),
    }
    defaults: ClassVar[Mapping[str, str]] = {
        "decay": "the authors' scripts, trainer.ema=0.999",
        "every": "the authors' scripts: 10 epochs, which are 200 steps on a tenth of CIFAR-10 (400 of Tiny-ImageNet)",
    }

    def null(self) -> HareAndTortoise:
        """The hare never goes back."""
        return replace(self, every=None)

    def conflicts_with(self, other: Intervention) -> str | None:
        """Whatever starts anew would be undone."""
        if self.every is not None and isinstance(other, (FreshStart, LayerReset)) and other != other.null():
            return "the tortoise still has what is reset, and brings it back"
        return None

    def prepare(self, ctx: Context) -> None:
        """Check the hyper-parameters, and that there is a network."""
        require(0 <= self.decay < 1, self, "decay", "in [0, 1)")
        require(self.every is None or self.every >= 1, self, "every", "None or >= 1")
        if not ctx.parameters():
            raise NoEffect("HareAndTortoise: this optimizer trains no parameter.")

    def after_step(self, ctx: Context) -> None:
        """The tortoise takes a step; the hare goes back when due."""
        tortoise, hare = ctx.snapshot("tortoise"), self._averaged(ctx)
        slow, fast = [here(tortoise[name]) for name in hare], [here(tensor.detach()) for tensor in hare.values()]
        if ctx.live is None:
            torch._foreach_lerp_(slow, fast, 1 - self.decay)
        else:
            for mine, other in zip(slow, fast, strict=True):
                mine.lerp_(other, ((1 - self.decay) * ctx.live).to(mine.dtype))
        if ctx.clock.every(self.every) and not ctx.is_quiet:
            for name in hare:
                ctx.edit.assign(name, tortoise[name], moments="keep", reason="back to the tortoise")

    def _averaged(self, ctx: Context) -> dict[str, Tensor]:
        """The trained parameters, and the buffers of their modules that are not counters."""
        buffers = ctx.buffers()
        return ctx.parameters() | {name: item for name, item in buffers.items() if item.is_floating_point()}
