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
from pliant.manifolds.partition import Partition
from pliant.manifolds.projection import distance
from pliant.manifolds.structure import block_structure
from pliant.observation import observe
from pliant.quiet import unrecorded
from pliant.units.export import as_call

__all__ = [
    "DropoutBurst",
    "Escape",
    "NoiseBurst",
    "Treatment",
    "escape",
    "escape_rate",
    "kicked",
    "reset_clones",
    "variance_ratio",
]

Treatment = Callable[[nn.Module, int], None]
"""Called between the backward pass and the step, with the model and the number of the step."""


def kicked(
    model: nn.Module,
    partition: Partition,
    size: float,
    *,
    direction: Mapping[str, Tensor] | str = "normal",
    seed: int = 0,
) -> dict[str, Tensor]:
    """The parameters after a kick of a given Euclidean norm.

    Args:
        model: The model; it is not changed.
        partition: Its blocks.
        size: Norm of the kick over all parameters, in units of the parameters.
        direction: ``"normal"``: random, normal to the cloning manifold; ``"isotropic"``: random in all parameters; or a
            vector by parameter name, such as :attr:`Stability.direction`.
        seed: Seed of what is random.

    Returns:
        Parameter name to tensor.

    Raises:
        IllegalConfiguration: For an unknown direction, one of length zero, or a size that is not positive.

    Example:
        >>> import pliant
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)).double()
        >>> wide = pliant.manifolds.clone(model, 2, torch.randn(4, 2).double())
        >>> _ = wide.model.load_state_dict(kicked(wide.model, wide.partition, 1e-3))
        >>> round(pliant.manifolds.distance(wide.model, wide.partition).total, 9)
        0.001
    """
    if not size > 0:
        raise IllegalConfiguration(f"size={size}: a kick has a length above zero.")
    own = {name: p.detach() for name, p in model.named_parameters()}
    if isinstance(direction, str):
        if direction not in ("normal", "isotropic"):
            raise IllegalConfiguration(f"direction={direction!r}: it is 'normal', 'isotropic' or a vector by name.")
        generator = torch.Generator().manual_seed(seed)
        vector = {n: torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p) for n, p in own.items()}
        if direction == "normal":
            blocks = block_structure(model, partition)
            vector = {n: blocks[n].off(v, "both") for n, v in vector.items() if n in blocks}
    else:
        vector = {name: value for name, value in direction.items() if name in own}
    length = math.hypot(*(float(torch.linalg.vector_norm(value.double())) for value in vector.values()))
    if not length > 0:
        raise IllegalConfiguration("the direction of the kick has length zero.")
    return {n: p + vector[n].to(p) * (size / length) if n in vector else p.clone() for n, p in own.items()}


def reset_clones(model: nn.Module, partition: Partition, *, seed: int = 0) -> dict[str, Tensor]:
    """The parameters after all but the first unit of each block have got new incoming weights, and no outgoing ones.

    What a reset of clones does to a network, as one kick: new incoming entries are drawn with the deviation of their
    tensor. The first unit of a block takes over the outgoing weights of the others, so that the function stays, unless
    the units are normalised together.

    Args:
        model: The model; it is not changed.
        partition: Its blocks.
        seed: Seed of the draws.

    Returns:
        Parameter name to tensor.
    """
    generator = torch.Generator().manual_seed(seed)
    state = {name: p.detach().clone() for name, p in model.named_parameters()}
    for name in partition.labels:
        labels = partition.of(name)
        first = {block: labels.index(block) for block in set(labels)}
        others = [unit for unit, block in enumerate(labels) if unit != first[block]]
        for piece in partition.units[name].slices:
            if piece.name not in state or not others:
                continue
            value = state[piece.name].movedim(piece.dim, 0)
            where = piece.positions()
            if piece.role == "incoming":
                rows = value[where[others].flatten()]
                spread = float(state[piece.name].std()) if state[piece.name].numel() > 1 else 1.0
                fresh = torch.randn(rows.shape, generator=generator, dtype=torch.float64).to(rows) * spread
                value[where[others].flatten()] = fresh if state[piece.name].ndim > 1 else torch.zeros_like(fresh)
            elif piece.role == "outgoing":
                for unit in others:
                    value[where[first[labels[unit]]]] += value[where[unit]]
                    value[where[unit]] = 0
    return state


@dataclass(frozen=True)
class NoiseBurst:
    r"""Noise on the gradient with :math:`\lVert\epsilon\rVert = \sigma\lVert g\rVert`, tensor by tensor.

    The published experiment adds :math:`\sigma\lVert g\rVert\,\mathcal N(0, I)` instead, whose norm is
    :math:`\sqrt n` times that, for a tensor of :math:`n` entries: its 0.01 on a 256 x 256 matrix is 2.56 here.

    Attributes:
        sigma: Ratio of the norms.
        steps: Only in the first so many steps.
        seed: Seed of the noise.
    """

    sigma: float
    steps: int = 1
    seed: int = 0

    def __call__(self, model: nn.Module, step: int) -> None:
        """Add the noise to the gradients."""
        if step >= self.steps:
            return
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            if parameter.grad is not None:
                size = self.sigma * torch.linalg.vector_norm(parameter.grad) / torch.linalg.vector_norm(noise)
                parameter.grad += noise.to(parameter.grad) * size.to(parameter.grad)


@dataclass(frozen=True)
class DropoutBurst:
    """Dropout in the first steps, by the model's own dropout modules.

    Attributes:
        rate: Their rate meanwhile.
        steps: Number of steps; afterwards the rate is 0.
    """

    rate: float
    steps: int = 1

    def __call__(self, model: nn.Module, step: int) -> None:
        """Set the rates for the next step."""
        found = [module for module in model.modules() if isinstance(module, nn.modules.dropout._DropoutNd)]
        if not found:
            raise IllegalConfiguration(
                "a dropout burst needs dropout modules (their rate may be 0): pliant.insertion.insert_dropout adds "
                "them."
            )
        for module in found:
            module.p = self.rate if step + 1 < self.steps else 0.0


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
    """
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
        rate: Slope of ``log(distance)`` in a step over the part that grows from ten times the first distance to a tenth
            of the largest; ``nan`` where there is no such part.
    """

    steps: tuple[int, ...]
    distances: tuple[float, ...]
    losses: tuple[float, ...]
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
        seed: Seed of what is random in the forward pass.

    Returns:
        The curve and its rate.
    """
    wide = copy.deepcopy(model)
    if kick is not None:
        wide.load_state_dict(dict(kick), strict=False)
    stepper = optimizer(wide)
    seen: list[tuple[int, float, float]] = []
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
            if step == steps:
                break
            value.backward()  # type: ignore[no-untyped-call]
            if treatment is not None:
                treatment(wide, step)
            stepper.step()
    at, far, losses = (tuple(column) for column in zip(*seen, strict=True))
    rate = escape_rate(at, far, low=10 * far[0], high=0.1 * max(far)) if far[0] > 0 else float("nan")
    return Escape(at, far, losses, rate)
