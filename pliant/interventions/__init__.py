"""Methods that keep a network plastic, one file each. The names exported here are the command line's."""

from pliant.interventions.continual_backprop import ContinualBackprop
from pliant.interventions.fresh_start import FreshStart
from pliant.interventions.l2 import L2
from pliant.interventions.l2_init import L2Init
from pliant.interventions.parseval import Parseval
from pliant.interventions.redo import ReDo
from pliant.interventions.shrink_and_perturb import ShrinkAndPerturb
from pliant.interventions.spectral_regularisation import SpectralRegularisation

__all__ = [
    "L2",
    "ContinualBackprop",
    "FreshStart",
    "L2Init",
    "Parseval",
    "ReDo",
    "ShrinkAndPerturb",
    "SpectralRegularisation",
]
