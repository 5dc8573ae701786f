"""What an intervention is: a frozen specification, the state it declares, and up to five event methods."""

from __future__ import annotations

import fnmatch
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from pliant.edit import Editor
from pliant.errors import IllegalConfiguration, NoEffect
from pliant.stats import GroupStats
from pliant.units.graph import UnitGraph
from pliant.units.group import UnitGroup

__all__ = ["Clock", "Context", "Intervention", "PerUnit", "require"]


@dataclass(frozen=True)
class PerUnit:
    """A state tensor with one entry per unit: ``[U]``, or ``[S, U]`` for a stack of members.

    Attributes:
        fill: Initial value.
        dtype: ``"float32"``, or ``"int64"`` for counters (which must not saturate).
        per_group: One entry per group (and member) instead of one per unit.
    """

    fill: float = 0.0
    dtype: str = "float32"
    per_group: bool = False


class Clock:
    """Counts the real steps of one optimizer: skipped steps of mixed precision do not count.

    Attributes:
        step: Steps that the host knows of.
        real: The exact count on the device, int64 ``[]``, once a fused optimizer has been able to skip a step without
            the host knowing; ``None`` before.
    """

    def __init__(self) -> None:
        self.step = 0
        self.real: Tensor | None = None

    def advance(self, live: Tensor | None = None) -> None:
        """One more step, of which ``live`` says (1 or 0, on the device) whether it changed anything."""
        if live is not None and self.real is None:
            self.real = torch.full((), self.step, dtype=torch.int64, device=live.device)
        self.step += 1
        if self.real is not None:
            self.real.add_(1 if live is None else live.to(torch.int64))

    def now(self) -> int | Tensor:
        """Real steps so far, a copy."""
        return self.step if self.real is None else self.real.clone()

    def every(self, period: int | None) -> bool:
        """Whether this step closes a period; never if the period is ``None``."""
        return period is not None and self.step > 0 and self.step % period == 0

    def next(self, period: int | None) -> int:
        """The first step after this one that closes a period; out of reach if the period is ``None``."""
        return sys.maxsize if period is None else (self.step // period + 1) * period


class Context:
    """What an intervention sees of the run: read anything, change only through ``edit``.

    Attributes:
        clock: Steps of the optimizer that owns the groups.
        units: The unit graph.
        edit: The writer.
        live: ``None``, or a device scalar that is 0 where a mixed-precision step was skipped and 1 otherwise;
            changes of state must be masked by it.
        elapsed: Real steps since this intervention last acted on this optimizer, this one included: an int, or an
            int64 scalar on the device where only the device knows.
        num_members: S for a stack of members, else ``None``.
    """

    def __init__(
        self,
        *,
        units: UnitGraph,
        owned: frozenset[str],
        optimizer: Optimizer,
        parameters: Mapping[str, Tensor],
        edit: Editor,
        clock: Clock,
        state: dict[str, dict[str, Tensor]],
        stats: Callable[[UnitGroup], GroupStats],
        num_members: int | None,
    ) -> None:
        self.units, self.clock, self.edit, self.num_members = units, clock, edit, num_members
        self.live: Tensor | None = None
        self.elapsed: int | Tensor = 1
        self.task = 0
        self._owned, self._optimizer, self._parameters = owned, optimizer, parameters
        self._state, self._stats = state, stats
        self._selected: dict[str, tuple[UnitGroup, ...]] = {}

    def groups(self, where: str = "*") -> tuple[UnitGroup, ...]:
        """The editable groups that match a pattern and belong to this context's optimizer."""
        if where not in self._selected:
            self._selected[where] = tuple(group for group in self.units.select(where) if group.name in self._owned)
        return self._selected[where]

    def stats(self, group: UnitGroup) -> GroupStats:
        """Statistics of the group's activations over the last sampled step."""
        return self._stats(group)

    def is_seen(self, group: UnitGroup) -> bool:
        """Whether this step's training forward went through the group (a network may use one of its heads only)."""
        return self._stats(group).step == self.clock.step

    def state(self, group: UnitGroup) -> dict[str, Tensor]:
        """The state tensors that the intervention declared, for one group; changed in place."""
        return self._state[group.name]

    def parameters(self, where: str = "*") -> dict[str, Tensor]:
        """The optimizer's parameters by name (shell-style pattern)."""
        return {name: item for name, item in self._parameters.items() if fnmatch.fnmatchcase(name, where)}

    def learning_rates(self, names: Sequence[str]) -> list[float]:
        """The current step size of each parameter, from its optimizer's parameter group."""
        rates = {id(p): float(group["lr"]) for group in self._optimizer.param_groups for p in group["params"]}
        return [rates[id(self._parameters[name])] for name in names]

    def magnitude(self, group: UnitGroup) -> Tensor:
        r"""Sum of absolute outgoing weights per unit, :math:`\sum_k |w_{ki}|`: ``[U]`` or ``[S, U]``."""
        total: Tensor | None = None
        with torch.no_grad():
            for piece in group.role("outgoing"):
                sums = self.edit.writer.sum_abs(piece)
                total = sums if total is None else total + sums
        if total is None:
            raise NoEffect(f"unit group {group.name!r} has no outgoing weights.")
        return total

    def check_finite(self, values: Tensor, group: UnitGroup) -> Tensor:
        """A mask of finite entries; for a single model on a CPU, anything else stops the run.

        Raises:
            IllegalConfiguration: Naming the group and the step; nothing has been edited.
        """
        finite = values.isfinite()
        if values.device.type == "cpu" and self.num_members is None and not bool(finite.all()):
            raise IllegalConfiguration(
                f"the activations of {group.name!r} are not finite at step {self.clock.step}: training has diverged "
                "(a NaN or infinite loss). Nothing was reset. Lower the step size or clip the gradients, and resume "
                "from the last checkpoint."
            )
        return finite


@dataclass(frozen=True)
class Intervention(ABC):
    """Base of every method: hyper-parameters are the fields of a frozen dataclass, state lives in the handle.

    A subclass is final, implements :meth:`null` and at least one event, and declares:

    Attributes:
        needs: Statistics of activations it reads (see :data:`pliant.stats.STATISTICS`).
        state: State it keeps, by name.
        redraws: Whether it draws initial values, so that every initial distribution must be known.
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    state: ClassVar[Mapping[str, PerUnit]] = {}
    redraws: ClassVar[bool] = False

    @property
    def needs_boundary(self) -> bool:
        """Whether it acts at task boundaries, so that ``handle.task_boundary()`` must be called."""
        return False

    @abstractmethod
    def null(self) -> Intervention:
        """The same method with its strength at zero: a bitwise no-op."""

    def unit_pattern(self) -> str | None:
        """Which unit groups it edits, or ``None`` if it edits whole tensors."""
        return None

    def samples(self, step: int) -> bool:
        """Whether it needs statistics of the given step (1-based)."""
        return bool(self.needs)

    def next_step(self, ctx: Context) -> int:
        """The next step at which :meth:`after_step` has something to do: the very next one, unless overridden.

        It must depend on ``ctx.clock.step`` and the hyper-parameters alone, so that a resumed run keeps the schedule,
        and it must not jump over a step for which :meth:`samples` is true.
        """
        return ctx.clock.step + 1

    # The events do nothing unless a method overrides them.
    def prepare(self, ctx: Context) -> None:  # noqa: B027
        """Called once by ``attach``; refuse here what cannot work."""

    def before_step(self, ctx: Context) -> None:  # noqa: B027
        """Before the optimizer's step, with gradients in place; refused under a closure."""

    def after_step(self, ctx: Context) -> None:  # noqa: B027
        """After a real optimizer step."""

    def at_task_boundary(self, ctx: Context, data: Any = None) -> None:  # noqa: B027
        """When the user signals that the data has changed."""

    def penalty(self, ctx: Context) -> Tensor | None:
        """A term for the loss, with graph, added by the user through ``handle.penalty()``."""
        return None


def require(condition: bool, method: Intervention, name: str, valid: str) -> None:
    """Refuse a hyper-parameter out of range.

    Raises:
        IllegalConfiguration: Naming method, parameter, value and the valid range.
    """
    if not condition:
        value = getattr(method, name)
        raise IllegalConfiguration(f"{type(method).__name__}: {name}={value!r} is out of range; it must be {valid}.")
