"""Methods that keep a network plastic, one file each. The names exported here are the command line's."""

from pliant.interventions.continual_backprop import ContinualBackprop
from pliant.interventions.fresh_start import FreshStart
from pliant.interventions.l2 import L2
from pliant.interventions.normalize_and_project import NormalizeAndProject
from pliant.interventions.redo import ReDo
from pliant.interventions.shrink_and_perturb import ShrinkAndPerturb

__all__ = ["L2", "ContinualBackprop", "FreshStart", "NormalizeAndProject", "ReDo", "ShrinkAndPerturb"]
