"""The zoo: networks with the activations of ``pliant.nn``, two of which give each unit two positions."""

from __future__ import annotations

from torch import nn
from zoo_base import Group, case, features, images

from pliant.nn import CReLU, DeepFourierFeatures, SmoothLeakyReLU

_DOUBLED = {
    "0": Group(8, "0.weight[-2] 0.bias[-1] 2.weight[-1]"),
    "2": Group(6, "2.weight[-2] 2.bias[-1] 4.weight[-1]"),
}


@case("mlp_crelu", features(5), _DOUBLED)
def mlp_crelu() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 8), CReLU(), nn.Linear(16, 6), CReLU(), nn.Linear(12, 3))


@case("mlp_fourier", features(5), _DOUBLED)
def mlp_fourier() -> nn.Module:
    fourier = DeepFourierFeatures
    return nn.Sequential(nn.Linear(5, 8), fourier(), nn.Linear(16, 6), fourier(), nn.Linear(12, 3))


@case("mlp_smooth_leaky", features(5), _DOUBLED)
def mlp_smooth_leaky() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 8), SmoothLeakyReLU(), nn.Linear(8, 6), SmoothLeakyReLU(), nn.Linear(6, 3))


@case(
    "conv_crelu",
    images(1, 6),
    {
        "0": Group(3, "0.weight[-4] 0.bias[-1] 2.weight[-3]"),
        "2": Group(4, "2.weight[-4] 2.bias[-1] 5.weight[-1]"),
    },
)
def conv_crelu() -> nn.Module:
    """A filter owns two channels of the next kernel, or two blocks of columns behind a flatten."""
    return nn.Sequential(
        *(nn.Conv2d(1, 3, 3), CReLU(dim=1), nn.Conv2d(6, 4, 3), DeepFourierFeatures(dim=1)),
        *(nn.Flatten(), nn.Linear(8 * 4, 2)),
    )
