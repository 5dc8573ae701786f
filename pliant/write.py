"""Reads and writes of the parts of tensors that belong to units: the only code that touches their values.

The editor says which units and what; here it becomes an access to memory. On a CPU the units of a mask are read at
once; on an accelerator nothing is read back: the caller bounds how many units a mask can hold (``at_most``), and the
rest is arithmetic on the device. Of a tensor that is sharded over processes each writes its own part; draws are those
of the whole tensor on every process, so that a sharded model gets the same values as one that is not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pliant.sharded import Part, is_sharded, part_of, shard_like, whole
from pliant.units.group import TensorSlice
from pliant.units.init import Init

__all__ = ["Selection", "Writer"]


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
        self._tables: dict[tuple[int, torch.device], Tensor] = {}

    # ---- randomness ----
    def generators(self, device: torch.device) -> list[torch.Generator]:
        """One generator per member on a device, made at first use."""
        if device not in self._generators:
            self._generators[device] = [torch.Generator(device).manual_seed(seed) for seed in self._seeds]
        return self._generators[device]

    def random_state(self) -> dict[str, list[Tensor]]:
        """State of all generators, by device; those of devices not drawn on yet included, for they hold the seed."""
        for tensor in self.tensors.values():
            self.generators(tensor.device)
        return {str(device): [g.get_state() for g in found] for device, found in self._generators.items()}

    def load_random_state(self, state: Mapping[str, Sequence[Tensor]]) -> None:
        """Restore :meth:`random_state`."""
        self._generators.clear()
        for device, states in state.items():
            for generator, saved in zip(self.generators(torch.device(device)), states, strict=True):
                generator.set_state(saved.cpu())

    def draw(self, tensor: Tensor, init: Init) -> Tensor:
        """Fresh initial values of a whole tensor, float32, sharded as it is; one generator per member."""
        generators = self.generators(tensor.device)
        if self.num_members is None:
            return shard_like(init.draw(tuple(tensor.shape), generators[0]), tensor)
        return torch.stack([init.draw(tuple(tensor.shape[1:]), generator) for generator in generators])

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
        if mask.device.type == "cpu":
            found = mask.nonzero()
            if not len(found):
                return None
            if self.num_members is None:
                return Selection(found[:, 0], None, (len(found),), None)
            members = found[:, 0]
            counts = torch.bincount(members, minlength=self.num_members).tolist()
            return Selection(found[:, 1], members, tuple(counts), None)
        bound = min(at_most or mask.shape[-1], mask.shape[-1])
        units = mask.to(torch.float32).topk(bound, dim=-1).indices
        active = mask.gather(-1, units)
        if self.num_members is None:
            return Selection(units, None, (bound,), active)
        members = torch.arange(self.num_members, device=mask.device).repeat_interleave(bound)
        return Selection(units.flatten(), members, (bound,) * self.num_members, active.flatten())

    def table(self, piece: TensorSlice, device: torch.device) -> Tensor:
        """A slice's positions ``[U, M]`` on a device."""
        key = (id(piece), device)  # hashing the whole table at every edit would cost more than the edit
        if key not in self._tables:
            self._tables[key] = piece.positions().to(device)
        return self._tables[key]

    # ---- reads ----
    def whole(self, name: str) -> Tensor:
        """A tensor's values as a plain tensor; all processes must ask for a sharded one at once."""
        return whole(self.tensors[name])

    def sum_abs(self, piece: TensorSlice) -> Tensor:
        """Sum of the absolute values that each unit owns in a slice, ``[U]`` or ``[S, U]``, at least float32."""
        tensor = self.tensors[piece.name]
        part = part_of(tensor)
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
        return sums[..., self.table(piece, sums.device)].sum(-1)

    # ---- writes ----
    def fill(self, tensor: Tensor, piece: TensorSlice, selection: Selection, init: Init | None) -> None:
        """Write fresh values (or zeros) to the positions of the selected units.

        Args:
            tensor: The slice's tensor, or one of its moments.
            piece: Which positions belong to each unit.
            selection: Which units.
            init: Where fresh values come from; ``None`` writes zeros.
        """
        table = self.table(piece, selection.units.device)
        where = table.index_select(0, selection.units).flatten()
        active = None if selection.active is None else selection.active.repeat_interleave(table.shape[1])
        lead = 0 if selection.members is None else 1
        rest = tuple(tensor.movedim(piece.dim, lead).shape[lead + 1 :])
        new = None if init is None else self._draw_units(tensor, selection, table.shape[1], rest, init)
        part = part_of(tensor)
        if part is not None:
            _fill_part(part, tensor.ndim + piece.dim, where, new, active)
            return
        index: tuple[Tensor, ...] = (where,)
        if selection.members is not None:
            index = (selection.members.repeat_interleave(table.shape[1]), where)
        _put(tensor.movedim(piece.dim, lead), index, new, active)

    def multiply(self, piece: TensorSlice, factor: Tensor, live: Tensor | None) -> None:
        """Multiply what each unit owns in a slice by the unit's factor.

        Args:
            piece: Which positions belong to each unit.
            factor: ``[U]`` or ``[S, U]``.
            live: ``None``, or a device scalar: nothing changes where it is 0.
        """
        tensor = self.tensors[piece.name]
        along = torch.ones((*factor.shape[:-1], tensor.shape[piece.dim]), dtype=factor.dtype, device=factor.device)
        table = self.table(piece, factor.device)
        along[..., table] = factor.unsqueeze(-1).expand(*factor.shape, table.shape[1])
        along = along if live is None else 1 + (along - 1) * live
        part = part_of(tensor)
        if part is not None:
            along = part.cut(along, -1) if part.dim == tensor.ndim + piece.dim else along
            tensor = part.local
        shape = [1] * tensor.ndim
        shape[piece.dim] = tensor.shape[piece.dim]
        if self.num_members is not None:
            shape[0] = self.num_members
        tensor.mul_(along.view(shape).to(tensor))

    def shrink(self, names: Sequence[str], factors: Sequence[float], live: Tensor | None) -> None:
        """Multiply whole tensors by factors."""
        tensors = [_here(self.tensors[name]) for name in names]
        if live is None:
            torch._foreach_mul_(tensors, list(factors))
            return
        for tensor, factor in zip(tensors, factors, strict=True):
            tensor.mul_(1 + (factor - 1) * live)

    def assign(self, tensor: Tensor, value: Tensor, live: Tensor | None) -> None:
        """Overwrite a whole tensor in place; not where ``live`` is 0.

        Args:
            tensor: What is overwritten.
            value: New values of its shape; for a sharded tensor sharded likewise, or plain and the same on all
                processes.
            live: ``None``, or a device scalar.
        """
        if is_sharded(tensor) and not is_sharded(value):
            value = shard_like(value.to(tensor.device), tensor)
        tensor, value = _here(tensor), _here(value)
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
        return (drawn[0] if len(drawn) == 1 else torch.cat(drawn)).to(tensor.dtype)


def _here(tensor: Tensor) -> Tensor:
    """The values that this process holds."""
    part = part_of(tensor)
    return tensor if part is None else part.local


def _put(view: Tensor, index: tuple[Tensor, ...], new: Tensor | None, active: Tensor | None) -> None:
    """Write new values (``None``: zero) to some entries, ``[n, *rest]``; only where ``active``."""
    if active is None:
        if new is None:
            view[index] = 0
        else:
            view[index] = new
        return
    keep = active.view(-1, *([1] * (view.ndim - len(index))))
    value = torch.zeros((), dtype=view.dtype, device=view.device) if new is None else new
    view[index] = torch.where(keep, value, view[index])


def _fill_part(part: Part, dim: int, where: Tensor, new: Tensor | None, active: Tensor | None) -> None:
    """Write to the local part what belongs there of values for the whole tensor.

    Args:
        part: The local part.
        dim: The dimension of the units, counted from the front.
        where: Positions along it in the whole tensor ``[n]``.
        new: Values ``[n, *rest]`` of the whole tensor, with ``dim`` moved to the front; a scalar; or ``None`` for zero.
        active: Which positions are really written, or ``None`` if all.
    """
    view = part.local.movedim(dim, 0)
    if part.dim != dim:  # every unit is here, with a part of its entries
        if part.dim is not None and new is not None and new.ndim:
            new = part.cut(new, part.dim + 1 if part.dim < dim else part.dim)
        _put(view, (where,), new, active)
        return
    here = where - part.start
    inside = (here >= 0) & (here < part.size)
    if active is None:
        _put(view, (here[inside],), new[inside] if new is not None and new.ndim else new, None)
    elif part.size:  # nothing is read back from an accelerator: what is not here goes to a row that is thrown away
        grown = torch.cat([view, view.new_empty(1, *view.shape[1:])])
        _put(grown, (torch.where(inside & active, here, part.size),), new, None)
        view.copy_(grown[:-1])
