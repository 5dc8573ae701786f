"""Methods that keep a network plastic, one file each. The names exported here are the command line's."""

from pliant.interventions.adaptive_normalization import AdaptiveNormalization
from pliant.interventions.c_chain import CChain
from pliant.interventions.continual_backprop import ContinualBackprop
from pliant.interventions.experience_replay import ExperienceReplay
from pliant.interventions.feature_norm import FeatureNorm
from pliant.interventions.fire import FIRE
from pliant.interventions.fresh_start import FreshStart
from pliant.interventions.gradient_noise import GradientNoise
from pliant.interventions.hare_and_tortoise import HareAndTortoise
from pliant.interventions.insert_dropout import InsertDropout
from pliant.interventions.insert_normalization import InsertNormalization
from pliant.interventions.l2 import L2
from pliant.interventions.l2_effective_rank import L2EffectiveRank
from pliant.interventions.l2_init import L2Init
from pliant.interventions.layer_reset import LayerReset
from pliant.interventions.normalize_and_project import NormalizeAndProject
from pliant.interventions.optimizer_reset import OptimizerReset
from pliant.interventions.parseval import Parseval
from pliant.interventions.plasticity_injection import PlasticityInjection
from pliant.interventions.redo import ReDo
from pliant.interventions.regrama import ReGraMa
from pliant.interventions.selective_weight_reset import SelectiveWeightReset
from pliant.interventions.self_normalized_reset import SelfNormalizedReset
from pliant.interventions.shrink_and_perturb import ShrinkAndPerturb
from pliant.interventions.spectral_regularisation import SpectralRegularisation
from pliant.interventions.weight_clipping import WeightClipping
from pliant.interventions.weight_noise import WeightNoise

__all__ = [
    "FIRE",
    "L2",
    "AdaptiveNormalization",
    "CChain",
    "ContinualBackprop",
    "ExperienceReplay",
    "FeatureNorm",
    "FreshStart",
    "GradientNoise",
    "HareAndTortoise",
    "InsertDropout",
    "InsertNormalization",
    "L2EffectiveRank",
    "L2Init",
    "LayerReset",
    "NormalizeAndProject",
    "OptimizerReset",
    "Parseval",
    "PlasticityInjection",
    "ReDo",
    "ReGraMa",
    "SelectiveWeightReset",
    "SelfNormalizedReset",
    "ShrinkAndPerturb",
    "SpectralRegularisation",
    "WeightClipping",
    "WeightNoise",
]
