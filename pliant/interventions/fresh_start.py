"""A freshly initialised network for every task: the reference that methods are compared with."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, final

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
        Every parameter and buffer with a known initial distribution (all parameters must have one), all moments and
        step counters.

    Source:
        The "retrained network" of Dohare et al. (2024), with the same optimizer.

    Raises:
        IllegalConfiguration: At ``attach``, where a parameter's initial distribution is unknown.

    Example:
        >>> FreshStart().null()
        FreshStart(every=None)
    """

    every: int | None = 1

    redraws: ClassVar[bool] = True

    @property
    def needs_boundary(self) -> bool:
        """Always."""
        return True

    def null(self) -> FreshStart:
        """Never due."""
        return replace(self, every=None)

    def prepare(self, ctx: Context) -> None:
        """Check the period and that every parameter can be drawn."""
        require(self.every is None or self.every >= 1, self, "every", "None or >= 1")
        for name in ctx.parameters():
            ctx.edit.init_of(name)

    def at_task_boundary(self, ctx: Context, data: Any = None) -> None:
        """Draw everything."""
        if self.every is None or ctx.task % self.every:
            return
        for name in ctx.edit.tensors:
            if ctx.edit.inits.get(name) is not None and (name in ctx.parameters() or name not in ctx.edit.owners):
                ctx.edit.assign(name, ctx.edit.draw(name), moments="zero")
