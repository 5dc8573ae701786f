"""Names of then and names of now: modules that have been renamed, and wrappers that come and go."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from pliant.errors import IllegalConfiguration

__all__ = ["Renames", "plain", "shape_text"]

_WRAPPER = "_checkpoint_wrapped_module."


def plain(name: str) -> str:
    """A tensor's name without the wrapper of activation checkpointing, which may be there or not."""
    return name.replace(_WRAPPER, "")


def shape_text(shape: Sequence[int]) -> str:
    """``"100 x 16"``; of a scalar ``"a number"``."""
    return " x ".join(map(str, shape)) or "a number"


class Renames:
    """New names of modules that have been renamed since a state was saved.

    Args:
        given: Old module name to its new one: everything in it (tensors, unit groups) follows. The longest name that
            matches counts.

    Example:
        >>> names = Renames({"encoder": "body", "encoder.2": "neck"})
        >>> names.new("encoder.0.weight"), names.new("encoder.2:heads"), names.new("encoders.0")
        ('body.0.weight', 'neck:heads', 'encoders.0')
    """

    def __init__(self, given: Mapping[str, str] | None) -> None:
        self._given = dict(given or {})

    def new(self, name: str) -> str:
        """The present name of what was saved under a name."""
        found = [old for old in self._given if _is_in(name, old)]
        if not found:
            return name
        old = max(found, key=len)
        return self._given[old] + name[len(old) :]

    def in_text(self, text: str) -> str:
        """The same for the patterns in the text of a method, such as ``ReDo(where='encoder.*')``."""
        return re.sub(r"'([^']*)'", lambda found: f"'{self.new(found[1])}'", text)

    def check(self, saved: Iterable[str], mine: Iterable[str]) -> None:
        """Refuse what renames nothing, and what gives two things one name.

        Args:
            saved: Names of tensors and unit groups in the saved state.
            mine: Those of the model.

        Raises:
            IllegalConfiguration: Naming the entry.
        """
        before, now = list(dict.fromkeys(saved)), list(mine)
        for old, new in self._given.items():
            if not any(_is_in(name, old) for name in before):
                raise IllegalConfiguration(
                    f"renamed={{{old!r}: {new!r}}}: the saved state has nothing in a module {old!r}. Give the name "
                    "that it had, and the one that it has now."
                )
            if not any(_is_in(name, new) for name in now):
                raise IllegalConfiguration(
                    f"renamed={{{old!r}: {new!r}}}: the model has nothing in a module {new!r}. Give the name that it "
                    "had, and the one that it has now."
                )
        taken: dict[str, str] = {}
        for name in before:
            other = taken.setdefault(self.new(name), name)
            if other != name:
                raise IllegalConfiguration(
                    f"renamed={self._given!r} gives {other!r} and {name!r} the same name, {self.new(name)!r}."
                )


def _is_in(name: str, module: str) -> bool:
    return name == module or name.startswith((f"{module}.", f"{module}:"))
