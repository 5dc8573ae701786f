"""Environments that change while an agent lives in them: schedules, wrappers, and small vectorised ones.

They need the extra ``rl``: ``pip install 'pliant[rl]'``.
"""

from __future__ import annotations

from pliant.errors import IllegalConfiguration

try:
    import gymnasium  # noqa: F401
except ImportError as error:
    raise IllegalConfiguration(
        f"the environments need gymnasium, which cannot be imported ({error}): pip install 'pliant[rl]'."
    ) from error

from pliant.bench.rl.environments.reach import ReachTask, ReachTasks, ShiftingReach
from pliant.bench.rl.environments.schedule import Clock, ShiftSchedule
from pliant.bench.rl.environments.values import (
    Choice,
    Cycle,
    Each,
    Listed,
    LogUniform,
    Permutations,
    RandomWalk,
    Uniform,
    Values,
)
from pliant.bench.rl.environments.vector import ChangingVector

__all__ = [
    "ChangingVector",
    "Choice",
    "Clock",
    "Cycle",
    "Each",
    "Listed",
    "LogUniform",
    "Permutations",
    "RandomWalk",
    "ReachTask",
    "ReachTasks",
    "ShiftSchedule",
    "ShiftingReach",
    "Uniform",
    "Values",
]
