"""The commands, one file each; what they need is imported when they run."""

from __future__ import annotations

from pliant.commands.base import Command
from pliant.commands.demo import Demo
from pliant.commands.diagnose import Diagnose
from pliant.commands.listing import List
from pliant.commands.merge import Merge
from pliant.commands.report import Report
from pliant.commands.run import Run
from pliant.commands.show import Show
from pliant.commands.tune import Tune
from pliant.commands.units import Units

__all__ = ["COMMANDS", "Command"]

COMMANDS: dict[str, type[Command]] = {
    "demo": Demo,
    "run": Run,
    "tune": Tune,
    "merge": Merge,
    "list": List,
    "show": Show,
    "report": Report,
    "units": Units,
    "diagnose": Diagnose,
}
"""The commands by name, in the order in which help shows them."""
