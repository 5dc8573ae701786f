"""Environments that change while an agent lives in them: schedules, wrappers, and small vectorised ones.

They need the extra ``rl``: ``pip install 'pliant[rl]'``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from pliant.errors import IllegalConfiguration

try:
    import gymnasium  # noqa: F401
except ImportError as error:
    raise IllegalConfiguration(
        f"the environments need gymnasium, which cannot be imported ({error}): pip install 'pliant[rl]'."
    ) from error

from pliant.bench.rl.environments.changing import Changing
from pliant.bench.rl.environments.parameters import PARAMETERS, ChangingParameters, Together
from pliant.bench.rl.environments.presets import ENVIRONMENTS, make
from pliant.bench.rl.environments.reach import ReachTask, ReachTasks, ShiftingReach
from pliant.bench.rl.environments.schedule import Clock, ShiftSchedule
from pliant.bench.rl.environments.sensors import PermutedSensors
from pliant.bench.rl.environments.state import environment_state, load_environment_state
from pliant.bench.rl.environments.tasks import SwitchingTasks
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

if TYPE_CHECKING:
    from pliant.bench.rl.environments.body import ChangingGain, ChangingMass
    from pliant.bench.rl.environments.forces import ChangingGravity, ChangingWind
    from pliant.bench.rl.environments.friction import ChangingFriction
    from pliant.bench.rl.environments.sb3_vector import SB3Vector, make_vector

__all__ = [
    "ENVIRONMENTS",
    "PARAMETERS",
    "Changing",
    "ChangingFriction",
    "ChangingGain",
    "ChangingGravity",
    "ChangingMass",
    "ChangingParameters",
    "ChangingVector",
    "ChangingWind",
    "Choice",
    "Clock",
    "Cycle",
    "Each",
    "Listed",
    "LogUniform",
    "Permutations",
    "PermutedSensors",
    "RandomWalk",
    "ReachTask",
    "ReachTasks",
    "SB3Vector",
    "ShiftSchedule",
    "ShiftingReach",
    "SwitchingTasks",
    "Together",
    "Uniform",
    "Values",
    "environment_state",
    "load_environment_state",
    "make",
    "make_vector",
]

# Classic control needs no MuJoCo, and no environment needs Stable-Baselines3: these are imported when they are used.
_LAZY = {
    "ChangingFriction": "friction",
    "ChangingGain": "body",
    "ChangingGravity": "forces",
    "ChangingMass": "body",
    "ChangingWind": "forces",
    "SB3Vector": "sb3_vector",
    "make_vector": "sb3_vector",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
