"""What was edited, when and why: a bounded log that never slows the training step down."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Event", "EventLog"]


@dataclass(frozen=True)
class Event:
    """One edit of one unit group.

    Attributes:
        step: Optimizer steps done when it happened.
        group: The unit group.
        action: ``"reset"`` or ``"scale"``.
        units: Indices of the units, in order.
        members: For a stack of members, the member of each unit; else empty.
        intervention: Name of the method that asked for it.
        reason: Why, in the method's words.
    """

    step: int
    group: str
    action: str
    units: tuple[int, ...]
    members: tuple[int, ...]
    intervention: str
    reason: str


class EventLog:
    """The latest edits, and how many units of each group were reset since the beginning.

    Iterating gives :class:`Event` objects, oldest first. On an accelerator the entries stay on the device until they
    are read.

    Args:
        maxlen: Number of events that are kept.
    """

    def __init__(self, maxlen: int = 10_000) -> None:
        self._entries: deque[tuple[int, str, str, Tensor, Tensor | None, Tensor | None, str, str]] = deque(
            maxlen=maxlen
        )
        self._totals: dict[str, Tensor] = {}
        self.step = 0
        self.intervention = ""
        self.num_members: int | None = None

    def add(
        self, group: str, action: str, units: Tensor, members: Tensor | None, active: Tensor | None, reason: str
    ) -> None:
        """Note an edit (called by the editor)."""
        self._entries.append((self.step, group, action, units, members, active, self.intervention, reason))
        if action != "reset":
            return
        size = self.num_members or 1
        total = self._totals.setdefault(group, torch.zeros(size, dtype=torch.long, device=units.device))
        weight = torch.ones_like(units) if active is None else active.long()
        total.index_add_(0, torch.zeros_like(units) if members is None else members, weight)

    def num_resets(self) -> dict[str, Tensor]:
        """Units reset so far per group, int64 ``[]`` (``[S]`` for a stack of members)."""
        return {name: total if self.num_members else total[0] for name, total in self._totals.items()}

    def state_dict(self) -> dict[str, Tensor]:
        """The totals; the events themselves are a log, not a state."""
        return {name: total.clone() for name, total in self._totals.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore the totals."""
        self._totals = {name: total.clone() for name, total in state.items()}

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Event]:
        for step, group, action, units, members, active, intervention, reason in self._entries:
            keep = slice(None) if active is None else active
            chosen = tuple(units[keep].tolist())
            if chosen:
                owners = () if members is None else tuple(members[keep].tolist())
                yield Event(step, group, action, chosen, owners, intervention, reason)

    def __repr__(self) -> str:
        totals = {name: int(total.sum()) for name, total in self._totals.items()}
        return f"EventLog({len(self)} events; units reset so far: {totals or 'none'})"
