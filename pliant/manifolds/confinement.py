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

    Example:
        >>> import pliant
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 1)).double()
        >>> x = torch.randn(8, 2).double()
        >>> wide = pliant.manifolds.clone(model, 2, x)
        >>> _ = wide.model.load_state_dict(pliant.manifolds.redistributed(wide.model, wide.partition), strict=False)
        >>> for decay in (0.0, 0.1):  # decay moves between leaves: by 1 - 0.1 * 0.1 in each step
        ...     sgd = lambda copied: torch.optim.SGD(copied.parameters(), lr=0.1, weight_decay=decay)
        ...     end = confinement(wide.model, wide.partition, x, lambda y: (y - 1).square().mean(), sgd, steps=10)
        ...     print(end.distance < 1e-12, round(end.residual_ratio, 6), round(0.99**10, 6))
        True 1.0 0.904382
        True 0.904382 0.904382
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

    Example:
        >>> import pliant
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Dropout(0.0), nn.Linear(3, 1)).double()
        >>> x = torch.randn(8, 2).double()
        >>> wide = pliant.manifolds.clone(model, 2, x)
        >>> def leave(rate):
        ...     wide.model[2].p = rate
        ...     sgd, loss = (lambda copied: torch.optim.SGD(copied.parameters(), lr=0.1)), (lambda y: y.square().mean())
        ...     return confinement(wide.model, wide.partition, x, loss, sgd, steps=5).distance
        >>> leave(0.0) < 1e-12, leave(0.5) > 1e-3
        (True, True)
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
