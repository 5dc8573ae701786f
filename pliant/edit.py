"""The one writer: everything that changes weights, norm parameters, buffers or optimizer moments goes through here.

Edits happen after the optimizer's step, in place, under ``no_grad``. Interventions say what (a mask of units, a
factor, new values); the editor knows where a unit lives, how it was initialised, and which optimizer state belongs
to it. How a unit's entries are read and written is :mod:`pliant.write`'s business.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from pliant.devices import can_read
from pliant.errors import IllegalConfiguration, NotYetSupported
from pliant.events import EventLog
from pliant.optimizer_state import Moment, MomentSpec, RestartPart, moments, restart, restartable
from pliant.units.group import TensorSlice, UnitGroup
from pliant.units.init import Init, directions
from pliant.write import Selection, Writer

__all__ = ["Editor"]


class Editor:
    """Edits tensors and the optimizer state that belongs to them.

    Units: :meth:`reset` (wholly, or by a share), :meth:`scale`, :meth:`perturb`. Whole tensors: :meth:`shrink` (to
    the origin or towards other values), :meth:`add`, :meth:`add_noise`, :meth:`clamp`, :meth:`assign`. Single weights:
    :meth:`reset_weights`. The optimizer's state: :meth:`restart`. Gradients, before the step: :meth:`add_to_gradient`.
    Every edit is logged; with ``dry_run`` nothing else happens.

    Args:
        tensors: Parameters and buffers by canonical name.
        owners: Parameter name to the optimizer that owns it.
        inits: Tensor name to its initial distribution.
        seeds: One seed per member (one for a single model).
        num_members: S for a stack of members, else ``None``.
        events: Where edits are logged.
        dry_run: Log, but change nothing.
        declared: Moments that the user has declared, see :func:`pliant.optimizer_state.moments`.
        measure: ``None``, or a function that gives the change of the outputs since it was last called; each edit is
            then measured.

    Attributes:
        stepped: The optimizer that has just stepped, if any. What the units of another optimizer's parameters have
            as a gradient belongs to the old units: a reset clears it.
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
        declared: MomentSpec = None,
        measure: Callable[[], Callable[[], Tensor]] | None = None,
    ) -> None:
        self.tensors, self.owners, self.inits = tensors, owners, inits
        self.num_members, self.events, self.dry_run = num_members, events, dry_run
        self.seeds = tuple(seeds)
        self.live: Tensor | None = None
        self.stepped: Optimizer | None = None
        self.writer = Writer(tensors, seeds, num_members=num_members)
        self._declared, self._measure = declared, measure
        self._directions = directions(tensors.keys())

    # ---- randomness ----
    def random_state(self) -> dict[str, list[Tensor]]:
        """State of all generators, by device."""
        return self.writer.random_state()

    def load_random_state(self, state: Mapping[str, Sequence[Tensor]]) -> None:
        """Restore :meth:`random_state`."""
        self.writer.load_random_state(state)

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
        share = None if whole else self._shares(selection.of(mask))
        change = self._begin()
        if not self.dry_run:
            with torch.no_grad():
                # outgoing last: where one matrix produces and consumes the units, what they send must end at zero
                pieces = sorted(group.slices, key=lambda piece: piece.role == "outgoing")
                actions = [self._action(piece, incoming, bias, carried, outgoing) for piece in pieces]
                states = [  # all of them before anything is written: what is not known is refused
                    self._moments(piece.name) if moments == "zero" and action != "keep" else []
                    for piece, action in zip(pieces, actions, strict=True)
                ]
                for piece, action, state in zip(pieces, actions, states, strict=True):
                    if action != "keep":
                        self._write(piece, selection, action, share)
                        self._clear_gradient(piece, selection, share)
                        self._renew(state, piece, selection, share)
        self._log(group, "reset" if whole else "partial_reset", selection, reason, change)

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
        change = self._begin()
        if not self.dry_run:
            with torch.no_grad():
                for piece in group.role(role):
                    self.writer.multiply(piece, factor, self.live)
        self._log(group, "scale", selection, reason, change)

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
        share = selection.of(amount).to(torch.float64 if amount.dtype == torch.float64 else torch.float32)
        change = self._begin()
        if not self.dry_run:
            with torch.no_grad():
                pieces = [piece for piece in group.role("incoming") if self.init_of(piece.name).kind != "constant"]
                states = [self._moments(piece.name) if moments == "zero" else [] for piece in pieces]
                for piece, state in zip(pieces, states, strict=True):
                    tensor, init = self.tensors[piece.name], self.init_of(piece.name)
                    self.writer.fill(tensor, piece, selection, init, share * noise_scale, add=True)
                    self._renew(state, piece, selection, None)
        self._log(group, "perturb", selection, reason, change)

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
        change = self._begin()
        if not self.dry_run:
            with torch.no_grad():
                state = self._moments(name) if moments == "zero" else []
                self.writer.fill_weights(tensor, mask, source, self.live)
                for moment in state:
                    self.writer.fill_weights(moment.value, mask, _source(moment, tensor), self.live)
        self._log_tensors("reset_weights", [name], reason, change)

    # ---- whole tensors ----
    def shrink(
        self, names: Sequence[str], factors: Sequence[float | Tensor], *, towards: Sequence[Tensor] | None = None
    ) -> None:
        """Multiply whole parameters by factors: weight decay, a projection to a norm, a pull to other values.

        Args:
            names: Canonical names.
            factors: One factor each: a number, or a tensor that broadcasts to the parameter (``[S, 1, 1]`` for a
                stack of members) where the host must not wait for it.
            towards: What is left where the factor is 0, instead of the origin: one tensor each, such as initial values.
        """
        if not names:
            return
        change = self._begin()
        if not self.dry_run:
            with torch.no_grad():
                self.writer.shrink(names, factors, towards, self.live)
        self._log_tensors("shrink", names, "", change)

    def clamp(self, names: Sequence[str], bounds: Sequence[tuple[float, float]]) -> None:
        """Clip whole parameters.

        Args:
            names: Canonical names.
            bounds: The lowest and the highest value of each.
        """
        if not names:
            return
        change = self._begin()
        if not self.dry_run:
            with torch.no_grad():
                self.writer.clamp(names, bounds, self.live)
        self._log_tensors("clamp", names, "", change)

    def add_noise(
        self, names: str | Sequence[str], noise_scale: float, *, noise: Literal["init", "normal"] = "init"
    ) -> None:
        """Add noise to whole tensors; moments are kept.

        Args:
            names: Canonical names, or one.
            noise_scale: Factor of the noise.
            noise: Fresh initial values of each tensor (tensors that start at a constant get none), or standard normal
                values for all of them.

        Raises:
            IllegalConfiguration: If an initial distribution is needed and unknown.
        """
        names = [names] if isinstance(names, str) else list(names)
        inits = {name: self.init_of(name) if noise == "init" else self._normal(name) for name in names}
        names = [name for name in names if inits[name].kind != "constant"]
        if noise_scale == 0 or not names:
            return
        change = self._begin()
        if not self.dry_run:
            with torch.no_grad():
                tensors = [self.tensors[name] for name in names]
                scaled = [replace(inits[name], scale=inits[name].scale * noise_scale) for name in names]
                terms = [self.writer.draw(tensor, init) for tensor, init in zip(tensors, scaled, strict=True)]
                self.writer.add(tensors, terms, self.live)
        self._log_tensors("add_noise", names, "", change)

    def add(self, names: Sequence[str], terms: Sequence[Tensor], *, reason: str = "") -> None:
        """Add to whole parameters: noise, or a step along a gradient of one's own; moments are kept.

        Args:
            names: Canonical names.
            terms: One tensor each, of the parameter's shape (the whole of it, if it is sharded).
            reason: For the event log.
        """
        if not names:
            return
        change = self._begin()
        if not self.dry_run:
            with torch.no_grad():
                self.writer.add([self.tensors[name] for name in names], terms, self.live)
        self._log_tensors("add", names, reason, change)

    def assign(self, name: str, value: Tensor, *, moments: Literal["zero", "keep"] = "zero", reason: str = "") -> None:
        """Overwrite a whole tensor in place.

        Args:
            name: Its canonical name.
            value: New values of the same shape.
            moments: Whether its optimizer state (Adam's step counter included) restarts too.
            reason: For the event log.
        """
        change = self._begin()
        if not self.dry_run:
            with torch.no_grad():
                owner = self.owners.get(name) if moments == "zero" else None
                if owner is not None:  # before anything is written: what is not known is refused
                    restartable(owner, self.tensors[name], name, self._declared)
                self.writer.assign(self.tensors[name], value, self.live)
                if owner is not None:
                    restart(owner, self.tensors[name], name, self._declared, self.live)
        self._log_tensors("assign", [name], reason, change)

    def restart(self, names: Sequence[str], *, part: RestartPart = "all", reason: str = "") -> None:
        """Put the optimizer's state of whole parameters back to where it was before the first step.

        Args:
            names: Canonical names; those that no optimizer owns have no state.
            part: Moments and step counters, the moments only, or only the counters (and what is computed from them).
            reason: For the event log.

        Raises:
            NotYetSupported: If the optimizer keeps state that cannot be reset; nothing has been changed then.
        """
        owned = [name for name in names if name in self.owners]
        if not owned:
            return
        if not self.dry_run:
            with torch.no_grad():
                for name in owned if part != "step" else ():  # before anything is written: what is not known is refused
                    restartable(self.owners[name], self.tensors[name], name, self._declared)
                for name in owned:
                    restart(self.owners[name], self.tensors[name], name, self._declared, self.live, part=part)
        self._log_tensors("restart", owned, reason, None)

    # ---- gradients, before the step ----
    def add_to_gradient(self, names: Sequence[str], terms: Sequence[Tensor], *, reason: str = "") -> None:
        """Add to the gradients of whole parameters, from ``before_step``.

        Parameters without a gradient are left alone, as the optimizer leaves them. Where a fused optimizer unscales
        the gradients of mixed precision itself, the terms are scaled like them.

        Args:
            names: Canonical names.
            terms: One tensor each, of the parameter's shape (the whole of it, if it is sharded).
            reason: For the event log.

        Raises:
            NotYetSupported: If a gradient is sparse.
        """
        found = [(name, self.tensors[name], term) for name, term in zip(names, terms, strict=True)]
        found = [(name, tensor, term) for name, tensor, term in found if tensor.grad is not None]
        if not found:
            return
        for name, tensor, _ in found:
            if tensor.grad.is_sparse:  # type: ignore[union-attr]
                raise NotYetSupported(
                    f"the gradient of {name!r} is sparse, and a dense term cannot be added to it. Leave the parameter "
                    "out with where=..., or use sparse=False."
                )
        if not self.dry_run:
            scales = [self.gradient_scale(name) for name, _, _ in found]
            with torch.no_grad():
                scaled = [
                    term if scale is None else term * scale for (_, _, term), scale in zip(found, scales, strict=True)
                ]
                self.writer.add([tensor.grad for _, tensor, _ in found], scaled, None)  # type: ignore[misc]
        self._log_tensors("add_to_gradient", [name for name, _, _ in found], reason, None)

    def gradient_scale(self, name: str) -> Tensor | None:
        """By what the gradient of a parameter is scaled at present, ``[]``; ``None`` if it is not.

        Mixed precision scales the loss, and ``GradScaler`` unscales the gradients before the step, unless the
        optimizer is a fused one, which does it itself.
        """
        scale = getattr(self.owners[name], "grad_scale", None)
        return scale.reshape(()) if isinstance(scale, Tensor) else None

    def draw(self, name: str) -> Tensor:
        """A whole tensor of fresh initial values, float32; one generator per member.

        Raises:
            IllegalConfiguration: If the initial distribution is unknown.
        """
        return self.writer.draw(self.tensors[name], self.init_of(name))

    def uniform(self, name: str) -> Tensor:
        """A number in [0, 1) for a decision about a tensor, ``[]`` or ``[S]``; one generator per member."""
        return self.writer.uniform(self.tensors[name].device)

    def is_direction(self, name: str) -> bool:
        """Whether only the direction of a tensor's rows counts (weight norm), so that they must not become zero."""
        return name in self._directions

    def draw_normal(self, like: Tensor) -> Tensor:
        """Standard normal values of a tensor's shape and type (at least float32), sharded as it is.

        They are drawn in float32, from one generator per member.
        """
        return self.writer.draw(like, Init("normal", 1.0)).to(torch.promote_types(like.dtype, torch.float32))

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
    def _normal(self, name: str) -> Init:
        """A standard normal distribution that leaves the padding row of an embedding alone."""
        init = self.inits.get(name)
        return Init("normal", 1.0, None if init is None else init.padding)

    def _action(self, piece: TensorSlice, incoming: str, bias: str, carried: str, outgoing: str) -> str:
        if piece.role == "outgoing":
            return "init" if outgoing == "zero" and piece.name in self._directions else outgoing
        if piece.role == "carried":
            return carried
        lead = 0 if self.num_members is None else 1
        return bias if self.tensors[piece.name].ndim - lead == 1 else incoming

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
        return moments(self.owners[name], self.tensors[name], name, self._declared)

    def _shares(self, share: Tensor) -> Tensor:
        if can_read(share) and not bool((share <= 1).all()):
            raise IllegalConfiguration("a reset goes by a share in [0, 1] of each unit, or by a bool mask.")
        return share

    def _begin(self) -> Callable[[], Tensor] | None:
        return None if self._measure is None or self.dry_run else self._measure()

    def _log(
        self, group: UnitGroup, action: str, chosen: Selection, reason: str, change: Callable[[], Tensor] | None
    ) -> None:
        measured = None if change is None else change()
        self.events.add(group.name, action, chosen.units, chosen.members, chosen.active, reason, measured)

    def _log_tensors(self, action: str, names: Sequence[str], reason: str, change: Callable[[], Tensor] | None) -> None:
        self.events.add_tensors(action, names, reason, None if change is None else change())


def _source(moment: Moment, tensor: Tensor) -> Init | Tensor | None:
    """Where fresh moments come from."""
    if isinstance(moment.fresh, str):
        return tensor
    return Init("constant", moment.fresh) if moment.fresh else None  # type: ignore[arg-type]
