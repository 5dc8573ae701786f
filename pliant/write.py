"""Reads and writes of the parts of tensors that belong to units: the only code that touches their values.

The editor says which units and what; here it becomes an access to memory. On a CPU the units of a mask are read at
once; on an accelerator nothing is read back: the caller bounds how many units a mask can hold (``at_most``), and the
rest is arithmetic on the device. Of a tensor that is sharded over processes each writes its own part; draws are those
of the whole tensor on every process, so that a sharded model gets the same values as one that is not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pliant.devices import can_read
from pliant.sharded import Entries, Part, here, part_like, part_of, shard_like, whole
from pliant.units.group import TensorSlice
from pliant.units.init import Init

__all__ = ["Selection", "Writer", "stream_of"]


@dataclass(frozen=True)
class Selection:
    """The units of a mask as flat lists, ordered by member.

    Attributes:
        units: Unit indices ``[n]``.
        members: Member indices ``[n]``, or ``None`` for a single model.
        counts: How many belong to each member (one entry for a single model).
        active: Which of them are really selected, or ``None`` if all.
    """

    units: Tensor
    members: Tensor | None
    counts: tuple[int, ...]
    active: Tensor | None
    _positions: dict[int, Tensor] = field(default_factory=dict, repr=False)

    def positions(self, piece: TensorSlice, table: Tensor) -> Tensor:
        """The positions of the units along a slice's dimension, flat; worked out once for weights and moments."""
        key = id(piece)  # the group keeps it alive while this selection is in use
        if key not in self._positions:
            self._positions[key] = table.index_select(0, self.units).flatten()
        return self._positions[key]

    def part(self, places: Tensor) -> Selection:
        """Some of the units of a single model, by their places in the list."""
        active = None if self.active is None else self.active[places]
        return Selection(self.units[places], self.members, (len(places),), active)

    def of(self, values: Tensor) -> Tensor:
        """The selected entries ``[n]`` of something per unit, ``[U]`` or ``[S, U]``."""
        return values[self.units] if self.members is None else values[self.members, self.units]


def stream_of(seed: int) -> int:
    """The seed of the generator that belongs to a user's seed.

    It must not be the same number: ``torch.manual_seed(0)`` made the network's initial weights, and a generator seeded
    with 0 would hand them out a second time, so that fresh units would be copies of the first ones.
    """
    return (seed * 0x9E3779B97F4A7C15 + 0xD1B54A32D192ED03) % 2**63


class Writer:
    """Reads and writes by unit; call the writing methods under ``torch.no_grad``.

    Args:
        tensors: Parameters and buffers by canonical name.
        seeds: One seed per member (one for a single model).
        num_members: S for a stack of members, else ``None``.
    """

    def __init__(self, tensors: Mapping[str, Tensor], seeds: Sequence[int], *, num_members: int | None) -> None:
        self.tensors, self.num_members = tensors, num_members
        self._seeds = tuple(seeds)
        self._generators: dict[torch.device, list[torch.Generator]] = {}
        self._tables: dict[tuple[int, torch.device], tuple[TensorSlice, Tensor]] = {}

    # ---- randomness ----
    def generators(self, device: torch.device) -> list[torch.Generator]:
        """One generator per member on a device, made at first use."""
        if device not in self._generators:
            self._generators[device] = [torch.Generator(device).manual_seed(stream_of(seed)) for seed in self._seeds]
        return self._generators[device]

    def random_state(self) -> dict[str, list[Tensor]]:
        """State of all generators, by kind of device: processes on different devices must have the same names."""
        return {
            name: [generator.get_state() for generator in self.generators(device)]
            for name, device in self._devices().items()
        }

    def load_random_state(self, state: Mapping[str, Sequence[Tensor]]) -> None:
        """Restore :meth:`random_state`."""
        for name, device in self._devices().items():
            for generator, saved in zip(self.generators(device), state[name], strict=True):
                generator.set_state(saved.cpu())

    def _devices(self) -> dict[str, torch.device]:
        """Where tensors are: ``"cuda"`` is the process's first one, ``"cuda:1"`` its second one, of whatever index."""
        found: dict[str, torch.device] = {}
        counts: dict[str, int] = {}
        for device in sorted({tensor.device for tensor in self.tensors.values()}, key=str):
            count = counts[device.type] = counts.get(device.type, -1) + 1
            found[f"{device.type}:{count}" if count else device.type] = device
        return found

    def draw(self, tensor: Tensor, init: Init) -> Tensor:
        """Fresh initial values of a whole tensor, float32, sharded as it is; one generator per member."""
        generators = self.generators(tensor.device)
        if self.num_members is None:
            drawn = init.draw(tuple(tensor.shape), generators[0])
        else:
            drawn = torch.stack([init.draw(tuple(tensor.shape[1:]), generator) for generator in generators])
        if init.padding is not None:
            drawn[..., init.padding, :] = 0
        return shard_like(drawn, tensor) if self.num_members is None else drawn

    def uniform(self, device: torch.device) -> Tensor:
        """A number in [0, 1) for each member, float32 ``[]`` or ``[S]``, from each member's own generator."""
        drawn = [torch.rand((), generator=generator, device=device) for generator in self.generators(device)]
        return drawn[0] if self.num_members is None else torch.stack(drawn)

    # ---- units ----
    def select(self, mask: Tensor, at_most: int | None, live: Tensor | None) -> Selection | None:
        """The units of a mask.

        Args:
            mask: Bool ``[U]`` or ``[S, U]``.
            at_most: Upper bound on the number of units per member; needed on accelerators to bound the work.
            live: ``None``, or a device scalar: nothing is selected where it is 0.

        Returns:
            The selection, or ``None`` where it is known to be empty.
        """
        if live is not None:
            mask = mask & (live > 0)
        if can_read(mask):
            found = mask.nonzero()
            if not len(found):
                return None
            if self.num_members is None:
                return Selection(found[:, 0], None, (len(found),), None)
            members = found[:, 0]
            counts = torch.bincount(members, minlength=self.num_members).tolist()
            return Selection(found[:, 1], members, tuple(counts), None)
        bound = min(at_most or mask.shape[-1], mask.shape[-1])
        order = torch.arange(mask.shape[-1], 0, -1, device=mask.device)  # the selected ones first, by their number
        units = (mask * order).topk(bound, dim=-1).indices
        active = mask.gather(-1, units)
        if self.num_members is None:
            return Selection(units, None, (bound,), active)
        members = torch.arange(self.num_members, device=mask.device).repeat_interleave(bound)
        return Selection(units.flatten(), members, (bound,) * self.num_members, active.flatten())

    def table(self, piece: TensorSlice, device: torch.device) -> Tensor:
        """A slice's positions ``[U, M]`` on a device."""
        key = (id(piece), device)  # hashing the whole table at every edit would cost more than the edit
        if key not in self._tables:
            self._tables[key] = (piece, piece.positions().to(device))  # the piece stays alive, and so its id its own
        return self._tables[key][1]

    # ---- reads ----
    def whole(self, name: str) -> Tensor:
        """A tensor's values as a plain tensor; all processes must ask for a sharded one at once."""
        return whole(self.tensors[name])

    def sum_abs(self, piece: TensorSlice, tensor: Tensor | None = None) -> Tensor:
        """Sum of the absolute values that each unit owns in a slice, ``[U]`` or ``[S, U]``, at least float32.

        Args:
            piece: Which positions belong to each unit.
            tensor: Where they lie: the slice's tensor, unless another of its shape is given (its gradient).
        """
        tensor, part, others = _within(self.tensors[piece.name] if tensor is None else tensor, piece)
        local = tensor if part is None else part.local
        keep = tensor.ndim + piece.dim
        dims = [dim for dim in range(0 if self.num_members is None else 1, tensor.ndim) if dim != keep]
        dtype = torch.float64 if tensor.dtype == torch.float64 else torch.float32
        sums = local.abs().sum(dims, dtype=dtype) if dims else local.abs().to(dtype)
        if part is not None and part.dim is not None:
            if part.dim == keep:
                here, sums = sums, sums.new_zeros(tensor.shape[keep])
                part.cut(sums, 0).copy_(here)
            sums = part.total(sums)
        if others is not None:
            torch.distributed.all_reduce(sums, group=others)
        return sums[..., self.table(piece, sums.device)].sum(-1)

    def sent(self, piece: TensorSlice, activation: Tensor, out: int) -> Tensor:
        """What units send through a slice at constant activations, ``[O]`` or ``[S, O]``.

        Args:
            piece: Outgoing weights.
            activation: ``[U]`` or ``[S, U]``.
            out: The dimension of the weights, from the end, along which the receivers lie.
        """
        weight = self.whole(piece.name)
        table = self.table(piece, activation.device)
        along = activation.new_zeros(*activation.shape[:-1], weight.shape[piece.dim])
        along[..., table] = activation.unsqueeze(-1).expand(*activation.shape, table.shape[1])
        shape = [1] * weight.ndim
        shape[piece.dim] = weight.shape[piece.dim]
        if self.num_members is not None:
            shape[0] = self.num_members
        keep = weight.ndim + out
        dims = [dim for dim in range(0 if self.num_members is None else 1, weight.ndim) if dim != keep]
        return (weight * along.view(shape)).sum(dims)

    # ---- writes ----
    def fill(
        self,
        tensor: Tensor,
        piece: TensorSlice,
        selection: Selection,
        source: Init | Tensor | None,
        amount: Tensor | None = None,
        *,
        add: bool = False,
    ) -> None:
        """Write fresh values (or zeros) to the positions of the selected units.

        Args:
            tensor: The slice's tensor, or one of its moments.
            piece: Which positions belong to each unit.
            selection: Which units.
            source: Where fresh values come from: a distribution, another tensor of the same shape, or ``None`` for
                zeros.
            amount: ``None``, or how far each selected unit ``[n]`` goes from its old values to the fresh ones.
            add: Add the fresh values, times the amount, to the old ones instead.
        """
        tensor, part, _ = _within(tensor, piece)
        table = self.table(piece, selection.units.device)
        width, lead = table.shape[1], 0 if selection.members is None else 1
        positions = selection.positions(piece, table)
        index: tuple[Tensor, ...] = (positions,)
        if selection.members is not None:
            index = (selection.members.repeat_interleave(width), *index)
        active = None if selection.active is None else selection.active.repeat_interleave(width)
        shares = None if amount is None else amount.repeat_interleave(width)
        dim = tensor.ndim + piece.dim
        rest = tuple(size for other, size in enumerate(tensor.shape) if other >= lead and other != dim)
        new = self._draw_units(tensor, selection, width, rest, source) if isinstance(source, Init) else None
        if not lead and part is None and shares is None and active is None and not isinstance(source, Tensor):
            _fill_along(tensor, dim, positions, new)
            return
        if part is None:
            target = Entries(tensor.movedim(dim, lead), index, active)
        else:
            target = Entries.in_part(part, dim, index[0], active)
            new, shares = target.cut(new, values_have_rest=True), target.cut(shares)
        if isinstance(source, Tensor):
            new = target.read(_source_within(source, piece, part).movedim(dim, lead))
        target.write(new, shares, add)

    def multiply(self, piece: TensorSlice, factor: Tensor, live: Tensor | None) -> None:
        """Multiply what each unit owns in a slice by the unit's factor.

        Args:
            piece: Which positions belong to each unit.
            factor: ``[U]`` or ``[S, U]``.
            live: ``None``, or a device scalar: nothing changes where it is 0.
        """
        tensor, part, _ = _within(self.tensors[piece.name], piece)
        along = torch.ones((*factor.shape[:-1], tensor.shape[piece.dim]), dtype=factor.dtype, device=factor.device)
        table = self.table(piece, factor.device)
        along[..., table] = factor.unsqueeze(-1).expand(*factor.shape, table.shape[1])
        along = along if live is None else 1 + (along - 1) * live
        if part is not None:
            along = part.cut(along, -1) if part.dim == tensor.ndim + piece.dim else along
            tensor = part.local
        shape = [1] * tensor.ndim
        shape[piece.dim] = tensor.shape[piece.dim]
        if self.num_members is not None:
            shape[0] = self.num_members
        tensor.mul_(along.view(shape).to(tensor))

    def fill_weights(self, tensor: Tensor, mask: Tensor, source: Init | Tensor | None, live: Tensor | None) -> None:
        """Write fresh values (or zeros) to single entries.

        Args:
            tensor: A parameter, or one of its moments.
            mask: Bool, of the tensor's shape.
            source: A distribution, another tensor of the same shape, or ``None`` for zeros.
            live: ``None``, or a device scalar: nothing changes where it is 0.
        """
        part = part_of(tensor)
        mine, chosen = part_like(tensor, part), part_like(mask, part)
        if live is not None:
            chosen = chosen & (live > 0)
        if isinstance(source, Init) and source.padding is not None:
            trained = torch.ones(tensor.shape, dtype=torch.bool, device=tensor.device)
            trained[..., source.padding, :] = False
            chosen = chosen & part_like(trained, part)
        if source is None or (isinstance(source, Init) and source.kind == "constant"):
            mine.masked_fill_(chosen, 0 if source is None else source.scale)
        elif isinstance(source, Init) and can_read(mine):  # as many draws as there are entries
            everywhere = chosen if part is None else whole(mask)
            counts = [int(everywhere.sum())] if self.num_members is None else everywhere.flatten(1).sum(1).tolist()
            generators = self.generators(tensor.device)
            drawn = torch.cat([source.draw((count,), item) for count, item in zip(counts, generators, strict=True)])
            if part is None:
                mine.masked_scatter_(chosen, drawn.to(tensor.dtype))
                return
            new = torch.zeros(tensor.shape, dtype=tensor.dtype).masked_scatter_(everywhere, drawn.to(tensor.dtype))
            mine.copy_(torch.where(chosen, part_like(new, part), mine))
        else:
            fresh = self.draw(tensor, source) if isinstance(source, Init) else source
            mine.copy_(torch.where(chosen, part_like(fresh, part).to(mine.dtype), mine))

    def shrink(
        self,
        names: Sequence[str],
        factors: Sequence[float | Tensor],
        towards: Sequence[Tensor] | None,
        live: Tensor | None,
    ) -> None:
        """Multiply whole tensors, or their differences to other tensors, by factors."""
        parts = [part_of(self.tensors[name]) for name in names]
        tensors = [part_like(self.tensors[name], part) for name, part in zip(names, parts, strict=True)]
        if towards is None and live is None and not any(isinstance(factor, Tensor) for factor in factors):
            torch._foreach_mul_(tensors, list(factors))  # type: ignore[arg-type]
            return
        if towards is not None and live is None and not isinstance(factors[0], Tensor) and len(set(factors)) == 1:
            ends = [part_like(end, part).to(own.dtype) for end, own, part in zip(towards, tensors, parts, strict=True)]
            torch._foreach_lerp_(tensors, ends, 1 - factors[0])
            return
        for index, (tensor, factor) in enumerate(zip(tensors, factors, strict=True)):
            if live is not None:
                factor = 1 + (factor - 1) * live
            if isinstance(factor, Tensor):
                factor = _cut_factor(factor, parts[index]).to(tensor.dtype)
            if towards is None:
                tensor.mul_(factor)
            else:
                tensor.lerp_(part_like(towards[index], parts[index]).to(tensor.dtype), 1 - factor)

    def clamp(self, names: Sequence[str], bounds: Sequence[tuple[float, float]], live: Tensor | None) -> None:
        """Clip whole tensors to intervals."""
        for name, (low, high) in zip(names, bounds, strict=True):
            tensor = here(self.tensors[name])
            if live is None:
                tensor.clamp_(low, high)
            else:
                tensor.copy_(torch.where(live > 0, tensor.clamp(low, high), tensor))

    def add(self, tensors: Sequence[Tensor], terms: Sequence[Tensor], live: Tensor | None) -> None:
        """Add to whole tensors (parameters, or their gradients) terms of their shapes."""
        parts = [part_of(tensor) for tensor in tensors]
        mine = [part_like(tensor, part) for tensor, part in zip(tensors, parts, strict=True)]
        added = [part_like(term, part).to(own.dtype) for term, own, part in zip(terms, mine, parts, strict=True)]
        torch._foreach_add_(mine, added if live is None else [term * live.to(term.dtype) for term in added])

    def assign(self, tensor: Tensor, value: Tensor, live: Tensor | None) -> None:
        """Overwrite a whole tensor in place; not where ``live`` is 0.

        Args:
            tensor: What is overwritten.
            value: New values of its shape; for a sharded tensor sharded likewise, or plain and the same on all
                processes.
            live: ``None``, or a device scalar.
        """
        part = part_of(tensor)
        tensor, value = part_like(tensor, part), part_like(value, part)
        if live is not None:
            value = torch.where(live > 0, value.to(tensor), tensor)
        tensor.copy_(value)

    # ---- internals ----
    def _draw_units(
        self, tensor: Tensor, selection: Selection, width: int, rest: tuple[int, ...], init: Init
    ) -> Tensor:
        """Fresh values for every position of the selected units, ``[n * width, *rest]``."""
        if init.kind == "constant":
            return torch.full((), init.scale, dtype=tensor.dtype, device=tensor.device)
        drawn = [
            init.draw((count * width, *rest), generator)
            for generator, count in zip(self.generators(tensor.device), selection.counts, strict=True)
            if count
        ]
        values = drawn[0] if len(drawn) == 1 else torch.cat(drawn)
        if init.padding is not None:  # the units lie along the other dimension of an embedding
            values[..., init.padding] = 0
        return values.to(tensor.dtype)


def _within(tensor: Tensor, piece: TensorSlice) -> tuple[Tensor, Part | None, Any]:
    """The part of a tensor in which a slice lies, what of it is in this process, and who may have it otherwise.

    Returns:
        A tensor of the part's whole shape (its values, unless it is sharded); the local part of a sharded tensor;
        and, where one process holds all of it, the processes that have to be asked for sums.
    """
    part = part_of(tensor)
    if piece.at is None or part is None:
        return piece.within(tensor), part, None
    dim, index = tensor.ndim + piece.at[0], piece.at[1]
    shape = [size for other, size in enumerate(tensor.shape) if other != dim]
    like = part.local.new_empty(()).expand(shape)
    if part.dim != dim:
        moved = part.dim if part.dim is None or part.dim < dim else part.dim - 1
        return like, Part(part.local.select(dim, index), moved, part.start, part.size, part.group), None
    is_here = part.start <= index < part.start + part.size
    values = part.local.select(dim, index - part.start) if is_here else part.local.new_zeros(shape)  # written to nobody
    return like, Part(values, None, 0, 0, None), part.group


def _source_within(source: Tensor, piece: TensorSlice, part: Part | None) -> Tensor:
    """What belongs in this process of a slice's part of another tensor of its shape."""
    tensor, own, _ = _within(source, piece)
    return part_like(tensor, part) if own is None else own.local


def _fill_along(tensor: Tensor, dim: int, positions: Tensor, new: Tensor | None) -> None:
    """Overwrite what lies at some positions of a dimension; the new values have these positions first."""
    if new is None:
        tensor.index_fill_(dim, positions, 0)
    elif not new.ndim:
        tensor.index_fill_(dim, positions, new)
    else:
        tensor.index_copy_(dim, positions, new if not dim else new.movedim(0, dim))


def _cut_factor(factor: Tensor, part: Part | None) -> Tensor:
    """What broadcasts to a whole tensor, for a part of it."""
    if part is None or part.dim is None or factor.ndim <= part.dim or factor.shape[part.dim] == 1:
        return factor
    return part.cut(factor, part.dim)
