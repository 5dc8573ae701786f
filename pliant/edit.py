"""The one writer: everything that changes weights, norm parameters, buffers or optimizer moments goes through here.

Edits happen after the optimizer's step, in place, under ``no_grad``. Interventions say what (a mask of units, a
factor, new values); the editor knows where a unit lives, how it was initialised, and which optimizer state belongs
to it. On a CPU the units of a mask are read at once; on an accelerator nothing is read back: the caller bounds how
many units a mask can hold (``at_most``), and the rest is arithmetic on the device.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from pliant.errors import IllegalConfiguration
from pliant.events import EventLog
from pliant.optimizer_state import moments, restart
from pliant.units.group import TensorSlice, UnitGroup
from pliant.units.init import Init

__all__ = ["Editor"]


@dataclass(frozen=True)
class _Selection:
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


class Editor:
    """Edits tensors and the optimizer state that belongs to them.

    Args:
        tensors: Parameters and buffers by canonical name.
        owners: Parameter name to the optimizer that owns it.
        inits: Tensor name to its initial distribution.
        seeds: One seed per member (one for a single model).
        num_members: S for a stack of members, else ``None``.
        events: Where edits are logged.
        dry_run: Log, but change nothing.
    """

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        owners: Mapping[str, Optimizer],
        inits: Mapping[str, Init | None],
        seeds: Sequence[int],
        *,
        num_members: int | None,
        events: EventLog,
        dry_run: bool = False,
    ) -> None:
        self.tensors, self.owners, self.inits = tensors, owners, inits
        self.num_members, self.events, self.dry_run = num_members, events, dry_run
        self.live: Tensor | None = None
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

    # ---- per-unit edits ----
    def reset(
        self,
        group: UnitGroup,
        mask: Tensor,
        *,
        incoming: Literal["init", "zero", "keep"] = "init",
        bias: Literal["zero", "init", "keep"] = "zero",
        carried: Literal["init", "keep"] = "init",
        outgoing: Literal["zero", "keep"] = "zero",
        moments: Literal["zero", "keep"] = "zero",
        at_most: int | None = None,
        reason: str = "",
    ) -> None:
        """Give some units of a group a new life.

        Args:
            group: The group.
            mask: Which units, bool ``[U]`` or ``[S, U]``.
            incoming: Incoming weights: drawn from each layer's own initial distribution, zeroed, or kept.
            bias: The same for one-dimensional incoming tensors.
            carried: Norm affine parameters and running statistics: to their initial values, or kept.
            outgoing: Outgoing weights: zeroed (so that the network's function is kept where
                ``group.reset_preserves_function``), or kept.
            moments: Optimizer moments of everything that was written: cleared, or kept.
            at_most: Upper bound on the number of units per member; needed on accelerators to bound the work.
            reason: For the event log.

        Raises:
            IllegalConfiguration: If an initial distribution is needed and unknown.
            NotYetSupported: If the optimizer keeps state that cannot be reset.
        """
        selection = self._select(mask, at_most)
        if selection is None:
            return
        self.events.add(group.name, "reset", selection.units, selection.members, selection.active, reason)
        if self.dry_run:
            return
        with torch.no_grad():
            # outgoing last: where one matrix produces and consumes the units, what they send must end at zero
            for piece in sorted(group.slices, key=lambda piece: piece.role == "outgoing"):
                action = self._action(piece, incoming, bias, carried, outgoing)
                if action == "keep":
                    continue
                self._write(piece, selection, action)
                if moments == "zero":
                    for state in self._moments(piece.name):
                        self._fill(state, piece, selection, None)

    def scale(
        self, group: UnitGroup, factor: Tensor, *, role: Literal["incoming", "outgoing"] = "outgoing", reason: str = ""
    ) -> None:
        """Multiply the incoming (weights and biases) or outgoing weights of each unit by its factor.

        Args:
            group: The group.
            factor: ``[U]`` or ``[S, U]``.
            role: Which weights.
            reason: For the event log.
        """
        chosen = factor != 1
        selection = self._select(chosen, None)
        if selection is None:
            return
        self.events.add(group.name, "scale", selection.units, selection.members, selection.active, reason)
        if self.dry_run:
            return
        with torch.no_grad():
            for piece in group.role(role):
                tensor = self.tensors[piece.name]
                along = torch.ones(
                    (*factor.shape[:-1], tensor.shape[piece.dim]), dtype=factor.dtype, device=factor.device
                )
                table = self.table(piece, factor.device)
                along[..., table] = factor.unsqueeze(-1).expand(*factor.shape, table.shape[1])
                shape = [1] * tensor.ndim
                shape[piece.dim] = tensor.shape[piece.dim]
                if self.num_members is not None:
                    shape[0] = self.num_members
                along = along if self.live is None else 1 + (along - 1) * self.live
                tensor.mul_(along.view(shape).to(tensor))

    # ---- whole-tensor edits ----
    def shrink(self, names: Sequence[str], factors: Sequence[float]) -> None:
        """Multiply whole parameters by factors (weight decay, shrink)."""
        if self.dry_run or not names:
            return
        with torch.no_grad():
            if self.live is None:
                torch._foreach_mul_([self.tensors[name] for name in names], list(factors))
                return
            for name, factor in zip(names, factors, strict=True):
                self.tensors[name].mul_(1 + (factor - 1) * self.live)

    def assign(self, name: str, value: Tensor, *, moments: Literal["zero", "keep"] = "zero") -> None:
        """Overwrite a whole tensor in place.

        Args:
            name: Its canonical name.
            value: New values of the same shape.
            moments: Whether its optimizer moments (and Adam's step counter) restart too.
        """
        if self.dry_run:
            return
        with torch.no_grad():
            tensor = self.tensors[name]
            if self.live is not None:  # a skipped step changes nothing
                value = torch.where(self.live > 0, value.to(tensor), tensor)
            tensor.copy_(value)
            if moments == "zero" and name in self.owners:
                restart(self.owners[name], self.tensors[name], name)

    def draw(self, name: str) -> Tensor:
        """A whole tensor of fresh initial values, float32; one generator per member.

        Raises:
            IllegalConfiguration: If the initial distribution is unknown.
        """
        tensor, init = self.tensors[name], self.init_of(name)
        generators = self.generators(tensor.device)
        if self.num_members is None:
            return init.draw(tuple(tensor.shape), generators[0])
        return torch.stack([init.draw(tuple(tensor.shape[1:]), generator) for generator in generators])

    def init_of(self, name: str) -> Init:
        """The initial distribution of a tensor.

        Raises:
            IllegalConfiguration: If it is unknown.
        """
        init = self.inits.get(name)
        if init is None:
            raise IllegalConfiguration(
                f"how {name!r} was initialised is not known (it is not a parameter of a PyTorch layer), so it cannot "
                'be drawn anew. Say it, for example attach(..., init={"' + name + '": "kaiming_uniform"}).'
            )
        return init

    # ---- internals ----
    def _action(self, piece: TensorSlice, incoming: str, bias: str, carried: str, outgoing: str) -> str:
        if piece.role == "outgoing":
            return outgoing
        if piece.role == "carried":
            return carried
        lead = 0 if self.num_members is None else 1
        return bias if self.tensors[piece.name].ndim - lead == 1 else incoming

    def _write(self, piece: TensorSlice, selection: _Selection, action: str) -> None:
        tensor = self.tensors[piece.name]
        if action == "zero":
            self._fill(tensor, piece, selection, None)
            return
        if piece.role == "carried" and self.inits.get(piece.name) is None:
            return  # a constant of the model that merely has one entry per unit
        init = self.init_of(piece.name)
        self._fill(tensor, piece, selection, init)

    def _select(self, mask: Tensor, at_most: int | None) -> _Selection | None:
        if self.live is not None:
            mask = mask & (self.live > 0)
        if mask.device.type == "cpu":
            found = mask.nonzero()
            if not len(found):
                return None
            if self.num_members is None:
                return _Selection(found[:, 0], None, (len(found),), None)
            members = found[:, 0]
            counts = torch.bincount(members, minlength=self.num_members).tolist()
            return _Selection(found[:, 1], members, tuple(counts), None)
        bound = min(at_most or mask.shape[-1], mask.shape[-1])
        units = mask.to(torch.float32).topk(bound, dim=-1).indices
        active = mask.gather(-1, units)
        if self.num_members is None:
            return _Selection(units, None, (bound,), active)
        members = torch.arange(self.num_members, device=mask.device).repeat_interleave(bound)
        return _Selection(units.flatten(), members, (bound,) * self.num_members, active.flatten())

    def table(self, piece: TensorSlice, device: torch.device) -> Tensor:
        """A slice's positions ``[U, M]`` on a device."""
        key = (id(piece), device)  # hashing the whole table at every edit would cost more than the edit
        if key not in self._tables:
            self._tables[key] = piece.positions().to(device)
        return self._tables[key]

    def _fill(self, tensor: Tensor, piece: TensorSlice, selection: _Selection, init: Init | None) -> None:
        """Write fresh values (or zeros) to the positions of the selected units."""
        table = self.table(piece, selection.units.device)
        where = table.index_select(0, selection.units).flatten()
        lead = 0 if selection.members is None else 1
        view = tensor.movedim(piece.dim, lead)
        rest = tuple(view.shape[lead + 1 :])
        index: tuple[Tensor, ...] = (where,)
        if selection.members is not None:
            index = (selection.members.repeat_interleave(table.shape[1]), where)
        if init is None:
            new: Tensor | None = None
        elif init.kind == "constant":
            new = torch.full((1,), init.scale, dtype=tensor.dtype, device=tensor.device)
        else:
            generators = self.generators(tensor.device)
            drawn = [
                init.draw((count * table.shape[1], *rest), generator)
                for generator, count in zip(generators, selection.counts, strict=True)
                if count
            ]
            new = (drawn[0] if len(drawn) == 1 else torch.cat(drawn)).to(tensor.dtype)
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

    def _moments(self, name: str) -> Iterable[Tensor]:
        if name not in self.owners:
            return ()
        return moments(self.owners[name], self.tensors[name], name)
