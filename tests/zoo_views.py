"""The zoo: parameters that are cut, viewed, joined, expanded or combined before they are used."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from zoo_base import Group, case, features, sequence


def weight(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape) / shape[-1] ** 0.5)


class CutGate(nn.Module):
    """A fused weight cut into gate and value by slices; half of another one is never used."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.spare, self.out = weight(12, 5), weight(8, 6), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.linear(x, self.w[:6]).sigmoid() * F.linear(x, self.w[6:])
        return self.out(F.relu(F.linear(hidden, self.spare[:4])))


@case(
    "parameter_slices",
    features(5),
    {
        "w": Group(6, "w[-2] spare[-1]", tap="replay"),
        "spare": Group(4, "spare[-2] out.weight[-1]"),
    },
    excluded={"spare[-2]": "no rule"},  # the other half of its rows
    init="kaiming_uniform",
)
def parameter_slices() -> nn.Module:
    return CutGate()


class ViewedGate(nn.Module):
    """The same as a three-dimensional view, and joined with a second weight."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.more, self.out = weight(12, 5), weight(3, 5), nn.Linear(9, 2)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.w.view(2, 6, 5).unbind(0)
        joined = torch.cat([value, self.more])  # rows of two parameters in one product
        wide = F.relu(F.linear(x, joined))
        return self.out(torch.cat([wide[:, :6] * F.linear(x, gate), wide[:, 6:]], -1))


@case(
    "parameter_views",
    features(5),
    {
        "w": Group(6, "w[-2] out.weight[-1]"),
        "more": Group(3, "more[-2] out.weight[-1]"),
    },
    init="kaiming_uniform",
)
def parameter_views() -> nn.Module:
    return ViewedGate()


class Tokens(nn.Module):
    """Learned tokens before the sequence, positions sliced to its length, learned queries that gather it."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.hidden, self.back = nn.Linear(5, 6), nn.Linear(6, 7), nn.Linear(7, 6)
        self.registers, self.positions, self.latents = weight(1, 3, 6), weight(1, 9, 6), weight(2, 4)
        self.query, self.key, self.head = nn.Linear(4, 8), nn.Linear(6, 8), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.registers.expand(len(x), -1, -1), self.embed(x)], 1)
        x = x + self.positions[:, : x.shape[1]]
        x = x + self.back(F.gelu(self.hidden(x)))
        scores = self.query(self.latents) @ self.key(x).mT
        return self.head(scores.softmax(-1) @ x)


@case(
    "parameter_tokens",
    sequence(4, 5),
    {
        "embed:residual": Group(
            6,
            "embed.weight[-2] embed.bias[-1] registers[-1] positions[-1] hidden.weight[-1] back.weight[-2]"
            " back.bias[-1] key.weight[-1] head.weight[-1]",
            site="residual",
            tap="any",
        ),
        "hidden": Group(7, "hidden.weight[-2] hidden.bias[-1] back.weight[-1]", tap="any"),
        "query:head_dims": Group(
            8, "query.weight[-2] query.bias[-1] key.weight[-2] key.bias[-1]", "head_dims", False, "none"
        ),
    },
    excluded={"registers[-2]": "learned", "latents[-1]": "learned", "query.weight[-1]": "learned"},
    inert="key.bias[-1]",
    init="kaiming_uniform",
)
def parameter_tokens() -> nn.Module:
    return Tokens()


class Scaled(nn.Module):
    """A weight times a scale per row and an exponential per column, both learned."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.gain, self.tilt = weight(6, 5), weight(6, 1), weight(1, 6)
        self.out = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.relu(F.linear(x, self.w * self.gain))
        return F.linear(hidden, self.out.weight * self.tilt.exp(), self.out.bias)


@case(
    "parameter_products",
    features(5),
    {"w": Group(6, "w[-2] gain[-2] tilt[-1] out.weight[-1]", tap="any")},
    init="kaiming_uniform",
)
def parameter_products() -> nn.Module:
    return Scaled()
