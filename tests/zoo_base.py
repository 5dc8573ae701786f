"""What a member of the zoo is: a small network with the unit groups that must be found in it.

The expected groups are written by hand, from what the architecture is, and never generated from what discovery
says: a rule that excludes everything, or one that ties too much together, has to fail here.

``members`` are written as ``"name[dim]"``, separated by blanks, dimensions counted from the end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Group:
    """What one group must look like."""

    size: int
    members: str
    site: str = "hidden"
    preserves: bool = True
    tap: str = "hook"  # "hook", "replay" or "none"


@dataclass(frozen=True)
class Case:
    """A network with example inputs and the groups expected of it."""

    build: Callable[[], nn.Module]
    inputs: Callable[[int], Any]
    groups: Mapping[str, Group]
    excluded: Mapping[str, str] = field(default_factory=dict)  # "name[dim]" to a word of the reason
    init: Any = None  # for parameters that are not of a PyTorch layer
    inert: str = ""  # members that the output does not depend on, by the architecture

    def model(self, seed: int = 0) -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return self.build()

    def batch(self, size: int = 4, seed: int = 0) -> Any:
        with torch.random.fork_rng():
            torch.manual_seed(1000 + seed)
            return self.inputs(size)


def call(model: nn.Module, batch: Any) -> Any:
    """The model's output for a batch: a dict is its keyword arguments."""
    return model(**batch) if isinstance(batch, dict) else model(batch)


def cast(batch: Any, dtype: torch.dtype) -> Any:
    """A batch whose floating-point tensors have another type."""
    if isinstance(batch, dict):
        return {key: cast(value, dtype) for key, value in batch.items()}
    return batch.to(dtype) if batch.is_floating_point() else batch


ZOO: dict[str, Case] = {}


def case(name: str, inputs: Callable[[int], Any], groups: Mapping[str, Group], **more: Any) -> Any:
    def register(build: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
        ZOO[name] = Case(build, inputs, groups, **more)
        return build

    return register


def features(size: int) -> Callable[[int], Tensor]:
    return lambda batch: torch.randn(batch, size)


def images(channels: int, side: int) -> Callable[[int], Tensor]:
    return lambda batch: torch.randn(batch, channels, side, side)


def sequence(steps: int, size: int) -> Callable[[int], Tensor]:
    return lambda batch: torch.randn(batch, steps, size)


def tokens(steps: int, vocabulary: int) -> Callable[[int], Tensor]:
    return lambda batch: torch.randint(0, vocabulary, (batch, steps))
