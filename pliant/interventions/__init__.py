"""Methods that keep a network plastic, one file each. The names exported here are the command line's."""

from pliant.interventions.adaptive_normalization import AdaptiveNormalization
from pliant.interventions.continual_backprop import ContinualBackprop
from pliant.interventions.fresh_start import FreshStart
from pliant.interventions.insert_dropout import InsertDropout
from pliant.interventions.insert_normalization import InsertNormalization
from pliant.interventions.l2 import L2
from pliant.interventions.normalize_and_project import NormalizeAndProject
from pliant.interventions.redo import ReDo
from pliant.interventions.shrink_and_perturb import ShrinkAndPerturb

__all__ = [
    "L2",
    "AdaptiveNormalization",
    "ContinualBackprop",
    "FreshStart",
    "InsertDropout",
    "InsertNormalization",
    "NormalizeAndProject",
    "ReDo",
    "ShrinkAndPerturb",
]
