"""What target networks do when units of the networks that they follow are reset."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pliant.events import Event
from pliant.stats.capture import named_tensors
from pliant.units.several import Models, as_module

__all__ = ["Targets", "follow"]

Targets = Literal["polyak", "copy"]
"""``"polyak"``: a target network follows by its own updates alone. ``"copy"``: reset units are copied into it."""


def follow(handle: Any, models: Models, pairs: Sequence[tuple[nn.Module, nn.Module]]) -> Callable[[], None]:
    """Copy what a reset unit owns (weights in and out, norm, running statistics) into the target network, each time.

    Args:
        handle: The handle whose resets are followed.
        models: What it is attached to.
        pairs: Trained networks and their target networks, alike in names and shapes.

    Returns:
        A function that ends it.
    """
    targets_of: dict[int, list[Tensor]] = {}  # a features extractor that actor and critic share has two
    for trained, target in pairs:
        there = _tensors(target)
        for name, tensor in _tensors(trained).items():
            targets_of.setdefault(id(tensor), []).append(there[name])
    tensors = named_tensors(as_module(models))
    units = {group.name: group for group in handle.units}

    def copy(event: Event) -> None:
        if event.action not in ("reset", "partial_reset"):
            return
        with torch.no_grad():
            for piece in units[event.group].slices:
                mine = tensors[piece.name]
                chosen = piece.positions()[list(event.units)].flatten().to(mine.device)
                for its in targets_of.get(id(mine), ()):
                    its.index_copy_(mine.ndim + piece.dim, chosen, mine.index_select(piece.dim, chosen).to(its))

    stop: Callable[[], None] = handle.events.subscribe(copy)
    return stop


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(module.named_parameters(remove_duplicate=False)), **dict(module.named_buffers())}
