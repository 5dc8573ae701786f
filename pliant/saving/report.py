"""What became of a saved state: an object that prints well."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

__all__ = ["Carried", "LoadReport", "Outcome"]

Outcome = Literal["kept", "renamed", "changed", "extended", "re-initialised", "new", "dropped"]

_ORDER: tuple[Outcome, ...] = ("kept", "renamed", "changed", "extended", "re-initialised", "new", "dropped")
_SHOWN = 12


@dataclass(frozen=True)
class Carried:
    """What became of one piece.

    Attributes:
        of: Whose it is: a method, ``"the model"``, ``"the optimizer"`` or ``"the monitor"``.
        name: The unit group, the tensor, or another piece of state, under its present name (a dropped one: under the
            name that it had).
        outcome: ``"kept"``; ``"renamed"`` (kept under another name); ``"changed"`` (a method that has other options
            now: its state is kept where it has the same form); ``"extended"`` (it has grown: the old entries are kept,
            the new ones begin); ``"re-initialised"``; ``"new"`` (the saved state has nothing of that name);
            ``"dropped"`` (there is nothing of that name any more).
        why: The reason, where it was not simply kept.
    """

    of: str
    name: str
    outcome: Outcome
    why: str = ""

    def __str__(self) -> str:
        return f"{self.of}: {self.name} {self.outcome}" + (f" ({self.why})" if self.why else "")


@dataclass(frozen=True)
class LoadReport:
    """What became of every piece of a saved state; ``print`` it.

    Attributes:
        lines: One for each piece.

    Example:
        >>> report = LoadReport((Carried("ReDo", "fc1", "kept"), Carried("ReDo", "fc2", "dropped", "no such group")))
        >>> print(report)
        1 kept, 1 dropped
          ReDo
            kept: fc1
            dropped: fc2 (no such group)
        >>> report.is_complete, report.names("kept")
        (False, ('fc1',))
    """

    lines: tuple[Carried, ...]

    def names(self, outcome: Outcome, of: str | None = None) -> tuple[str, ...]:
        """The pieces with an outcome.

        Args:
            outcome: As in :class:`Carried`.
            of: Only those of this method (or ``"the model"``, ...).
        """
        return tuple(line.name for line in self.lines if line.outcome == outcome and of in (None, line.of))

    @property
    def is_complete(self) -> bool:
        """Whether everything that was saved is in use, and nothing else."""
        return all(line.outcome in ("kept", "renamed") for line in self.lines)

    @property
    def differences(self) -> tuple[Carried, ...]:
        """What was not simply kept or renamed."""
        return tuple(line for line in self.lines if line.outcome not in ("kept", "renamed"))

    def __add__(self, other: LoadReport) -> LoadReport:
        return LoadReport((*self.lines, *other.lines))

    def __repr__(self) -> str:
        counts = ((outcome, len(self.names(outcome))) for outcome in _ORDER)
        return f"<LoadReport: {', '.join(f'{count} {outcome}' for outcome, count in counts if count) or 'nothing'}>"

    def __str__(self) -> str:
        text = [repr(self).removeprefix("<LoadReport: ").removesuffix(">")]
        for of in dict.fromkeys(line.of for line in self.lines):
            text.append(f"  {of}")
            for outcome in _ORDER:
                found = [line for line in self.lines if line.of == of and line.outcome == outcome]
                for why in dict.fromkeys(line.why for line in found):
                    names = _short(line.name for line in found if line.why == why)
                    text.append(f"    {outcome}: {names}" + (f" ({why})" if why else ""))
        return "\n".join(text)


def _short(names: Iterable[str]) -> str:
    all_of_them = list(names)
    more = f" and {len(all_of_them) - _SHOWN} more" if len(all_of_them) > _SHOWN else ""
    return ", ".join(all_of_them[:_SHOWN]) + more
