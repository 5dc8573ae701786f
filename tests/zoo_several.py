"""An actor and a critic over a trunk that they may share: what tests of several models are run on."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Actor(nn.Module):
    def __init__(self, trunk: nn.Module) -> None:
        super().__init__()
        self.trunk, self.fc, self.out = trunk, nn.Linear(8, 6), nn.Linear(6, 2)

    def forward(self, obs: Tensor) -> Tensor:
        return torch.tanh(self.out(torch.relu(self.fc(self.trunk(obs)))))


class Critic(nn.Module):
    def __init__(self, trunk: nn.Module) -> None:
        super().__init__()
        self.trunk, self.fc, self.out = trunk, nn.Linear(10, 7), nn.Linear(7, 1)

    def forward(self, obs: Tensor, act: Tensor) -> Tensor:
        return self.out(torch.relu(self.fc(torch.cat([self.trunk(obs), act], -1))))
