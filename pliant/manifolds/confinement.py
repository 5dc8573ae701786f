"""Where training goes from a point of the cloning manifold."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pliant.fresh import copy_of
from pliant.manifolds.partition import Partition
from pliant.manifolds.projection import distance, residual
from pliant.units.export import as_call

__all__ = ["AfterStep", "Confinement", "confinement", "norm_of"]

AfterStep = Callable[[nn.Module, Optimizer, int], None]
"""Called after each step with the model, its optimizer and the number of the step."""


@dataclass(frozen=True)
class Confinement:
    r"""Where training went, from one start.

    Attributes:
        distance: Distance to the cloning manifold at the end, relative to the norm of the weights with blocks.
        residual_ratio: :math:`\lVert R(t)\rVert / \lVert R(0)\rVert` of the difference to block-constant weights:
            1 on a leaf, ``nan`` where the start is block-constant.
        residual_drift: :math:`\lVert R(t) - R(0)\rVert`, relative to the norm of the weights with blocks.
    """

    distance: float
    residual_ratio: float
    residual_drift: float


def confinement(
    model: nn.Module,
    partition: Partition,
    inputs: Any,
    loss: Callable[[Any], Tensor],
    optimizer: Callable[[nn.Module], Optimizer],
    *,
    steps: int = 50,
    after_step: AfterStep | None = None,
    seed: int = 0,
) -> Confinement:
    """Train a copy of a model from where it is, and say where it has gone.

    Args:
        model: The model, on the manifold; it is not changed.
        partition: Its blocks.
        inputs: A batch, or a function from the step to a batch and its loss (``loss`` is then ignored).
        loss: From the model's output to a scalar.
        optimizer: From the copy to its optimizer.
        steps: Number of steps.
        after_step: Called with the copy, the optimizer and the step after each.
        seed: Seed of what is random in the forward pass.

    Returns:
        The distance at the end.
    """
    wide = copy_of(model)  # whoever listens to the model does not hear the copy, and what is attached to the copy does
    stepper = optimizer(wide)
    start = residual(wide, partition)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for step in range(steps):
            batch, own_loss = inputs(step) if callable(inputs) else (inputs, loss)
            args, kwargs = as_call(batch)
            stepper.zero_grad()
            own_loss(wide(*args, **kwargs)).backward()
            stepper.step()
            if after_step is not None:
                after_step(wide, stepper, step)
    end = residual(wide, partition)
    before, after = norm_of(start), norm_of(end)
    off = distance(wide, partition)
    scale = off.total / off.relative if off.relative else norm_of({n: dict(wide.named_parameters())[n] for n in end})
    drift = norm_of({name: end[name] - start[name] for name in end})
    plain = before <= 1e-9 * scale
    return Confinement(off.relative, float("nan") if plain else after / before, drift / scale if scale else 0.0)


def norm_of(vectors: Mapping[str, Tensor]) -> float:
    """Euclidean norm over all entries of some tensors."""
    return math.hypot(*(float(torch.linalg.vector_norm(v.detach().double())) for v in vectors.values()))
