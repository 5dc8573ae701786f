"""A freshly initialised network for every task: the reference that methods are compared with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, final

from pliant.errors import NoEffect
from pliant.interventions.base import Context, Intervention, require

__all__ = ["FreshStart"]


@final
@dataclass(frozen=True)
class FreshStart(Intervention):
    """At task boundaries, initialise the whole network anew and restart the optimizer's state.

    A reference rather than a remedy, and not always a ceiling: in a fixed budget a warm network may learn more.

    Args:
        every: Act at every so many task boundaries; ``None``: never (a no-op).

    State:
        None; the number of boundaries is the handle's.

    Edits:
        Every trained parameter, every buffer with a known initial value (running statistics), all moments and step
        counters.

    Deviations from the published code:
        See the method's page.

    Source:
        The network that is retrained from scratch in Dohare et al., Loss of plasticity in deep continual learning
        (Nature 2024), with the same optimizer.

    Raises:
        IllegalConfiguration: At ``attach``, where a parameter's initial distribution is unknown.

    Example:
        >>> FreshStart().null()
        FreshStart(every=None)
    """

    every: int | None = 1

    redraws: ClassVar[bool] = True
    source: ClassVar[str] = "Dohare et al. 2024"
    defaults: ClassVar[Mapping[str, str]] = {"every": "the retrained network of Dohare et al. 2024: each time"}

    @property
    def needs_boundary(self) -> bool:
        """Always, unless it never acts."""
        return self.every is not None

    def null(self) -> FreshStart:
        """Never due."""
        return replace(self, every=None)

    def prepare(self, ctx: Context) -> None:
        """Check the period and that every parameter can be drawn."""
        require(self.every is None or self.every >= 1, self, "every", "None or >= 1")
        for name in ctx.parameters():
            ctx.edit.init_of(name)
        if not ctx.parameters():
            raise NoEffect("FreshStart: this optimizer trains no parameter.")

    def at_task_boundary(self, ctx: Context, data: Any = None) -> None:
        """Draw everything."""
        if self.every is None or ctx.task % self.every:
            return
        mine = {**ctx.parameters(), **ctx.buffers()}
        for name in ctx.edit.tensors:  # in the model's order, as the network was drawn at first
            if name in mine and ctx.edit.inits.get(name) is not None:
                ctx.edit.assign(name, ctx.edit.draw(name), moments="zero", reason="fresh start")
