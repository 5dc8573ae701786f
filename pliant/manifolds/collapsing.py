"""Narrower networks: every block of clones becomes one unit."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from pliant.manifolds.cloned_state import scaled_optimizer
from pliant.manifolds.error_bound import output_bound
from pliant.manifolds.partition import Partition
from pliant.manifolds.projection import Distance, distance
from pliant.manifolds.repetition import Repetition, check_norms, detached, difference, fill, in_float64, units_of
from pliant.manifolds.resize import new_shapes, resized
from pliant.manifolds.scores import score_scales
from pliant.manifolds.structure import block_structure
from pliant.units import UnitGraph

__all__ = ["Collapsed", "collapse"]


@dataclass(frozen=True)
class Collapsed:
    """The network that is left when every block becomes one unit.

    Attributes:
        model: The smaller model.
        units: Its unit graph.
        optimizer: The optimizer over its parameters, with the state averaged over each block; ``None`` if none was
            given.
        distance: How far the wide model was from computing a function of its blocks; zero up to rounding means that
            the small model computes the same.
        change: Largest difference of the outputs on the example inputs in evaluation mode, relative to the largest
            absolute output: measured.
        bound: What ``change`` cannot exceed, from the distances of the tensors, the norms of the weights and the
            activations of the small model on the example inputs; the outputs of the wide one are not used but for the
            unit. Usually far above it (docs/manifolds.md says by how much). ``None`` where an operation has no rule.
        unbounded: Why there is no bound; empty where there is one.

    Example:
        >>> import torch, pliant
        >>> _ = torch.manual_seed(0)
        >>> model, x = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)).double(), torch.randn(4, 2).double()
        >>> wide = pliant.manifolds.clone(model, 2, x)
        >>> collapse(wide.model, wide.partition, x).change < 1e-12
        True
        >>> _ = wide.model.load_state_dict(pliant.manifolds.kicked(wide.model, wide.partition, 1e-3))
        >>> near = collapse(wide.model, wide.partition, x)
        >>> round(near.distance.total, 9), 0 < near.change <= near.bound < 1e-3
        (0.001, True)
    """

    model: nn.Module
    units: UnitGraph = field(repr=False)
    optimizer: Optimizer | None
    distance: Distance
    change: float
    bound: float | None
    unbounded: str


def collapse(
    model: nn.Module,
    partition: Partition,
    example_inputs: Any,
    *,
    optimizer: Optimizer | None = None,
    into: nn.Module | None = None,
) -> Collapsed:
    r"""The network with one unit per block: :math:`\tilde w_{ij}`, the mean over receivers of the incoming block sum.

    The inverse of :func:`clone`. Of a network that is only near the cloning manifold it is the base that the nearest
    point has; ``change`` says what that costs on the example inputs, and ``bound`` what it can cost at most there.

    Args:
        model: The wide model; it is not changed.
        partition: Its blocks.
        example_inputs: One small batch.
        optimizer: Optimizer of the wide model, to be reduced along.
        into: A model of the smaller shape to fill, where a copy cannot be narrowed by itself. It is changed.

    Returns:
        The smaller model.

    Raises:
        IllegalConfiguration: If the partition does not fit, or blocks differ in size under a norm across units.
        NotYetSupported: If no smaller network of this kind can be built.

    Example:
        >>> import torch, pliant
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)).double()
        >>> x = torch.randn(4, 2).double()
        >>> wide = pliant.manifolds.clone(model, 3, x)
        >>> small = collapse(wide.model, wide.partition, x)
        >>> small.model[0].weight.shape, torch.allclose(small.model[0].weight, model[0].weight)
        (torch.Size([3, 2]), True)
    """
    units = partition.units
    blocks = block_structure(model, partition)
    partition = Partition(units, {name: partition.of(name) for name in partition.labels})
    sizes = {name: partition.num_blocks(name) for name in partition.labels}
    counts = {name: partition.block_sizes(name) for name in partition.labels}
    check_norms(model, units, counts, collapsing=True)
    shares = {name: [1 / counts[name][block] for block in own] for name, own in partition.labels.items()}
    small = resized(model, units, new_shapes(model, units, shares), sizes) if into is None else into
    small_units = units_of(small, units, sizes, example_inputs, "smaller")
    choices = [Repetition(small, model, small_units, partition, {}, item) for item in score_scales(small_units, counts)]

    def merged(view: Repetition, name: str, tensor: Tensor) -> Tensor:
        if name in blocks:
            tensor = blocks[name].mean(tensor, "receiving", "sending", "shared")
        return view.transfer.first(name, tensor)

    def filled(view: Repetition) -> float:
        scales = {n: view.transfer.first(n, view.scale(n, full=True)) for n in view.shapes}
        fill(small, {n: merged(view, n, t) / scales[n].to(t) for n, t in detached(model).items()})
        return difference(model, small, example_inputs)

    changes = [filled(view) for view in choices]
    best = min(range(len(choices)), key=changes.__getitem__)  # of heads with fewer dimensions, several may be meant
    view, change = choices[best], changes[best]
    if best != len(choices) - 1:
        filled(view)
    made = None
    if optimizer is not None:
        rates = {n: 1 / view.transfer.first(n, view.rate(n, full=True)) for n, _ in model.named_parameters()}
        made = scaled_optimizer(optimizer, model, small, partial(merged, view), rates)
    bound, unbounded = output_bound(copy.deepcopy(model).double(), partition, in_float64(example_inputs))
    return Collapsed(small, small_units, made, distance(model, partition), change, bound, unbounded)
