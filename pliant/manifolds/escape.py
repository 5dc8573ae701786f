r"""Leaving a cloning manifold: kicks, treatments, and how fast a departure grows.

Whether leaving pays is another question: a network that has left may fit worse, as published runs with dropout do.
Plasticity is shown by training on a new task beside a fresh network (:func:`pliant.probe`), not by a distance.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pliant.errors import IllegalConfiguration
from pliant.manifolds.kicks import DropoutBurst, Treatment
from pliant.manifolds.partition import Partition
from pliant.manifolds.projection import distance
from pliant.manifolds.structure import block_structure
from pliant.observation import observe
from pliant.quiet import unrecorded
from pliant.units.export import as_call

__all__ = ["Escape", "escape", "escape_rate", "variance_ratio"]


def variance_ratio(
    model: nn.Module, partition: Partition, inputs: Any, loss: Callable[[Any], Tensor] | None = None
) -> float:
    r""":math:`R^2 = 1 - \mathrm{Var}(h - \bar h_{block})/\mathrm{Var}(h)`, the mean over groups with blocks.

    1 for perfect clones. A ratio of variances, over samples and units; the published code's number of this name is a
    ratio of deviations and gives other values. With a loss, gradients of activations count as further groups.

    Args:
        model: The model.
        partition: Its blocks.
        inputs: A batch.
        loss: From the output to a scalar.

    Example:
        >>> import pliant
        >>> _ = torch.manual_seed(0)
        >>> model, x = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)).double(), torch.randn(8, 2).double()
        >>> wide = pliant.manifolds.clone(model, 2, x)
        >>> round(variance_ratio(wide.model, wide.partition, x), 9)
        1.0
        >>> _ = wide.model.load_state_dict(pliant.manifolds.reset_clones(wide.model, wide.partition))
        >>> 0 < variance_ratio(wide.model, wide.partition, x) < 0.9
        True
    """
    block_structure(model, partition)  # refuses a partition of another model
    seen = observe(model, inputs, loss, units=partition.units, where="*,*:residual")
    ratios = []
    for name in partition.labels:
        if name not in seen.groups or partition.num_blocks(name) == partition.units[name].size:
            continue
        labels = torch.tensor(partition.of(name))
        for values_NU in (seen.groups[name].act_NU, seen.groups[name].grad_NU):
            if values_NU is None:
                continue
            blocks = torch.zeros(len(values_NU), int(labels.max()) + 1, dtype=values_NU.dtype, device=values_NU.device)
            means = blocks.index_add(1, labels.to(values_NU.device), values_NU) / torch.bincount(labels).to(values_NU)
            left = (values_NU - means[:, labels]).square().sum()
            total = (values_NU - values_NU.mean()).square().sum()
            ratios.append(1 - float(left / total) if float(total) > 0 else 1.0)
    if not ratios:
        raise IllegalConfiguration("no group with blocks of two units can be observed.")
    return sum(ratios) / len(ratios)


@dataclass(frozen=True)
class Escape:
    """A departure, step by step.

    Attributes:
        steps: The steps at which it was measured.
        distances: Distance to the cloning manifold.
        losses: Loss before each of these steps.
        ratios: :func:`variance_ratio` of the activations there; empty unless it was asked for.
        rate: Slope of ``log(distance)`` in a step over the part that grows from ten times the first distance to a tenth
            of the largest; ``nan`` where there is no such part.

    Example:
        >>> import pliant
        >>> model = nn.Sequential(nn.Linear(1, 2, bias=False), nn.Tanh(), nn.Linear(2, 1, bias=False)).double()
        >>> _ = [nn.init.zeros_(p) for p in model.parameters()]
        >>> x, y = torch.ones(4, 1).double(), torch.ones(4, 1).double()
        >>> pair = pliant.manifolds.partition(pliant.find_units(model, x), {"0": [0, 0]})
        >>> curvature = pliant.manifolds.stability(model, pair, (x, y), "mse")
        >>> kick = pliant.manifolds.kicked(model, pair, 1e-6, direction=curvature.direction)
        >>> sgd = lambda copied: torch.optim.SGD(copied.parameters(), lr=0.1)
        >>> left = escape(model, pair, x, lambda out: 0.5 * (out - y).square().mean(), sgd, steps=100, kick=kick)
        >>> abs(left.rate - math.log(curvature.growth(lr=0.1))) < 1e-3  # it leaves as fast as the curvature says
        True
    """

    steps: tuple[int, ...]
    distances: tuple[float, ...]
    losses: tuple[float, ...]
    ratios: tuple[float, ...]
    rate: float


def escape_rate(steps: Sequence[int], distances: Sequence[float], *, low: float, high: float) -> float:
    """Least-squares slope of ``log(distance)`` while it is between ``low`` and ``high``, before it first exceeds that.

    Returns:
        The slope in a step; ``nan`` with fewer than three points.

    Example:
        >>> round(escape_rate([0, 1, 2, 3], [1.0, 2.0, 4.0, 8.0], low=0.5, high=10), 6)  # log(2)
        0.693147
    """
    points = []
    for step, value in zip(steps, distances, strict=True):
        if value > high:
            break
        if value >= low:
            points.append((float(step), math.log(value)))
    if len(points) < 3:
        return float("nan")
    x, y = torch.tensor(points, dtype=torch.float64).T
    x = x - x.mean()
    return float((x @ y) / (x @ x))


def escape(
    model: nn.Module,
    partition: Partition,
    inputs: Any,
    loss: Callable[[Any], Tensor],
    optimizer: Callable[[nn.Module], Optimizer],
    *,
    steps: int,
    kick: Mapping[str, Tensor] | None = None,
    treatment: Treatment | None = None,
    every: int = 1,
    ratios: bool = False,
    seed: int = 0,
) -> Escape:
    """Train a copy after a kick, or under a treatment, and measure how it leaves.

    Args:
        model: The model, on the manifold; it is not changed.
        partition: Its blocks.
        inputs: A batch, or a function from the step to a batch and its loss (``loss`` is then ignored).
        loss: From the output to a scalar.
        optimizer: From the copy to its optimizer.
        steps: Number of steps.
        kick: Parameters to begin with, of :func:`kicked` or :func:`reset_clones`.
        treatment: What happens between the backward pass and the step.
        every: Measured every so many steps.
        ratios: Whether to measure the variance ratio, too; another forward pass each time.
        seed: Seed of what is random in the forward pass.

    Returns:
        The curve and its rate.

    Example:
        >>> import pliant
        >>> model, x = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)).double(), torch.randn(8, 2).double()
        >>> wide = pliant.manifolds.clone(model, 2, x)
        >>> def run(kick):
        ...     sgd = lambda copied: torch.optim.SGD(copied.parameters(), lr=0.1)
        ...     loss = lambda y: (y - 1).square().mean()
        ...     return escape(wide.model, wide.partition, x, loss, sgd, steps=20, kick=kick, every=10)
        >>> still = run(None)  # without a kick nothing leaves
        >>> still.steps, max(still.distances) < 1e-12
        ((0, 10, 20), True)
        >>> round(run(pliant.manifolds.kicked(wide.model, wide.partition, 1e-3)).distances[0], 9)
        0.001
    """
    wide = copy.deepcopy(model)
    if kick is not None:
        wide.load_state_dict(dict(kick), strict=False)
    stepper = optimizer(wide)
    seen: list[tuple[int, float, float]] = []
    alike: list[float] = []
    with torch.random.fork_rng(), unrecorded():
        torch.manual_seed(seed)
        if treatment is not None and isinstance(treatment, DropoutBurst):
            treatment(wide, -1)
        for step in range(steps + 1):
            batch, own_loss = inputs(step) if callable(inputs) else (inputs, loss)
            args, kwargs = as_call(batch)
            stepper.zero_grad()
            value = own_loss(wide(*args, **kwargs))
            if step % every == 0:
                seen.append((step, distance(wide, partition).total, float(value.detach())))
                alike.extend([variance_ratio(wide, partition, batch)] if ratios else [])
            if step == steps:
                break
            value.backward()
            if treatment is not None:
                treatment(wide, step)
            stepper.step()
    at, far, losses = (tuple(column) for column in zip(*seen, strict=True))
    rate = escape_rate(at, far, low=10 * far[0], high=0.1 * max(far)) if far[0] > 0 else float("nan")
    return Escape(at, far, losses, tuple(alike), rate)
