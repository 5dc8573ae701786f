"""The one writer: everything that changes weights, norm parameters, buffers or optimizer moments goes through here.

Edits happen after the optimizer's step, in place, under ``no_grad``. Interventions say what (a mask of units, a
factor, new values); the editor knows where a unit lives, how it was initialised, and which optimizer state belongs
to it. How a unit's entries are read and written is :mod:`pliant.write`'s business.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from pliant.errors import IllegalConfiguration
from pliant.events import EventLog
from pliant.optimizer_state import moments, restart
from pliant.units.group import TensorSlice, UnitGroup
from pliant.units.init import Init
from pliant.write import Selection, Writer

__all__ = ["Editor"]


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
        self.writer = Writer(tensors, seeds, num_members=num_members)

    # ---- randomness ----
    def random_state(self) -> dict[str, list[Tensor]]:
        """State of all generators, by device."""
        return self.writer.random_state()

    def load_random_state(self, state: Mapping[str, Sequence[Tensor]]) -> None:
        """Restore :meth:`random_state`."""
        self.writer.load_random_state(state)

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
        selection = self.writer.select(mask, at_most, self.live)
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
                        self.writer.fill(state, piece, selection, None)

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
        selection = self.writer.select(factor != 1, None, self.live)
        if selection is None:
            return
        self.events.add(group.name, "scale", selection.units, selection.members, selection.active, reason)
        if self.dry_run:
            return
        with torch.no_grad():
            for piece in group.role(role):
                self.writer.multiply(piece, factor, self.live)

    # ---- whole-tensor edits ----
    def shrink(self, names: Sequence[str], factors: Sequence[float]) -> None:
        """Multiply whole parameters by factors (weight decay, shrink)."""
        if self.dry_run or not names:
            return
        with torch.no_grad():
            self.writer.shrink(names, factors, self.live)

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
            self.writer.assign(self.tensors[name], value, self.live)
            if moments == "zero" and name in self.owners:
                restart(self.owners[name], self.tensors[name], name)

    def draw(self, name: str) -> Tensor:
        """A whole tensor of fresh initial values, float32; one generator per member.

        Raises:
            IllegalConfiguration: If the initial distribution is unknown.
        """
        return self.writer.draw(self.tensors[name], self.init_of(name))

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

    def _write(self, piece: TensorSlice, selection: Selection, action: str) -> None:
        tensor = self.tensors[piece.name]
        if action == "zero":
            self.writer.fill(tensor, piece, selection, None)
            return
        if piece.role == "carried" and self.inits.get(piece.name) is None:
            return  # a constant of the model that merely has one entry per unit
        self.writer.fill(tensor, piece, selection, self.init_of(piece.name))

    def _moments(self, name: str) -> Iterable[Tensor]:
        if name not in self.owners:
            return ()
        return moments(self.owners[name], self.tensors[name], name)
