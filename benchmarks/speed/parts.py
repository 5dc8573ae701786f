"""The methods that are layers or optimizers: what each is timed against, and its mathematics by hand.

A layer changes the network, an optimizer takes the place of another one, so each says what its plain step is.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from benchmarks.speed.minimal.base import DEPTH, NUM_CLASSES, NUM_INPUTS, WIDTH, network
from pliant.nn import CReLU, DeepFourierFeatures, SmoothLeakyReLU
from pliant.optim import UPGD, adam_equal_betas

__all__ = ["PARTS", "Part"]

ADAM_LR, SGD_LR, SIGMA, DECAY, BETA = 1e-4, 1e-2, 1e-3, 1e-3, 0.999
SLOPE, STEEPNESS = 0.1, 5 / 3


@dataclass(frozen=True)
class Part:
    """One layer or optimizer.

    Attributes:
        text: As it is timed.
        against: What a plain step is.
        build: From the copy's name (``"plain"``, ``"plain_again"``, ``"method"``, ``"by_hand"``) to a network and its
            optimizer.
    """

    text: str
    against: str
    build: Callable[[str], tuple[nn.Sequential, Optimizer]]


def with_activation(activation: type[nn.Module] | Callable[[], nn.Module], two_for_one: bool) -> nn.Sequential:
    """:func:`network` with another activation; with half as many units where each has two outputs."""
    torch.manual_seed(0)
    units = WIDTH // 2 if two_for_one else WIDTH
    layers: list[nn.Module] = []
    for fan_in in (NUM_INPUTS, *itertools.repeat(WIDTH, DEPTH - 1)):
        layers += [nn.Linear(fan_in, units), activation()]
    return nn.Sequential(*layers, nn.Linear(WIDTH, NUM_CLASSES))


def _layer(ours: Any, by_hand: Any, text: str, *, two_for_one: bool) -> Part:
    def build(kind: str) -> tuple[nn.Sequential, Optimizer]:
        chosen = {"method": ours, "by_hand": by_hand}.get(kind)
        model = network() if chosen is None else with_activation(chosen, two_for_one)
        return model, torch.optim.Adam(model.parameters(), lr=ADAM_LR)

    width = ", half as many units and the same widths behind the activations" if two_for_one else ""
    return Part(text, f"the same network with ReLU{width}", build)


def _optimizer(plain: Any, ours: Any, by_hand: Any, text: str, against: str) -> Part:
    def build(kind: str) -> tuple[nn.Sequential, Optimizer]:
        model = network()
        return model, {"method": ours, "by_hand": by_hand}.get(kind, plain)(list(model.parameters()))

    return Part(text, against, build)


# ---- by hand ----
class CReLUByHand(nn.Module):
    """Both signs, then one ReLU in place."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply it."""
        return torch.cat([x, -x], -1).relu_()


class FourierByHand(nn.Module):
    """Sine and cosine."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply it."""
        return torch.cat([x.sin(), x.cos()], -1)


class SmoothLeakyByHand(nn.Module):
    """A share of the identity and a scaled SiLU."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply it."""
        return torch.add(SLOPE * x, F.silu(STEEPNESS * x), alpha=(1 - SLOPE) / STEEPNESS)


class UPGDByHand(Optimizer):
    """One group, global utility, noise from the global generator."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {})
        self.count, self.params = 0, self.param_groups[0]["params"]
        self.utilities = [torch.zeros_like(parameter) for parameter in self.params]

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """One step."""
        self.count += 1
        for parameter, utility in zip(self.params, self.utilities, strict=True):
            utility.mul_(BETA).addcmul_(parameter.grad, parameter, value=BETA - 1)
        largest = torch.stack([utility.max() for utility in self.utilities]).max() * (BETA**self.count - 1)
        for parameter, utility in zip(self.params, self.utilities, strict=True):
            change = torch.empty_like(parameter).normal_(std=SIGMA).add_(parameter.grad)
            change.mul_((utility / largest).sigmoid_())
            parameter.mul_(1 - SGD_LR * DECAY).add_(change, alpha=-SGD_LR)


PARTS: dict[str, Part] = {
    "crelu": _layer(CReLU, CReLUByHand, "CReLU()", two_for_one=True),
    "deep_fourier_features": _layer(DeepFourierFeatures, FourierByHand, "DeepFourierFeatures()", two_for_one=True),
    "smooth_leaky_relu": _layer(
        SmoothLeakyReLU, SmoothLeakyByHand, "SmoothLeakyReLU(negative_slope=0.1, p=3.0, c=5.0)", two_for_one=False
    ),
    "upgd": _optimizer(
        lambda params: torch.optim.SGD(params, lr=SGD_LR),
        lambda params: UPGD(params, lr=SGD_LR, weight_decay=DECAY, beta=BETA, sigma=SIGMA),
        UPGDByHand,
        f"UPGD(lr={SGD_LR}, weight_decay={DECAY}, beta={BETA}, sigma={SIGMA})",
        "torch's SGD",
    ),
    "adam_equal_betas": _optimizer(
        lambda params: torch.optim.Adam(params, lr=ADAM_LR),
        lambda params: adam_equal_betas(params, lr=ADAM_LR),
        lambda params: torch.optim.Adam(params, lr=ADAM_LR, betas=(0.99, 0.99)),
        f"adam_equal_betas(lr={ADAM_LR})",
        "torch's Adam",
    ),
}
"""By name on the command line."""
