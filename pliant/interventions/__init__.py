"""Methods that keep a network plastic, one file each. The names exported here are the command line's."""

from pliant.interventions.c_chain import CChain
from pliant.interventions.continual_backprop import ContinualBackprop
from pliant.interventions.feature_norm import FeatureNorm
from pliant.interventions.fresh_start import FreshStart
from pliant.interventions.gradient_noise import GradientNoise
from pliant.interventions.l2 import L2
from pliant.interventions.l2_init import L2Init
from pliant.interventions.parseval import Parseval
from pliant.interventions.redo import ReDo
from pliant.interventions.shrink_and_perturb import ShrinkAndPerturb
from pliant.interventions.spectral_regularisation import SpectralRegularisation
from pliant.interventions.weight_clipping import WeightClipping
from pliant.interventions.weight_noise import WeightNoise

__all__ = [
    "L2",
    "CChain",
    "ContinualBackprop",
    "FeatureNorm",
    "FreshStart",
    "GradientNoise",
    "L2Init",
    "Parseval",
    "ReDo",
    "ShrinkAndPerturb",
    "SpectralRegularisation",
    "WeightClipping",
    "WeightNoise",
]
