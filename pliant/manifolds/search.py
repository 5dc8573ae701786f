r"""Finding the blocks of a network that is on, or near, a cloning manifold.

The search is colour refinement. All units of a group begin in one block; a unit's signature is what the conditions
speak of (the sums of its incoming weights from each block, the sums of its outgoing weights to each block, its biases
and norm parameters), and blocks are split where signatures differ, in all groups at once, until none changes. At
tolerance zero that gives the coarsest partition whose cloning manifold the weights are on, redistributed clones
included. It is no exhaustive search: with a tolerance, another partition may be nearer.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from pliant.errors import IllegalConfiguration
from pliant.manifolds.partition import Partition
from pliant.manifolds.projection import Distance, distance
from pliant.manifolds.refinement import SearchKind, refine, typical
from pliant.manifolds.structure import block_structure, tensors_of
from pliant.manifolds.symmetry import Gauge, Symmetry
from pliant.units import UnitGraph

__all__ = ["FoundPartition", "find_partition"]


@dataclass(frozen=True)
class FoundPartition:
    """The blocks that were found, beside those that chance gives.

    Attributes:
        partition: The blocks at ``tolerance``.
        distance: Distance of the weights to the manifold of these blocks; an upper bound of the distance to the nearest
            one with so few blocks. Of ``unified``, where clones up to sign or scale were looked for. ``None`` where
            every unit is a block of its own.
        cloned_fraction: Group name to the share of its units that are in a block with another one.
        null_cloned_fraction: The same for networks with these very weights, shuffled inside each tensor: the largest
            share over all shuffles. What does not exceed it is no sign of clones.
        tolerance: Largest distance of two signatures that counts as equal, relative to that of two random units.
        curve: ``(tolerance, number of blocks, distance)`` from strict to loose, for ``tolerance`` and the ``levels``.
        factors: Group name to what each unit is times the first one of its block, ``[U]``: -1 up to sign, a positive
            number up to scale. Only groups that allow such a change.
        unified: Parameters and buffers of the same function in which such clones are plain ones; the model's own where
            there are none.

    Example:
        >>> import pliant
        >>> _ = torch.manual_seed(0)
        >>> model, x = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2)).double(), torch.randn(5, 8).double()
        >>> wide = pliant.manifolds.clone(model, {"0": [3, 1, 1, 1, 1, 1]}, x)  # one unit of six, three times
        >>> found = find_partition(wide.model, wide.units)
        >>> found.found, found.cloned_fraction, found.null_cloned_fraction
        (('0',), {'0': 0.375}, {'0': 0.0})
        >>> found.partition.block_sizes("0"), found.distance.relative < 1e-12
        ((3, 1, 1, 1, 1, 1), True)
    """

    partition: Partition
    distance: Distance | None
    cloned_fraction: Mapping[str, float]
    null_cloned_fraction: Mapping[str, float]
    tolerance: float
    curve: tuple[tuple[float, int, float], ...] = field(repr=False)
    factors: Mapping[str, tuple[float, ...]] = field(repr=False)
    unified: Mapping[str, Tensor] = field(repr=False)

    @property
    def found(self) -> tuple[str, ...]:
        """The groups with more clones than every shuffled network has."""
        return tuple(name for name, share in self.cloned_fraction.items() if share > self.null_cloned_fraction[name])

    def is_rescaled(self, group: str) -> bool:
        """Whether clones of a group have different sizes, so that gradient descent turns them apart."""
        return any(abs(abs(factor) - 1) > self.tolerance for factor in self.factors.get(group, ()))

    def __str__(self) -> str:
        if not self.found:
            return "no clones: no more than in shuffled networks with the same weights"
        rows = []
        for name in self.found:
            factors = self.factors.get(name, ())
            how = " up to sign" if any(factor < 0 for factor in factors) else ""
            if self.is_rescaled(name):
                sizes = [abs(factor) for factor in factors]
                how += (
                    f"{' and' if how else ' up to'} scale (factors {min(sizes):.2g} to {max(sizes):.2g}: one feature, "
                    "which gradient descent turns apart)"
                )
            rows.append(
                f"{name}: {self.cloned_fraction[name]:.0%} of the units have a clone{how} "
                f"(shuffled: {self.null_cloned_fraction[name]:.0%})"
            )
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
    up_to: Collection[Symmetry] = (),
    example_inputs: Any = None,
    candidates: Partition | None = None,
    kind: SearchKind = "both",
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
        up_to: ``"sign"``, ``"scale"`` or both: clones that differ by a sign or a positive factor are found, too, in the
            groups that allow such a change (:func:`~pliant.manifolds.unit_symmetries`); these are put into one form by
            their activations on ``example_inputs`` first. The shuffled networks are treated alike. Clones up to sign
            are held like clones; of those up to scale gradient descent turns the one away from the other.
        example_inputs: One small batch, for ``up_to``.
        candidates: Blocks to begin with, which the search only splits: cheaper where few units come into question.
        kind: ``"both"``: the cloning manifold. ``"incoming"``: units that give equal activations on any data, whatever
            reads them; gradient descent may separate these.

    Returns:
        The blocks, the distance to their manifold, and the null baseline.

    Raises:
        IllegalConfiguration: If ``tolerance`` is not in [0, 1), there is no shuffle, the units are not the model's, or
            ``up_to`` holds something else or comes without inputs.

    Example:
        >>> import pliant
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2)).double()
        >>> x = torch.randn(5, 8).double()
        >>> print(find_partition(model, pliant.find_units(model, x)))
        no clones: no more than in shuffled networks with the same weights
        >>> wide = pliant.manifolds.clone(model, 2, x)
        >>> find_partition(wide.model, wide.units).partition == wide.partition
        True
        >>> with torch.no_grad():
        ...     _ = wide.model[0].weight[1].mul_(3), wide.model[0].bias[1].mul_(3), wide.model[2].weight[:, 1].div_(3)
        >>> found = find_partition(wide.model, wide.units, up_to={"scale"}, example_inputs=x)
        >>> found.partition == wide.partition, round(found.factors["0"][1], 9)
        (True, 3.0)
    """
    if not 0 <= tolerance < 1:
        raise IllegalConfiguration(f"tolerance={tolerance}: it must be at least 0 and below 1.")
    if num_shuffles < 1:
        raise IllegalConfiguration("num_shuffles: at least one shuffled network is needed to compare with.")
    if kind not in ("both", "incoming"):
        raise IllegalConfiguration(f"kind={kind!r}: it is 'both' or 'incoming'.")
    start = candidates if candidates is not None else _everything(units)
    block_structure(model, start)  # refuses units of another model
    state = {name: tensor.detach() for name, tensor in tensors_of(model).items()}
    generator = torch.Generator().manual_seed(seed)
    gauge = Gauge(model, units, example_inputs, up_to) if up_to else None
    asked = {name for group in start.labels for name in units[group].tensors}
    moved = state if gauge is not None else {name: value for name, value in state.items() if name in asked}
    shuffles = [_shuffled(moved, generator) for _ in range(num_shuffles)]
    factors: dict[str, Tensor] = {}
    own_form = state
    if gauge is not None:
        factors = gauge.factors(state)
        own_form = gauge.changed(state, factors)
        shuffles = [gauge.changed(shuffled, gauge.factors(shuffled)) for shuffled in shuffles]
    scales = {name: typical(units[name], shuffles) for name in start.labels}

    def refined(values: Mapping[str, Tensor], level: float) -> Partition:
        return refine(model, start, values, scales, level, kind)

    nulls = [refined(shuffled, tolerance) for shuffled in shuffles]
    partition = refined(own_form, tolerance)
    curve = []
    for level in sorted({*levels, tolerance}):
        own = partition if level == tolerance else refined(own_form, level)
        unified = state if gauge is None else gauge.changed(state, _inside(own, factors))
        off = 0.0 if own.is_trivial else distance(model, own, kind, state=unified).total
        curve.append((level, sum(own.num_blocks(group.name) for group in units), off))
    inside = _inside(partition, factors)
    unified = state if gauge is None else gauge.changed(state, inside)
    return FoundPartition(
        partition,
        None if partition.is_trivial else distance(model, partition, kind, state=unified),
        {group.name: partition.cloned_fraction(group.name) for group in units},
        {group.name: max(null.cloned_fraction(group.name) for null in nulls) for group in units},
        tolerance,
        tuple(curve),
        {name: tuple(factor.tolist()) for name, factor in inside.items()},
        unified,
    )


def _everything(units: UnitGraph) -> Partition:
    """All units of a group in one block; dimensions inside heads and single experts of a stack are left out."""
    chosen = [g for g in units if g.site != "head_dims" and g.size > 1 and all(p.at is None for p in g.slices)]
    return Partition(units, {group.name: (0,) * group.size for group in chosen})


def _inside(partition: Partition, factors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Factors beside the first unit of each block: units without a clone stay as they are."""
    found = {}
    for name, factor in factors.items():
        labels = partition.of(name)
        first = torch.tensor([labels.index(label) for label in labels])
        found[name] = factor / factor[first]
    return found


def _shuffled(state: Mapping[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
    """The same numbers in every tensor, in another order."""
    return {
        name: value.flatten()[torch.randperm(value.numel(), generator=generator).to(value.device)].view(value.shape)
        for name, value in state.items()
    }
