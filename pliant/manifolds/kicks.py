"""What can be done to clones to make them leave: kicks of the weights, and treatments of a few steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pliant.errors import IllegalConfiguration
from pliant.manifolds.partition import Partition
from pliant.manifolds.structure import block_structure

__all__ = ["DropoutBurst", "NoiseBurst", "Treatment", "kicked", "reset_clones"]

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

    Raises:
        IllegalConfiguration: If the partition does not fit the model.

    Example:
        >>> import pliant
        >>> _ = torch.manual_seed(0)
        >>> model, x = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)).double(), torch.randn(4, 2).double()
        >>> wide = pliant.manifolds.clone(model, 2, x)
        >>> _ = wide.model.load_state_dict(reset_clones(wide.model, wide.partition))
        >>> torch.allclose(wide.model(x), model(x), atol=1e-12)  # the same function, off the manifold
        True
        >>> pliant.manifolds.distance(wide.model, wide.partition).relative > 0.1
        True
    """
    block_structure(model, partition)  # refuses a partition of another model
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

    Example:
        >>> layer, burst = nn.Linear(3, 2, bias=False), NoiseBurst(sigma=0.1)
        >>> layer.weight.grad = torch.full((2, 3), 2.0)
        >>> burst(layer, 0)
        >>> noise = layer.weight.grad - 2
        >>> round(float(noise.norm() / torch.full((2, 3), 2.0).norm()), 5)
        0.1
        >>> burst(layer, 1)  # its one step is over
        >>> torch.equal(layer.weight.grad - 2, noise)
        True
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

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.0))
        >>> burst, rates = DropoutBurst(rate=0.5, steps=2), []
        >>> for step in range(-1, 3):  # -1: before the first step, as escape() calls it
        ...     burst(model, step)
        ...     rates.append(model[1].p)
        >>> rates  # in steps 0, 1, 2, 3
        [0.5, 0.5, 0.0, 0.0]
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
