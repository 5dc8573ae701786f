"""Whether a network can still learn as fresh ones do: the aged network and fresh twins learn the same new task."""

from pliant.probe.agreement import Agreement, agreement
from pliant.probe.live import LiveTwin, Race, live_twin
from pliant.probe.objective import Objective
from pliant.probe.rescale import Rescaled, rescaled
from pliant.probe.result import ProbeResult, StepsToThreshold
from pliant.probe.run import probe
from pliant.probe.tasks import Data, HeldOutClasses, PermutedInputs, RandomLabels, RandomTargets, RandomTokens, Task
from pliant.trainability import Trainability, tau_trainability

__all__ = [
    "Agreement",
    "Data",
    "HeldOutClasses",
    "LiveTwin",
    "Objective",
    "PermutedInputs",
    "ProbeResult",
    "Race",
    "RandomLabels",
    "RandomTargets",
    "RandomTokens",
    "Rescaled",
    "StepsToThreshold",
    "Task",
    "Trainability",
    "agreement",
    "live_twin",
    "probe",
    "rescaled",
    "tau_trainability",
]
