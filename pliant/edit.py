"""The one writer: everything that changes weights, norm parameters, buffers or optimizer moments goes through here.

Edits happen after the optimizer's step, in place, under ``no_grad``. Interventions say what (a mask of units, a
factor, new values); the editor knows where a unit lives, how it was initialised, and which optimizer state belongs
to it. How a unit's entries are read and written is :mod:`pliant.write`'s business.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from pliant.devices import can_read
from pliant.edit_tensors import TensorEditor
from pliant.errors import IllegalConfiguration, NotYetSupported
from pliant.optimizer_state import Moment, is_schedule_free, moments
from pliant.units.group import TensorSlice, UnitGroup
from pliant.units.init import Init
from pliant.write import Selection

__all__ = ["Editor"]


class Editor(TensorEditor):
    """Edits tensors and the optimizer state that belongs to them.

    Units: :meth:`reset` (wholly, or by a share), :meth:`scale`, :meth:`perturb`, :meth:`compensate`. Whole tensors:
    :meth:`shrink` (to the origin or towards other values), :meth:`add`, :meth:`add_noise`, :meth:`clamp`,
    :meth:`assign`. Single weights: :meth:`reset_weights`. The optimizer's state: :meth:`restart`. Gradients, before the
    step: :meth:`add_to_gradient`. Every edit is logged; with ``dry_run`` nothing else happens.

    Made as :class:`~pliant.edit_tensors.TensorEditor`.
    """

    # ---- units ----
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

        Entries that are incoming and outgoing weights of the same unit (a tied, transposed matrix: the role
        ``"both"``) count as incoming: zeros would leave the unit dead. ``group.reset_preserves_function`` is false
        there.

        Args:
            group: The group.
            mask: Which units, bool ``[U]`` or ``[S, U]``; or how far each goes towards its new life, a number in
                [0, 1]: every entry becomes ``(1 - share) * old + share * new``.
            incoming: Incoming weights: drawn from each layer's own initial distribution, zeroed, or kept.
            bias: The same for one-dimensional incoming tensors.
            carried: Norm affine parameters and running statistics: to their initial values, or kept.
            outgoing: Outgoing weights: zeroed (so that the network's function is kept where
                ``group.reset_preserves_function``), or kept. Those of a weight-normalised layer are drawn anew instead
                of zeroed: zeros have no direction.
            moments: Optimizer moments of everything that was written: ``"zero"`` gives them the values that new
                entries have in that optimizer (zero for most), ``"keep"`` keeps them.
            at_most: Upper bound on the number of units per member; needed on accelerators to bound the work.
            reason: For the event log.

        Raises:
            IllegalConfiguration: If an initial distribution is needed and unknown, or a share is out of range.
            NotYetSupported: If the optimizer keeps state that cannot be reset.
        """
        whole = mask.dtype == torch.bool
        selection = self.writer.select(mask if whole else mask > 0, at_most, self.live)
        if selection is None:
            return
        if not whole:
            self._shares(selection.of(mask))
            self._refuse_between("partly reset", group.tensors)

        def write(chosen: Selection) -> None:
            # outgoing last: where one matrix produces and consumes the units, what they send must end at zero
            share = None if whole else chosen.of(mask)
            pieces = sorted(group.slices, key=lambda piece: piece.role == "outgoing")
            actions = [self._action(piece, incoming, bias, carried, outgoing) for piece in pieces]
            states = [  # all of them before anything is written: what is not known is refused
                self._past(piece.name, moments) if action != "keep" else []
                for piece, action in zip(pieces, actions, strict=True)
            ]
            for piece, action, state in zip(pieces, actions, states, strict=True):
                if action != "keep":
                    self._write(piece, chosen, action, share)
                    self._clear_gradient(piece, chosen, share)
                    self._renew(state, piece, chosen, share)

        self._do_units(group, "reset" if whole else "partial_reset", selection, write, reason, in_parts=True)

    def scale(
        self, group: UnitGroup, factor: Tensor, *, role: Literal["incoming", "outgoing"] = "outgoing", reason: str = ""
    ) -> None:
        """Multiply the incoming (weights and biases) or outgoing weights of each unit by its factor; moments are kept.

        Args:
            group: The group.
            factor: ``[U]`` or ``[S, U]``.
            role: Which weights.
            reason: For the event log.
        """
        selection = self.writer.select(factor != 1, None, self.live)
        if selection is None:
            return
        self._refuse_between("scale", [piece.name for piece in group.role(role)])

        def write(chosen: Selection) -> None:
            for piece in group.role(role):
                self.writer.multiply(piece, factor, self.live)

        self._do_units(group, "scale", selection, write, reason)

    def perturb(
        self,
        group: UnitGroup,
        amount: Tensor,
        *,
        noise_scale: float = 1.0,
        moments: Literal["zero", "keep"] = "keep",
        at_most: int | None = None,
        reason: str = "",
    ) -> None:
        """Add to the incoming weights of some units a little of what they could have been born with.

        The noise comes from each tensor's own initial distribution; tensors that start at a constant (many biases)
        get none.

        Args:
            group: The group.
            amount: Which units, bool ``[U]`` or ``[S, U]``, or a factor of the noise for each unit.
            noise_scale: Factor of the noise for all units.
            moments: Optimizer moments of what was written: kept, or those of new entries.
            at_most: As for :meth:`reset`.
            reason: For the event log.

        Raises:
            IllegalConfiguration: If an initial distribution is unknown.
            NotYetSupported: If the optimizer keeps state that cannot be reset, and moments are to be cleared.
        """
        selection = self.writer.select(amount != 0, at_most, self.live)
        if selection is None or noise_scale == 0:
            return
        self._refuse_between("perturb", [piece.name for piece in group.role("incoming")])

        def write(chosen: Selection) -> None:
            share = chosen.of(amount).to(torch.float64 if amount.dtype == torch.float64 else torch.float32)
            pieces = [piece for piece in group.role("incoming") if self.init_of(piece.name).kind != "constant"]
            states = [self._moments(piece.name) if moments == "zero" else [] for piece in pieces]
            for piece, state in zip(pieces, states, strict=True):
                tensor, init = self.tensors[piece.name], self.init_of(piece.name)
                self.writer.fill(tensor, piece, chosen, init, share * noise_scale, add=True)
                self._renew(state, piece, chosen, None)

        self._do_units(group, "perturb", selection, write, reason)

    def compensate(self, group: UnitGroup, activation: Tensor, *, reason: str = "") -> None:
        r"""Move what units send on average into the biases of the layers that read them, before a reset takes it away.

        .. math:: b_k \leftarrow b_k + \sum_i w^{out}_{ki} a_i

        Exact where the layer reads the activation as it is and has a bias of its own; other layers, and those whose
        bias nobody trains, are left alone. At the border of a padded convolution less was sent than is added.

        Args:
            group: The group.
            activation: :math:`a_i`, ``[U]`` or ``[S, U]``; 0 for units that stay.
            reason: For the event log.
        """
        found = [(piece, bias) for piece in group.role("outgoing") if (bias := self._bias_beside(piece)) is not None]
        self._refuse_between("add to", [name for _, (name, _) in found])

        def write() -> None:
            for piece, (name, out) in found:
                self.writer.add([self.tensors[name]], [self.writer.sent(piece, activation, out)], self.live)

        if found:
            self._do("add", [name for _, (name, _) in found], write, reason)

    def _bias_beside(self, piece: TensorSlice) -> tuple[str, int] | None:
        """The bias of the layer that an outgoing weight belongs to, and the weight's dimension of its entries."""
        module, _, leaf = piece.name.rpartition(".")
        name, weight = f"{module}.bias", self.tensors[piece.name]
        depth = weight.ndim - (self.num_members is not None)
        if leaf != "weight" or name not in self.owners or depth < 2 or piece.dim not in (-depth, 1 - depth):
            return None
        out = -depth if piece.dim == 1 - depth else 1 - depth
        return (name, out) if self.tensors[name].shape[-1] == weight.shape[out] else None

    # ---- single weights ----
    def reset_weights(
        self,
        name: str,
        mask: Tensor,
        *,
        to: Literal["init", "zero"] | Tensor = "init",
        moments: Literal["zero", "keep"] = "zero",
        reason: str = "",
    ) -> None:
        """Give single weights of a tensor new values.

        Args:
            name: The tensor's canonical name.
            mask: Which entries, bool of the tensor's shape.
            to: Drawn from the tensor's own initial distribution, zero, or the entries of another tensor of its shape.
            moments: Optimizer moments of these entries: those of new entries, or kept.
            reason: For the event log.

        Raises:
            IllegalConfiguration: If the mask does not fit, or the initial distribution is needed and unknown.
            NotYetSupported: If the optimizer keeps state that cannot be reset.
        """
        tensor = self.tensors[name]
        if mask.dtype != torch.bool or mask.shape != tensor.shape:
            raise IllegalConfiguration(
                f"a mask for {name!r} is bool {tuple(tensor.shape)}; this one is {mask.dtype} {tuple(mask.shape)}."
            )
        source = (self.init_of(name) if to == "init" else None) if isinstance(to, str) else to
        if can_read(mask) and not bool(mask.any()):
            return

        def write() -> None:
            state = self._past(name, moments)
            self.writer.fill_weights(tensor, mask, source, self.live)
            for moment in state:
                self.writer.fill_weights(moment.value, mask, _source(moment, tensor), self.live)

        self._do("reset_weights", [name], write, reason)

    # ---- internals ----
    def _action(self, piece: TensorSlice, incoming: str, bias: str, carried: str, outgoing: str) -> str:
        if piece.role == "outgoing":
            return "init" if outgoing == "zero" and piece.name in self._directions else outgoing
        if piece.role == "carried":
            return carried
        rank = piece.rank(self.tensors[piece.name], is_stack=self.num_members is not None)
        return bias if rank == 1 else incoming

    def _write(self, piece: TensorSlice, selection: Selection, action: str, share: Tensor | None) -> None:
        if piece.role == "carried" and self.inits.get(piece.name) is None:
            return  # a constant of the model that merely has one entry per unit
        init = None if action == "zero" else self.init_of(piece.name)
        self.writer.fill(self.tensors[piece.name], piece, selection, init, share)

    def _renew(self, state: Sequence[Moment], piece: TensorSlice, selection: Selection, share: Tensor | None) -> None:
        for moment in state:
            self.writer.fill(moment.value, piece, selection, _source(moment, self.tensors[piece.name]), share)

    def _clear_gradient(self, piece: TensorSlice, selection: Selection, share: Tensor | None) -> None:
        """Gradients that wait for another optimizer's step are those of the old units."""
        owner, gradient = self.owners.get(piece.name), self.tensors[piece.name].grad
        if self.stepped is None or owner is None or owner is self.stepped or gradient is None:
            return
        if gradient.is_sparse:
            if piece.dim != -1 or gradient.dense_dim() != 1:
                raise NotYetSupported(
                    f"{piece.name!r} has a sparse gradient that waits for another optimizer's step, and its units lie "
                    "along the sparse dimension. Let one optimizer own the unit group, or use dense gradients."
                )
            gradient = gradient._values()
        self.writer.fill(gradient, piece, selection, None, share)

    def _moments(self, name: str) -> list[Moment]:
        if name not in self.owners:
            return []
        return moments(self.owners[name], self.tensors[name], name, self.declared)

    def _past(self, name: str, moments: str) -> list[Moment]:
        """What remembers a tensor's old entries: its moments (unless they are kept), and averages over training.

        The points of a schedule-free optimizer are weights, so that they are never kept.
        """
        kept = moments == "keep" and not (self._has_two_points and is_schedule_free(self.owners.get(name)))
        return ([] if kept else self._moments(name)) + self._averages_of(name)

    def _shares(self, share: Tensor) -> Tensor:
        if can_read(share) and not bool((share <= 1).all()):
            raise IllegalConfiguration("a reset goes by a share in [0, 1] of each unit, or by a bool mask.")
        return share

    def _do_units(
        self,
        group: UnitGroup,
        action: str,
        selection: Selection,
        write: Callable[[Selection], None],
        reason: str,
        *,
        in_parts: bool = False,
    ) -> None:
        """Edit units, measure what it has changed, take back what is too much, and log both."""
        change = self._begin()
        if not self.dry_run and (change is None or self._limit is None):
            with torch.no_grad():
                write(selection)
        if change is None or self._limit is None:
            self._log(group, action, selection, reason, None if change is None else change())
            return
        everything = torch.arange(len(selection.units), device=selection.units.device)
        if not in_parts:
            before = self._before(group.tensors)
            with torch.no_grad():
                write(selection)
            measured = change()
            done = everything if self._limit.allows(measured) else everything[:0]
            if not len(done):
                before.restore()
            found: tuple[Tensor, Tensor | None, Tensor | None] = done, measured, measured
        else:
            with torch.no_grad():
                found = self._limit.fitting(
                    everything,
                    lambda places: write(selection.part(places)),
                    change,
                    lambda: self._before(group.tensors),
                )
        done, measured_done, refused = found
        if len(done):
            self._log(group, action, selection.part(done), reason, measured_done)
        left = everything[~torch.isin(everything, done)]
        if len(left):
            self._log(group, "undone", selection.part(left), self._why_undone(action, reason), refused)

    def _log(self, group: UnitGroup, action: str, chosen: Selection, reason: str, change: Tensor | None) -> None:
        self.events.add(group.name, action, chosen.units, chosen.members, chosen.active, reason, change)


def _source(moment: Moment, tensor: Tensor) -> Init | Tensor | None:
    """Where fresh moments come from."""
    if isinstance(moment.fresh, str):
        return tensor
    return Init("constant", moment.fresh) if moment.fresh else None  # type: ignore[arg-type]
