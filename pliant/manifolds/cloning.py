r"""Wider copies of a network that compute the same, and back.

Every unit is taken several times: its incoming weights are repeated, its outgoing weights divided among the copies,

.. math:: \tilde W_{(v,c'),(u,c)} = \lambda_{u,c}\, W_{vu}, \qquad \sum_c \lambda_{u,c} = 1,

with :math:`\lambda = 1/k` unless told otherwise. What a unit carries (norm parameters, running statistics) is
repeated. The copies of a unit are neighbours, so that norm groups and heads stay whole. A matrix that is an embedding
and the head at once cannot be divided: there the last norm before the head is divided by ``k``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pliant.errors import IllegalConfiguration, NotYetSupported
from pliant.manifolds.cloned_state import scaled_optimizer
from pliant.manifolds.partition import Partition, canonical
from pliant.manifolds.projection import Distance, distance
from pliant.manifolds.resize import new_shapes, resized
from pliant.manifolds.structure import block_structure, tensors_of
from pliant.manifolds.transfer import Transfer
from pliant.units import UnitGraph, find_units
from pliant.units.norms import affine_parameters, is_norm
from pliant.units.verify import Probe, relative_difference

__all__ = ["Clone", "Collapsed", "clone", "collapse"]

_TOLERANCE = 1e-12


@dataclass(frozen=True)
class Clone:
    """A wider network that computes the same.

    Attributes:
        model: The wider model, with its own parameters.
        units: Its unit graph.
        partition: The copies of each unit as blocks.
        optimizer: A copy of the optimizer over the wider model's parameters, state included; ``None`` if none was
            given.
        change: Largest relative difference of the outputs to the base's, in float64 on generic parameters, inputs and
            buffers, in evaluation and in training mode with dropout off.
    """

    model: nn.Module
    units: UnitGraph = field(repr=False)
    partition: Partition
    optimizer: Optimizer | None
    change: float


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
        change: Largest relative difference of the outputs on the example inputs, evaluation mode.
    """

    model: nn.Module
    units: UnitGraph = field(repr=False)
    optimizer: Optimizer | None
    distance: Distance
    change: float


def clone(
    model: nn.Module,
    factor: int | Mapping[str, int | Sequence[int]],
    example_inputs: Any,
    *,
    optimizer: Optimizer | None = None,
    units: UnitGraph | None = None,
    split: Mapping[str, Sequence[float]] | None = None,
    into: nn.Module | None = None,
) -> Clone:
    """A wider model that computes the same function, proved by running it.

    Args:
        model: Any model whose units are found; it is not changed.
        factor: Number of copies of every hidden unit, attention head and residual dimension; or by group, one number
            or one for each unit. Of nested groups (query heads in a key-value head) a single number multiplies the
            outer one. Dimensions inside a head stay as they are.
        example_inputs: One small batch, as for :func:`pliant.find_units`.
        optimizer: Optimizer of the model, to be copied along: first moments are divided by the number of copies of
            the receiving unit, second moments by its square, as the gradients of the copies are.
        units: The model's unit graph, if it has been found already.
        split: For a group, the share of the outgoing weights that each copy gets, ``[number of copies]``, in order;
            the shares of a unit's copies add up to one. Unequal shares leave the outgoing condition unfulfilled.
        into: A model of the wider shape to fill, where a copy of ``model`` cannot be widened by itself. It is changed.

    Returns:
        The clone.

    Raises:
        IllegalConfiguration: For unknown groups, numbers below one, unequal multiplicities under a norm across units.
        NotYetSupported: If no wider network of this kind computes the same, with the reason.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)).double()
        >>> wide = clone(model, {"0": [1, 2, 3]}, torch.randn(4, 2).double())
        >>> wide.model[0].weight.shape, wide.partition.block_sizes("0")
        (torch.Size([6, 2]), (1, 2, 3))
        >>> x = torch.randn(5, 2).double()
        >>> bool((model(x) - wide.model(x)).abs().max() < 1e-12)
        True
    """
    units = units or find_units(model, example_inputs)
    counts = _counts(units, factor)
    _check_norms(model, units, counts)
    sizes = {name: sum(number) for name, number in counts.items()}
    wide = resized(model, units, new_shapes(model, units, counts), sizes) if into is None else into
    wide_units = _units_of(wide, units, sizes, example_inputs, "wider")
    blocks = Partition(wide_units, {name: canonical(_owners(number)) for name, number in counts.items()})
    view = _View(model, wide, units, blocks, split or {})
    state = {name: view.transfer.expand(name, tensor) * view.scale(name) for name, tensor in _detached(model).items()}
    change = _difference(model, wide, example_inputs, view)
    if not change <= _TOLERANCE:
        raise NotYetSupported(
            f"a wider {type(model).__name__} with repeated units computes something else (outputs differ by "
            f"{change:.1e}): {_suspects(model)}. Clone some of its groups only, by name: {', '.join(counts)}."
        )
    _fill(wide, state)
    made = None
    if optimizer is not None:
        rates = {name: view.rate(name) for name, _ in model.named_parameters()}
        made = scaled_optimizer(optimizer, model, wide, view.transfer.expand, rates)
    return Clone(wide, wide_units, blocks, made, change)


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
    point has, and ``change`` says what that costs on the example inputs.

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
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)).double()
        >>> x = torch.randn(4, 2).double()
        >>> wide = clone(model, 3, x)
        >>> small = collapse(wide.model, wide.partition, x)
        >>> small.model[0].weight.shape, torch.allclose(small.model[0].weight, model[0].weight)
        (torch.Size([3, 2]), True)
    """
    units = partition.units
    blocks = block_structure(model, partition)
    partition = Partition(units, {name: partition.of(name) for name in partition.labels})
    sizes = {name: partition.num_blocks(name) for name in partition.labels}
    counts = {name: partition.block_sizes(name) for name in partition.labels}
    _check_norms(model, units, counts, collapsing=True)
    shares = {name: [1 / counts[name][block] for block in own] for name, own in partition.labels.items()}
    small = resized(model, units, new_shapes(model, units, shares), sizes) if into is None else into
    small_units = _units_of(small, units, sizes, example_inputs, "smaller")
    view = _View(small, model, small_units, partition, {})

    def merged(name: str, tensor: Tensor) -> Tensor:
        if name in blocks:
            tensor = blocks[name].mean(tensor, "receiving", "sending", "shared")
        return view.transfer.first(name, tensor)

    _fill(small, {n: merged(n, t) / view.transfer.first(n, view.scale(n, full=True)).to(t) for n, t in _detached(model).items()})
    made = None
    if optimizer is not None:
        rates = {n: 1 / view.transfer.first(n, view.rate(n, full=True)) for n, _ in model.named_parameters()}
        made = scaled_optimizer(optimizer, model, small, merged, rates)
    change = _difference(model, small, example_inputs)
    return Collapsed(small, small_units, made, distance(model, partition), change)


class _View:
    """A base, its wider copy, and what repetition does to their entries and to the gradients of these."""

    def __init__(
        self,
        base: nn.Module,
        wide: nn.Module,
        base_units: UnitGraph,
        blocks: Partition,
        split: Mapping[str, Sequence[float]],
    ) -> None:
        self.shapes = {name: tuple(tensor.shape) for name, tensor in tensors_of(wide).items()}
        base_shapes = {name: tuple(tensor.shape) for name, tensor in tensors_of(base).items()}
        self.transfer = Transfer(base_units, blocks.units, blocks.labels, base_shapes, self.shapes)
        self.equal: dict[str, Tensor] = {}
        for name, owners in blocks.labels.items():
            owner = torch.tensor(owners)
            self.equal[name] = 1 / torch.bincount(owner)[owner].double()
        self.shares = {**self.equal, **{name: _share(blocks, name, list(given)) for name, given in split.items()}}
        counts = {name: blocks.block_sizes(name) for name in blocks.labels}
        self.norms = _absorbing(base, base_units, counts)

    def scale(self, name: str, *, full: bool = False) -> Tensor:
        """The wide entries over those that they are copies of."""
        if name in self.norms:
            group = self.norms[name]
            factor = self.transfer.factor(name, {group: self.shares[group]}, ("carried",))
        else:
            factor = self.transfer.factor(name, self.shares, ("outgoing",))
        return factor.expand(self.shapes[name]) if full else factor

    def rate(self, name: str, *, full: bool = False) -> Tensor:
        """The gradients of the wide entries over those of the entries that they are copies of."""
        roles = () if name in self.norms else ("incoming", "carried", "both")
        factor = self.transfer.factor(name, self.equal, roles)
        return factor.expand(self.shapes[name]) if full else factor


def _share(blocks: Partition, name: str, given: list[float]) -> Tensor:
    """The share of each copy in its unit's outgoing weights."""
    if name not in blocks.labels or len(given) != len(blocks.labels[name]):
        has = len(blocks.labels[name]) if name in blocks.labels else "no"
        raise IllegalConfiguration(f"split[{name!r}] gives {len(given)} shares, and the group has {has} copies.")
    shares, owner = torch.tensor(given, dtype=torch.float64), torch.tensor(blocks.labels[name])
    total = torch.zeros(int(owner.max()) + 1, dtype=torch.float64).index_add_(0, owner, shares)
    if not bool(((total - 1).abs() <= 1e-12).all()):
        raise IllegalConfiguration(f"split[{name!r}]: the shares of the copies of one unit must add up to one.")
    return shares


def _detached(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach() for name, tensor in tensors_of(model).items()}


def _fill(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for name, tensor in tensors_of(model).items():
            tensor.copy_(state[name])


def _difference(model: nn.Module, other: nn.Module, example_inputs: Any, view: _View | None = None) -> float:
    """Largest relative difference of the outputs, both modes, float64, dropout off.

    With a view, of generic parameters and their wide copies; without, of the two models as they are (evaluation mode).
    """
    one, two = (Probe(item, example_inputs, 0, torch.float64) for item in (model, other))
    if view is not None:
        wide = {n: view.transfer.expand(n, t) for n, t in one.state.items()}
        wide = {n: t * view.scale(n) if t.dtype.is_floating_point and n in view.shapes else t for n, t in wide.items()}
        before, after = one.run(one.state), two.run(wide)
    else:
        states = [{n: t.double() if t.is_floating_point() else t for n, t in _all(item).items()} for item in (model, other)]
        before, after = one.run(states[0]), two.run(states[1])
        before, after = before[: len(before) // 2], after[: len(after) // 2]
    pairs = zip(before, after, strict=True)
    found = [relative_difference(a, b) if a.shape == b.shape else float("inf") for a, b in pairs]
    return float("nan") if any(value != value for value in found) else max(found, default=float("inf"))


def _suspects(model: nn.Module) -> str:
    names = sorted({type(module).__name__ for _, module in model.named_modules() if _ is not None})
    return f"some operation depends on how many units there are, in one of {', '.join(names)}"


def _all(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _counts(units: UnitGraph, factor: int | Mapping[str, int | Sequence[int]]) -> dict[str, list[int]]:
    if isinstance(factor, int):
        taken: set[tuple[str, int, int]] = set()
        chosen: dict[str, int | Sequence[int]] = {}
        for group in units:
            places = {(p.name, p.dim, at) for p in group.slices for row in p.table for at in row}
            if group.site != "head_dims" and not places & taken:
                chosen[group.name] = factor
                taken |= places
        factor = chosen
    counts = {}
    for name, number in factor.items():
        if name not in units:
            raise IllegalConfiguration(
                f"no unit group {name!r} to clone; there are: {', '.join(group.name for group in units)}."
            )
        if units[name].site == "head_dims":
            raise NotYetSupported(
                f"{name!r} are dimensions inside heads: more of them change the scale of the scores. Clone the heads."
            )
        each = [number] * units[name].size if isinstance(number, int) else [int(n) for n in number]
        if len(each) != units[name].size or min(each) < 1:
            raise IllegalConfiguration(
                f"{name!r} has {units[name].size} units: give one number of copies, or one for each, of 1 or more."
            )
        counts[name] = each
    return {name: each for name, each in counts.items() if max(each) > 1}


def _owners(number: Sequence[int]) -> list[int]:
    """For each new unit, the old one that it is a copy of: copies are neighbours."""
    return [unit for unit, copies in enumerate(number) for _ in range(copies)]


def _check_norms(
    model: nn.Module, units: UnitGraph, counts: Mapping[str, Sequence[int]], *, collapsing: bool = False
) -> None:
    """Norms across units see another mean and variance when units are not repeated equally often."""
    word = "blocks differ in size" if collapsing else "units are not copied equally often"
    for path, module in model.named_modules():
        if not is_norm(module) or isinstance(module, nn.modules.batchnorm._NormBase):
            continue
        if isinstance(module, nn.GroupNorm) and module.num_groups == module.num_channels:
            continue
        inside = [
            group for group in units if any(piece.name.rpartition(".")[0] == path for piece in group.slices)
        ]
        numbers = {n for group in inside for n in counts.get(group.name, [1])}
        if len(numbers) > 1:
            names = ", ".join(repr(group.name) for group in inside)
            raise IllegalConfiguration(
                f"the norm {path!r} takes its statistics over the units of {names}, whose {word} "
                f"({', '.join(map(str, sorted(numbers)))}): the function would change. Use one number for all of them."
            )


def _units_of(
    model: nn.Module, units: UnitGraph, sizes: Mapping[str, int], example_inputs: Any, what: str
) -> UnitGraph:
    try:
        found = find_units(model, example_inputs)
    except Exception as error:
        raise NotYetSupported(
            f"a {what} copy of {type(model).__name__} does not run ({str(error).splitlines()[0]}): the model says "
            f"somewhere how wide it is. Build the {what} model yourself and pass it with into=."
        ) from error
    for group in units:
        wanted = sizes.get(group.name, group.size)
        if group.name not in found or found[group.name].size != wanted:
            has = found[group.name].size if group.name in found else "no"
            raise NotYetSupported(
                f"the {what} copy of {type(model).__name__} has {has} units in {group.name!r} instead of {wanted}: the "
                f"model's structure fixes how they are grouped. Build the {what} model yourself and pass it with into=."
            )
    return found


def _absorbing(model: nn.Module, units: UnitGraph, counts: Mapping[str, Sequence[int]]) -> dict[str, str]:
    """Parameters of norms, to their group, that are divided instead of tied weights, which make units and read them."""
    result = {}
    for name in counts:
        group = units[name]
        tied = group.role("both")
        if not tied or max(counts[name]) == 1:
            continue
        own = {piece.name for piece in group.role("carried")}
        pairs = affine_parameters(dict(model.named_modules()), dict(model.named_parameters()))
        mine = [pair for pair in pairs if (pair.gain or pair.offset) in own]
        if not mine:
            raise NotYetSupported(
                f"tied weights: {tied[-1].name!r} makes the units of {name!r} and reads them, so that it can be neither "
                "repeated nor divided, and no norm stands between. Untie the weights, or clone other groups."
            )
        last = min(mine, key=lambda pair: units.depths.get(str(pair.gain or pair.offset), 0))
        result.update({item: name for item in last if item is not None})
    return result
