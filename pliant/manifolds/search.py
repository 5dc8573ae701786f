r"""Finding the blocks of a network that is on, or near, a cloning manifold.

The search is colour refinement. All units of a group begin in one block; a unit's signature is what the conditions
speak of (the sums of its incoming weights from each block, the sums of its outgoing weights to each block, its biases
and norm parameters), and blocks are split where signatures differ, in all groups at once, until none changes. At
tolerance zero that gives the coarsest partition whose cloning manifold the weights are on, redistributed clones
included. It is no exhaustive search: with a tolerance, another partition may be nearer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from pliant.errors import IllegalConfiguration
from pliant.manifolds.partition import Partition, canonical
from pliant.manifolds.projection import Distance, distance
from pliant.manifolds.structure import Side, block_structure, tensors_of
from pliant.units import UnitGraph, UnitGroup
from pliant.units.group import Role

__all__ = ["FoundPartition", "find_partition"]


@dataclass(frozen=True)
class FoundPartition:
    """The blocks that were found, beside those that chance gives.

    Attributes:
        partition: The blocks at ``tolerance``.
        distance: Distance of the weights to the cloning manifold of these blocks; an upper bound of the distance to
            the nearest one with so few blocks. ``None`` where every unit is a block of its own.
        cloned_fraction: Group name to the share of its units that are in a block with another one.
        null_cloned_fraction: The same for networks with these very weights, shuffled inside each tensor: the largest
            share over all shuffles. What does not exceed it is no sign of clones.
        tolerance: Largest distance of two signatures that counts as equal, relative to that of two random units.
        curve: ``(tolerance, number of blocks, distance)`` from strict to loose, for ``tolerance`` and the ``levels``.
    """

    partition: Partition
    distance: Distance | None
    cloned_fraction: Mapping[str, float]
    null_cloned_fraction: Mapping[str, float]
    tolerance: float
    curve: tuple[tuple[float, int, float], ...] = field(repr=False)

    @property
    def found(self) -> tuple[str, ...]:
        """The groups with more clones than every shuffled network has."""
        return tuple(name for name, share in self.cloned_fraction.items() if share > self.null_cloned_fraction[name])

    def __str__(self) -> str:
        if not self.found:
            return "no clones: no more than in shuffled networks with the same weights"
        rows = [
            f"{name}: {self.cloned_fraction[name]:.0%} of the units have a clone "
            f"(shuffled: {self.null_cloned_fraction[name]:.0%})"
            for name in self.found
        ]
        off = self.distance.relative if self.distance else 0.0
        return "\n".join([*rows, f"relative distance to that manifold {off:.1e}; near is not trapped"])


def find_partition(
    model: nn.Module,
    units: UnitGraph,
    *,
    tolerance: float = 0.1,
    num_shuffles: int = 5,
    levels: Sequence[float] = (),
    seed: int = 0,
) -> FoundPartition:
    """The clones of a network, when nobody says which units they are.

    Args:
        model: The model.
        units: Its unit graph.
        tolerance: Two units are clones when their signatures differ by less than this share of the median difference
            between units of the same group in shuffled networks.
        num_shuffles: Number of shuffled networks that the null baseline is taken over.
        levels: Further tolerances, for the curve of blocks against distance; each costs another search.
        seed: Seed of the shuffles.

    Returns:
        The blocks, the distance to their manifold, and the null baseline.

    Raises:
        IllegalConfiguration: If ``tolerance`` is not in [0, 1) or there is no shuffle.

    Example:
        >>> import pliant
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2)).double()
        >>> print(find_partition(model, pliant.find_units(model, torch.randn(3, 8).double())))
        no clones: no more than in shuffled networks with the same weights
        >>> wide = pliant.manifolds.clone(model, 2, torch.randn(3, 8).double())
        >>> find_partition(wide.model, wide.units).partition == wide.partition
        True
    """
    if not 0 <= tolerance < 1:
        raise IllegalConfiguration(f"tolerance={tolerance}: it must be at least 0 and below 1.")
    if num_shuffles < 1:
        raise IllegalConfiguration("num_shuffles: at least one shuffled network is needed to compare with.")
    state = {name: tensor.detach() for name, tensor in tensors_of(model).items()}
    generator = torch.Generator().manual_seed(seed)
    shuffles = [_shuffled(state, generator) for _ in range(num_shuffles)]
    scales = {group.name: _typical(group, shuffles) for group in units}
    nulls = [_refined(model, units, shuffled, scales, tolerance) for shuffled in shuffles]
    partition = _refined(model, units, state, scales, tolerance)
    curve = []
    for level in sorted({*levels, tolerance}):
        own = partition if level == tolerance else _refined(model, units, state, scales, level)
        off = 0.0 if own.is_trivial else distance(model, own).total
        curve.append((level, sum(own.num_blocks(group.name) for group in units), off))
    return FoundPartition(
        partition,
        None if partition.is_trivial else distance(model, partition),
        {group.name: partition.cloned_fraction(group.name) for group in units},
        {group.name: max(null.cloned_fraction(group.name) for null in nulls) for group in units},
        tolerance,
        tuple(curve),
    )


def _shuffled(state: Mapping[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
    """The same numbers in every tensor, in another order."""
    return {
        name: value.flatten()[torch.randperm(value.numel(), generator=generator).to(value.device)].view(value.shape)
        for name, value in state.items()
    }


def _typical(group: UnitGroup, shuffles: list[dict[str, Tensor]]) -> dict[tuple[str, int], float]:
    """The median distance between two units of a shuffled network, place by place."""
    found: dict[tuple[str, int], float] = {}
    for piece in group.slices:
        middles = []
        for state in shuffles:
            rows = _rows(state[piece.name], piece.dim, piece.positions())
            apart = torch.pdist(rows)
            middles.append(float(apart.median()) if len(apart) else 0.0)
        found[piece.name, piece.dim] = sum(middles) / len(middles)
    return found


def _rows(value: Tensor, dim: int, positions: Tensor) -> Tensor:
    """The entries that belong to each unit, ``[U, entries]``."""
    moved = value.movedim(dim, 0)
    return moved[positions.flatten().to(value.device)].reshape(len(positions), -1).double().cpu()


def _refined(
    model: nn.Module,
    units: UnitGraph,
    state: Mapping[str, Tensor],
    scales: Mapping[str, Mapping[tuple[str, int], float]],
    tolerance: float,
) -> Partition:
    """Split blocks by signature until nothing changes."""
    partition = Partition(units, {group.name: (0,) * group.size for group in units if group.site != "head_dims"})
    while True:
        blocks = block_structure(model, partition)
        labels: dict[str, tuple[int, ...]] = {}
        for name, old in partition.labels.items():
            group = units[name]
            same = torch.tensor(old)[:, None] == torch.tensor(old)[None, :]
            for piece in group.slices:
                scale = scales[name][piece.name, piece.dim]
                if piece.name not in blocks or not same.any():
                    continue
                own = blocks[piece.name]
                value = state[piece.name].double()
                for summed in _seen_from(piece.role):
                    rows = _rows(own.mean(value, *summed), piece.dim, piece.positions())
                    same &= torch.cdist(rows, rows) <= tolerance * scale + 1e-9 * float(rows.abs().max())
            labels[name] = _components(same)
        if labels == dict(partition.labels):
            return Partition(units, {name: own for name, own in labels.items() if len(set(own)) < len(own)})
        partition = Partition(units, labels)


def _seen_from(role: Role) -> tuple[tuple[Side, ...], ...]:
    """What is summed before units are compared: the other side of the weights, in blocks."""
    table: dict[Role, tuple[tuple[Side, ...], ...]] = {
        "incoming": (("sending",),),
        "outgoing": (("receiving",),),
        "carried": (("sending",), ("receiving",)),
        "both": (("sending",), ("receiving",)),
    }
    return table[role]


def _components(same: Tensor) -> tuple[int, ...]:
    """Connected components of a symmetric relation, numbered by their first member."""
    label = torch.arange(len(same))
    while True:
        lowest = torch.where(same, label[None, :], len(same)).min(1).values
        lowest = torch.minimum(lowest, label)
        if torch.equal(lowest, label):
            return canonical(label.tolist())
        label = lowest
