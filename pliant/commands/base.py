"""What every command is: a frozen dataclass whose fields are its options."""

from __future__ import annotations

import inspect
import shutil
import textwrap
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import tyro

__all__ = ["Command", "option"]


def option(metavar: str | None = None) -> Any:
    """Annotate an option whose default goes without saying: help does not print it."""
    return tyro.conf.arg(metavar=metavar, help_behavior_hint="")


@dataclass(frozen=True, kw_only=True)
class Command(ABC):
    """One command; its docstring is its help, ``examples`` end it; ``positional`` fields have no option."""

    examples: ClassVar[tuple[str, ...]] = ()
    positional: ClassVar[tuple[str, ...]] = ()

    debug: Annotated[bool, option()] = False
    """show the traceback of an error"""

    @abstractmethod
    def run(self) -> int:
        """Do it and return the exit code.

        Raises:
            PliantError: for whatever the user can mend; becomes one line on stderr.
        """

    @classmethod
    def summary(cls) -> str:
        """The first line of the docstring."""
        return (inspect.getdoc(cls) or "").partition("\n")[0]

    @classmethod
    def describe(cls) -> str:
        """The docstring, as wide as the terminal, and the examples."""
        width = min(shutil.get_terminal_size().columns, 100)
        paragraphs = (inspect.getdoc(cls) or "").split("\n\n")
        text = "\n\n".join(textwrap.fill(" ".join(paragraph.split()), width) for paragraph in paragraphs)
        examples = "\n".join(f"  {example}" for example in cls.examples)
        return f"{text}\n\nexamples:\n{examples}"
