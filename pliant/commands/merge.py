"""``pliant merge``: several results folders become one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, final

import tyro

from pliant.commands.base import Command, option

__all__ = ["Merge"]


@final
@dataclass(frozen=True, kw_only=True)
class Merge(Command):
    """Bring the records of several results folders into one, for example seeds that were run on several machines.

    The folders stay as they are. Where two hold complete records of the same experiment and seed with different
    values, nothing is merged.
    """

    examples: ClassVar[tuple[str, ...]] = ("pliant merge results-a results-b --out results",)
    positional: ClassVar[tuple[str, ...]] = ("folders",)

    folders: Annotated[tyro.conf.Positional[tuple[Path, ...]], option("FOLDER")]
    """results folders"""
    out: Annotated[Path, tyro.conf.arg(metavar="FOLDER")] = Path("results")
    """the results folder that they are brought into; may hold records already"""

    def run(self) -> int:
        """Merge, and say what was there."""
        from rich.console import Console

        from pliant.records import merge

        merged = merge(self.folders, self.out)
        console = Console()
        say = [f"{merged.num_added} records added"]
        say += [f"{merged.num_replaced} failed ones replaced"] if merged.num_replaced else []
        say += [f"{merged.num_known} known already"] if merged.num_known else []
        console.print(f"{', '.join(say)}; all are in {self.out}", soft_wrap=True, highlight=False)
        if len(merged.versions) > 1:
            console.print(f"from {len(merged.versions)} versions:", highlight=False)
            for version in merged.versions:
                console.print(f"  {version}", soft_wrap=True, highlight=False)
        for folder in merged.unfinished:
            console.print(f"not finished, and left where it is: {folder}", soft_wrap=True, highlight=False)
        return 0
