"""Which weights a model uses as they are: only for these are equal block sums enough."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from pliant.errors import IllegalConfiguration
from pliant.manifolds.partition import Partition
from pliant.manifolds.projection import project
from pliant.manifolds.redistribution import redistributed
from pliant.manifolds.structure import block_structure
from pliant.units.verify import Probe, relative_difference

__all__ = ["transformed_tensors"]

_NUM_DRAWS = 4
"""Draws of parameters: in one alone a ReLU between few blocks may be off for the whole batch, and hide what is before
and behind it."""


def transformed_tensors(
    model: nn.Module, partition: Partition, example_inputs: Any, *, tolerance: float = 1e-9, seed: int = 0
) -> tuple[str, ...]:
    r"""The tensors in which moving weights inside blocks, with all block sums kept, changes what the model computes.

    The conditions on block sums are about weights that multiply activations. Where a weight is standardised,
    normalised or otherwise computed from parameters first, they say nothing; only block-constant parameters certify a
    trap there. Found by running the model on generic inputs and parameters, which are block-constant in all tensors but
    one, in evaluation and in training mode with dropout off; in a few draws of them.

    Args:
        model: The model; it is not changed.
        partition: Its blocks.
        example_inputs: One small batch.
        tolerance: Largest relative change of the outputs that counts as rounding.
        seed: Seed of the first draw.

    Returns:
        Their names.

    Raises:
        IllegalConfiguration: If the partition names a tensor that the model does not have, or one that is too short.

    Example:
        >>> import pliant
        >>> x = torch.randn(3, 4)
        >>> plain = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 1))
        >>> blocks = pliant.manifolds.partition(pliant.find_units(plain, x), {"0": [0, 0, 1, 1], "2": [0, 0, 1, 1]})
        >>> transformed_tensors(plain, blocks, x)
        ()
        >>> scaled = nn.utils.parametrizations.weight_norm(plain[2]) and plain
        >>> blocks = pliant.manifolds.partition(pliant.find_units(scaled, x), {"0": [0, 0, 1, 1], "2": [0, 0, 1, 1]})
        >>> transformed_tensors(scaled, blocks, x)
        ('2.parametrizations.weight.original1',)
    """
    found: set[str] = set()
    structure = block_structure(model, partition)
    for draw in range(seed, seed + _NUM_DRAWS):
        probe = Probe(model, example_inputs, draw, torch.float64)
        generic = dict(probe.state)
        floating = {name: value for name, value in generic.items() if value.is_floating_point()}
        generic.update(project(model, partition, "block_constant", state=floating))
        before = probe.run(generic)
        for name in structure:
            if name in found:
                continue
            try:
                moved = redistributed(model, partition, state=generic, only=name, seed=draw)
            except IllegalConfiguration:  # blocks on one side only: on the manifold, its weights are block-constant
                continue
            after = probe.run({**generic, name: moved[name]})
            if not max(relative_difference(a, b) for a, b in zip(before, after, strict=True)) <= tolerance:
                found.add(name)
    return tuple(name for name in structure if name in found)
