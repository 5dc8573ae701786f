"""Observations and actions out of their spaces, as an agent passes them to its networks."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["as_tensors", "example_actions", "example_observations"]

_BOUND = 10.0  # a space without bounds, or with astronomical ones, must not give astronomical examples


def example_observations(space: Any, size: int, device: torch.device) -> Any:
    """A batch drawn from an observation space, the same at every call; the space's own random state stays as it is.

    Args:
        space: A space of Gymnasium; entries of a box are kept within plus and minus 10 where its bounds allow.
        size: Observations in the batch.
        device: Where it is put.

    Returns:
        ``[size, ...]``, or a mapping of such for a dictionary of spaces.
    """
    drawn = copy.deepcopy(space)
    drawn.seed(0)
    return as_tensors(_stacked(drawn, [drawn.sample() for _ in range(size)]), device)


def example_actions(space: Any, size: int, device: torch.device) -> Tensor:
    """Actions of a continuous space as critics see them, uniform in [-1, 1]: ``[size, *shape]``."""
    generator = torch.Generator().manual_seed(0)
    return (torch.rand(size, *space.shape, generator=generator) * 2 - 1).to(device)


def as_tensors(observations: Any, device: torch.device) -> Any:
    """Arrays, or a mapping of arrays, as tensors on a device."""
    if isinstance(observations, Mapping):
        return {key: as_tensors(value, device) for key, value in observations.items()}
    return torch.as_tensor(observations, device=device)


def _stacked(space: Any, drawn: list[Any]) -> Any:
    parts = getattr(space, "spaces", None)
    if isinstance(parts, Mapping):
        return {key: _stacked(part, [item[key] for item in drawn]) for key, part in parts.items()}
    batch = np.stack([np.asarray(item) for item in drawn]).reshape(len(drawn), *(space.shape or (1,)))
    if batch.dtype.kind == "f":
        low, high = np.maximum(space.low, -_BOUND), np.minimum(space.high, _BOUND)
        batch = np.clip(batch, np.minimum(low, space.high), np.maximum(high, space.low)).astype(batch.dtype)
    return batch
