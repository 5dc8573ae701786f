"""What repetition does to the entries of a network's tensors and to their gradients; shared by cloning and collapse."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from pliant.errors import IllegalConfiguration, NotYetSupported
from pliant.manifolds.partition import Partition
from pliant.manifolds.scores import ScoreScale
from pliant.manifolds.structure import tensors_of
from pliant.manifolds.transfer import Transfer
from pliant.units import UnitGraph, find_units
from pliant.units.export import as_call
from pliant.units.norms import affine_parameters, is_norm
from pliant.units.verify import Probe, relative_difference

__all__ = ["Repetition", "check_norms", "detached", "difference", "fill", "in_float64", "units_of"]


class Repetition:
    """A base, its wider copy, and what repetition does to their entries and to the gradients of these."""

    def __init__(
        self,
        base: nn.Module,
        wide: nn.Module,
        base_units: UnitGraph,
        blocks: Partition,
        split: Mapping[str, Sequence[float]],
        scores: Sequence[ScoreScale] = (),
    ) -> None:
        self.scores = scores
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

    def widened(self, name: str, tensor: Tensor) -> Tensor:
        """The wide tensor of a base's: copies, in their shares."""
        return self.transfer.expand(name, tensor) * self.scale(name).to(tensor.device)

    def scale(self, name: str, *, full: bool = False) -> Tensor:
        """The wide entries over those that they are copies of."""
        if name in self.norms:
            group = self.norms[name]
            factor = self.transfer.factor(name, {group: self.shares[group]}, ("carried",))
        else:
            factor = self.transfer.factor(name, self.shares, ("outgoing",)) * self._of_scores(name)
        return factor.expand(self.shapes[name]) if full else factor

    def rate(self, name: str, *, full: bool = False) -> Tensor:
        """The gradients of the wide entries over those of the entries that they are copies of."""
        roles = () if name in self.norms else ("incoming", "carried", "both")
        factor = self.transfer.factor(name, self.equal, roles) / self._of_scores(name)
        return factor.expand(self.shapes[name]) if full else factor

    def _of_scores(self, name: str) -> Tensor:
        """By what rows are multiplied that make queries and keys; it broadcasts."""
        shape = self.shapes[name]
        result = torch.ones([1] * len(shape), dtype=torch.float64)
        units = self.transfer.wide
        for item in self.scores:
            for dim in sorted({p.dim for p in units[item.group].slices if (p.name, p.role) == (name, "incoming")}):
                along = item.along(units, self.transfer.owners[item.group], name, dim, shape[dim])
                result = result * along.view([-1] + [1] * (-dim - 1))
        return result


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


def detached(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and floating-point buffers by canonical name, without gradients."""
    return {name: tensor.detach() for name, tensor in tensors_of(model).items()}


def fill(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Copy a state into a model that was made for it."""
    with torch.no_grad():
        for name, tensor in tensors_of(model).items():
            tensor.copy_(state[name])


def difference(model: nn.Module, other: nn.Module, example_inputs: Any, view: Repetition | None = None) -> float:
    """Largest relative difference of the outputs, float64, dropout off.

    With a view, of generic parameters and their wide copies on generic inputs, in both modes; without, of the two
    models as they are on these very inputs, in evaluation mode.
    """
    one, two = (Probe(item, example_inputs, 0, torch.float64) for item in (model, other))
    if view is not None:
        wide = {n: view.widened(n, t) if n in view.shapes else t for n, t in one.state.items()}
        before, after = one.run(one.state), two.run(wide)
    else:
        for probe in (one, two):
            probe.args, probe.kwargs = as_call(in_float64(example_inputs))
        states = [
            {n: t.double() if t.is_floating_point() else t for n, t in _all(item).items()} for item in (model, other)
        ]
        before, after = one.run(states[0]), two.run(states[1])
        before, after = before[: len(before) // 2], after[: len(after) // 2]
    pairs = zip(before, after, strict=True)
    found = [relative_difference(a, b) if a.shape == b.shape else float("inf") for a, b in pairs]
    return float("nan") if any(value != value for value in found) else max(found, default=float("inf"))


def in_float64(inputs: Any) -> Any:
    """A batch whose floating-point tensors are in double precision."""
    return pytree.tree_map(
        lambda leaf: leaf.double() if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf, inputs
    )


def _all(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def check_norms(
    model: nn.Module, units: UnitGraph, counts: Mapping[str, Sequence[int]], *, collapsing: bool = False
) -> None:
    """Norms across units see another mean and variance when units are not repeated equally often."""
    word = "blocks differ in size" if collapsing else "units are not copied equally often"
    for path, module in model.named_modules():
        if not is_norm(module) or isinstance(module, nn.modules.batchnorm._NormBase):
            continue
        if isinstance(module, nn.GroupNorm) and module.num_groups == module.num_channels:
            continue
        inside = [group for group in units if any(piece.name.rpartition(".")[0] == path for piece in group.slices)]
        numbers = {n for group in inside for n in counts.get(group.name, [1])}
        if len(numbers) > 1:
            names = ", ".join(repr(group.name) for group in inside)
            raise IllegalConfiguration(
                f"the norm {path!r} takes its statistics over the units of {names}, whose {word} "
                f"({', '.join(map(str, sorted(numbers)))}): the function would change. Use one number for all of them."
            )


def units_of(model: nn.Module, units: UnitGraph, sizes: Mapping[str, int], example_inputs: Any, what: str) -> UnitGraph:
    """The unit graph of a resized copy; a refusal where the copy does not run or its units are other ones."""
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
                f"tied weights: {tied[-1].name!r} makes the units of {name!r} and reads them, so that it can be "
                "neither repeated nor divided, and no norm stands between. Untie the weights, or clone other groups."
            )
        last = min(mine, key=lambda pair: units.depths.get(str(pair.gain or pair.offset), 0))
        result.update({item: name for item in last if item is not None})
    return result
