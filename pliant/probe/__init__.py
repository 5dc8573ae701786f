"""Whether a network can still learn as fresh ones do: the aged network and fresh twins learn the same new task."""

from pliant.probe.objective import Objective
from pliant.probe.result import ProbeResult, StepsToThreshold
from pliant.probe.run import probe
from pliant.probe.tasks import Data, HeldOutClasses, PermutedInputs, RandomLabels, RandomTargets, RandomTokens, Task
from pliant.trainability import Trainability, tau_trainability

__all__ = [
    "Data",
    "HeldOutClasses",
    "Objective",
    "PermutedInputs",
    "ProbeResult",
    "RandomLabels",
    "RandomTargets",
    "RandomTokens",
    "StepsToThreshold",
    "Task",
    "Trainability",
    "probe",
    "tau_trainability",
]
