"""Methods that keep a network plastic, one file each. The names exported here are the command line's."""

from pliant.interventions.continual_backprop import ContinualBackprop
from pliant.interventions.experience_replay import ExperienceReplay
from pliant.interventions.fresh_start import FreshStart
from pliant.interventions.l2 import L2
from pliant.interventions.redo import ReDo
from pliant.interventions.regrama import ReGraMa
from pliant.interventions.selective_weight_reset import SelectiveWeightReset
from pliant.interventions.self_normalized_reset import SelfNormalizedReset
from pliant.interventions.shrink_and_perturb import ShrinkAndPerturb

__all__ = [
    "L2",
    "ContinualBackprop",
    "ExperienceReplay",
    "FreshStart",
    "ReDo",
    "ReGraMa",
    "SelectiveWeightReset",
    "SelfNormalizedReset",
    "ShrinkAndPerturb",
]
