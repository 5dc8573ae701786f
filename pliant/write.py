"""Reads and writes of the parts of tensors that belong to units: the only code that touches their values.

The editor says which units and what; here it becomes an access to memory. On a CPU the units of a mask are read at
once; on an accelerator nothing is read back: the caller bounds how many units a mask can hold (``at_most``), and the
rest is arithmetic on the device.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

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
        """Fresh initial values of a whole tensor, float32; one generator per member."""
        generators = self.generators(tensor.device)
        if self.num_members is None:
            return init.draw(tuple(tensor.shape), generators[0])
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
    def sum_abs(self, piece: TensorSlice) -> Tensor:
        """Sum of the absolute values that each unit owns in a slice, ``[U]`` or ``[S, U]``, at least float32."""
        tensor = self.tensors[piece.name]
        keep = tensor.ndim + piece.dim
        dims = [dim for dim in range(0 if self.num_members is None else 1, tensor.ndim) if dim != keep]
        sums = tensor.abs().sum(dims, dtype=torch.float64 if tensor.dtype == torch.float64 else torch.float32)
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
        lead = 0 if selection.members is None else 1
        view = tensor.movedim(piece.dim, lead)
        rest = tuple(view.shape[lead + 1 :])
        index: tuple[Tensor, ...] = (where,)
        if selection.members is not None:
            index = (selection.members.repeat_interleave(table.shape[1]), where)
        new = None if init is None else self._draw_units(tensor, selection, table.shape[1], rest, init)
        if selection.active is not None:
            keep = selection.active.repeat_interleave(table.shape[1]).view(-1, *([1] * len(rest)))
            new = torch.where(
                keep, torch.zeros((), dtype=tensor.dtype, device=tensor.device) if new is None else new, view[index]
            )
            view[index] = new
        elif new is None:
            view[index] = 0
        else:
            view[index] = new

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
        shape = [1] * tensor.ndim
        shape[piece.dim] = tensor.shape[piece.dim]
        if self.num_members is not None:
            shape[0] = self.num_members
        along = along if live is None else 1 + (along - 1) * live
        tensor.mul_(along.view(shape).to(tensor))

    def shrink(self, names: Sequence[str], factors: Sequence[float], live: Tensor | None) -> None:
        """Multiply whole tensors by factors."""
        if live is None:
            torch._foreach_mul_([self.tensors[name] for name in names], list(factors))
            return
        for name, factor in zip(names, factors, strict=True):
            self.tensors[name].mul_(1 + (factor - 1) * live)

    def assign(self, tensor: Tensor, value: Tensor, live: Tensor | None) -> None:
        """Overwrite a whole tensor in place; not where ``live`` is 0."""
        if live is not None:
            value = torch.where(live > 0, value.to(tensor), tensor)
        tensor.copy_(value)

    # ---- internals ----
    def _draw_units(
        self, tensor: Tensor, selection: Selection, width: int, rest: tuple[int, ...], init: Init
    ) -> Tensor:
        """Fresh values for every position of the selected units, ``[n * width, *rest]``."""
        if init.kind == "constant":
            return torch.full((1,), init.scale, dtype=tensor.dtype, device=tensor.device)
        drawn = [
            init.draw((count * width, *rest), generator)
            for generator, count in zip(self.generators(tensor.device), selection.counts, strict=True)
            if count
        ]
        return (drawn[0] if len(drawn) == 1 else torch.cat(drawn)).to(tensor.dtype)
