"""Methods that wait for a call of the user say so when it does not come, instead of silently doing nothing."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence

from pliant.errors import NoEffectWarning
from pliant.interventions.base import Intervention

__all__ = ["Reminders"]

PENALTY_AFTER = 100
BOUNDARY_AFTER = 10_000


class Reminders:
    """Warns once if ``handle.penalty()``, ``batch()`` or ``task_boundary()`` was not called when it should have been.

    The term for the loss is needed at every step, and so is the batch: :data:`PENALTY_AFTER` steps without are a
    mistake. Tasks may be long, so a boundary is missed after :data:`BOUNDARY_AFTER` steps only, or when the handle is
    detached.

    Args:
        methods: The interventions.

    Attributes:
        next: The step at which :meth:`check` has something to look at.
    """

    def __init__(self, methods: Sequence[Intervention]) -> None:
        self._waiting = {
            "penalty": [type(method).__name__ for method in methods if method.needs_penalty],
            "batch": [type(method).__name__ for method in methods if method.needs_batch],
            "task_boundary": [type(method).__name__ for method in methods if method.needs_boundary],
        }
        self._plan()

    def _plan(self) -> None:
        steps = {"penalty": PENALTY_AFTER, "batch": PENALTY_AFTER, "task_boundary": BOUNDARY_AFTER}
        self.next = min((steps[call] for call, names in self._waiting.items() if names), default=sys.maxsize)

    def waiting_for(self, call: str) -> tuple[str, ...]:
        """Names of the methods that wait for a call which has not come: ``penalty``, ``batch`` or ``task_boundary``."""
        return tuple(self._waiting[call])

    def called(self, call: str) -> None:
        """The user has made the call: nobody waits for it any more."""
        if self._waiting[call]:
            self._waiting[call] = []
            self._plan()

    def check(self, step: int) -> None:
        """Warn of what is still waited for after so many steps; each is said once."""
        if step >= PENALTY_AFTER and (names := self._waiting["penalty"]):
            self.called("penalty")
            self._warn(
                f"{', '.join(names)} adds a term to the loss, and handle.penalty() was not called in {step} steps: "
                "nothing is regularised. Add it to the loss before backward(), as in "
                "(loss + handle.penalty()).backward()."
            )
        if step >= PENALTY_AFTER and (names := self._waiting["batch"]):
            self.called("batch")
            self._warn(
                f"{', '.join(names)} acts on batches, and handle.batch() was not called in {step} steps: nothing was "
                "done. Pass each batch through it before the forward pass, as in x, y = handle.batch((x, y))."
            )
        if step >= BOUNDARY_AFTER:
            self.check_boundary(step)

    def check_boundary(self, step: int) -> None:
        """Warn if methods wait for a task boundary and none was signalled in all these steps."""
        if step and (names := self._waiting["task_boundary"]):
            self.called("task_boundary")
            self._warn(
                f"{', '.join(names)} acts at task boundaries, and handle.task_boundary() was not called in {step} "
                "steps: nothing was done. Call it where your data changes, or choose a method that acts by steps."
            )

    def _warn(self, message: str) -> None:
        warnings.warn(message, NoEffectWarning, stacklevel=2)
