"""Activations that keep networks plastic, as layers to build a model with."""

from pliant.nn.crelu import CReLU
from pliant.nn.fourier import DeepFourierFeatures
from pliant.nn.smooth_leaky import SmoothLeakyReLU

__all__ = ["CReLU", "DeepFourierFeatures", "SmoothLeakyReLU"]
