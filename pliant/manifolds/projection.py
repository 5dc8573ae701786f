r"""Orthogonal projections onto the manifolds of a partition, and the distance to them.

For one weight matrix and one pair of blocks, with row means :math:`r`, column means :math:`c` and mean :math:`m`:
block-constant matrices are :math:`P_{BC}W = m`, and what is normal to the cloning manifold (equal block sums over
incoming and over outgoing weights) is :math:`(r - m) + (c - m)`. A pair of blocks of :math:`n` receiving and
:math:`k` sending units thus has :math:`(n-1)(k-1)+1` dimensions on the cloning manifold and one on the
block-constant one. Kernel positions, heads' inner dimensions and positions in space stay apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from pliant.errors import IllegalConfiguration
from pliant.manifolds.partition import Partition
from pliant.manifolds.structure import Kind, TensorBlocks, block_structure, tensors_of

__all__ = ["KINDS", "Distance", "dimension", "distance", "normal_part", "project", "residual"]

KINDS: tuple[Kind, ...] = ("incoming", "outgoing", "both", "block_constant")


@dataclass(frozen=True)
class Distance:
    """How far parameters are from a manifold.

    Attributes:
        kind: Which manifold.
        total: Euclidean distance over all parameters of the model, in units of the parameters.
        relative: ``total`` over the norm of the parameters that have blocks; 0 where there are none.
        tensors: Parameter name to its own distance; the squares add up to that of ``total``.

    Example:
        >>> import pliant
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 1)).double()
        >>> wide = pliant.manifolds.clone(model, 2, torch.randn(3, 2).double())
        >>> with torch.no_grad():
        ...     _ = wide.model[0].bias[0].add_(2)  # both copies are then 1 away from their mean
        >>> off = distance(wide.model, wide.partition)
        >>> round(off.total, 6), {name: round(own, 6) for name, own in off.tensors.items()}
        (1.414214, {'0.weight': 0.0, '0.bias': 1.414214, '2.weight': 0.0})
    """

    kind: Kind
    total: float
    relative: float
    tensors: Mapping[str, float] = field(repr=False)


def _check_kind(kind: str) -> None:
    if kind not in KINDS:
        raise IllegalConfiguration(f"kind={kind!r}: there are {', '.join(map(repr, KINDS))}.")


def _values(
    model: nn.Module, state: Mapping[str, Tensor] | None, blocks: Mapping[str, TensorBlocks]
) -> dict[str, Tensor]:
    values = tensors_of(model) if state is None else dict(state)
    for name, own in blocks.items():
        if name not in values and state is None:
            raise IllegalConfiguration(f"no tensor {name!r}.")
        if name in values and tuple(values[name].shape) != own.shape:
            raise IllegalConfiguration(
                f"the state's {name!r} has shape {tuple(values[name].shape)}, the model's {own.shape}."
            )
    return {name: values[name].detach() for name in blocks if name in values}


def normal_part(
    model: nn.Module, partition: Partition, kind: Kind = "both", *, state: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """The part of parameters and buffers that is normal to a manifold; zero on it.

    Args:
        model: The model.
        partition: The partition of its units.
        kind: ``"incoming"``, ``"outgoing"``, ``"both"`` (the cloning manifold) or ``"block_constant"``.
        state: Other values than the model's own, by name: a gradient, an update.

    Returns:
        Tensor name to its normal part in float64, for tensors with blocks that are in ``state``.

    Example:
        >>> import pliant
        >>> model, x = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 1)).double(), torch.randn(8, 2).double()
        >>> wide = pliant.manifolds.clone(model, 2, x)
        >>> wide.model(x).square().mean().backward()
        >>> gradient = {name: parameter.grad for name, parameter in wide.model.named_parameters()}
        >>> off = normal_part(wide.model, wide.partition, state=gradient)  # of clones, nothing
        >>> list(off), max(float(part.abs().max()) for part in off.values()) < 1e-12
        (['0.weight', '0.bias', '2.weight'], True)
    """
    _check_kind(kind)
    blocks = block_structure(model, partition)
    return {name: blocks[name].off(value.double(), kind) for name, value in _values(model, state, blocks).items()}


def project(
    model: nn.Module, partition: Partition, kind: Kind = "both", *, state: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """The nearest point of a manifold, parameters and buffers; the model is left as it is.

    Args:
        model: The model.
        partition: The partition of its units.
        kind: As for :func:`normal_part`.
        state: Other values than the model's own, by name.

    Returns:
        Tensor name to tensor, for every entry of ``state`` (of the model's parameters and floating-point buffers);
        ``model.load_state_dict(project(...), strict=False)`` moves there.

    Example:
        >>> import pliant
        >>> model = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 1))
        >>> blocks = pliant.manifolds.partition(pliant.find_units(model, torch.randn(3, 2)), {"0": [0, 0, 1, 1]})
        >>> _ = model.load_state_dict(project(model, blocks, "block_constant"), strict=False)
        >>> bool((model[0].weight[0] == model[0].weight[1]).all()), round(distance(model, blocks).total, 6)
        (True, 0.0)
    """
    off = normal_part(model, partition, kind, state=state)
    values = tensors_of(model) if state is None else state
    return {
        name: (value.detach().double() - off[name]).to(value) if name in off else value.detach().clone()
        for name, value in values.items()
    }


def residual(model: nn.Module, partition: Partition, *, state: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    r""":math:`R = W - P_{BC}W` of the parameters: on the cloning manifold gradient descent never changes it.

    Two points of the cloning manifold with equal :math:`R` are on one leaf. Buffers are left out.

    Example:
        >>> import pliant
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 1)).double()
        >>> x = torch.randn(8, 2).double()
        >>> wide = pliant.manifolds.clone(model, 2, x)
        >>> _ = wide.model.load_state_dict(pliant.manifolds.redistributed(wide.model, wide.partition), strict=False)
        >>> before, sgd = residual(wide.model, wide.partition), torch.optim.SGD(wide.model.parameters(), lr=0.1)
        >>> wide.model(x).square().mean().backward()
        >>> sgd.step()
        >>> after = residual(wide.model, wide.partition)
        >>> float(before["2.weight"].norm()) > 0.1, all(torch.allclose(after[name], before[name]) for name in before)
        (True, True)
    """
    trained = {name for name, _ in model.named_parameters()}
    off = normal_part(model, partition, "block_constant", state=state)
    return {name: value for name, value in off.items() if name in trained}


def distance(
    model: nn.Module, partition: Partition, kind: Kind = "both", *, state: Mapping[str, Tensor] | None = None
) -> Distance:
    """The Euclidean distance of the parameters to a manifold; buffers do not count.

    Being near says nothing about being trapped: normal directions of negative curvature lead away from it.

    Args:
        model: The model.
        partition: The partition of its units.
        kind: As for :func:`normal_part`.
        state: Other values than the model's own, by name.

    Example:
        >>> import pliant
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 1)).double()
        >>> wide = pliant.manifolds.clone(model, 2, torch.randn(3, 2).double())
        >>> round(distance(wide.model, wide.partition).total, 12)
        0.0
        >>> leaf = pliant.manifolds.redistributed(wide.model, wide.partition)  # unequal copies on the same manifold
        >>> [distance(wide.model, wide.partition, kind, state=leaf).total < 1e-9 for kind in ("both", "block_constant")]
        [True, False]
    """
    trained = {name for name, _ in model.named_parameters()}
    off = {k: v for k, v in normal_part(model, partition, kind, state=state).items() if k in trained}
    values = tensors_of(model) if state is None else state
    tensors = {name: float(torch.linalg.vector_norm(value.double())) for name, value in off.items()}
    scale = sum(float(torch.linalg.vector_norm(values[name].detach().double())) ** 2 for name in off) ** 0.5
    total = sum(value**2 for value in tensors.values()) ** 0.5
    return Distance(kind, total, total / scale if scale else 0.0, tensors)


def dimension(model: nn.Module, partition: Partition, kind: Kind = "both") -> int:
    """Number of dimensions of a manifold inside the space of all parameters of the model.

    A leaf of the cloning manifold has as many as the block-constant one.

    Example:
        >>> import pliant
        >>> model = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 1))
        >>> units = pliant.find_units(model, torch.randn(3, 2))
        >>> blocks = pliant.manifolds.partition(units, {"0": [0, 0, 0, 0], "2": [0, 0, 0, 0]})
        >>> dimension(model, blocks), dimension(model, blocks, "block_constant")  # of 37; 2.weight has 3 * 3 + 1, or 1
        (16, 7)
    """
    _check_kind(kind)
    blocks = block_structure(model, partition)
    return sum(
        blocks[name].dimension(kind) if name in blocks else parameter.numel()
        for name, parameter in model.named_parameters()
    )
