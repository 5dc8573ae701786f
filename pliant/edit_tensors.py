"""What is done to whole tensors: the half of the one writer that knows of no units, see :mod:`pliant.edit`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from pliant.errors import IllegalConfiguration, NotYetSupported
from pliant.events import EventLog
from pliant.limit import Before, Limit
from pliant.optimizer_state import Moment, MomentSpec, RestartPart, is_schedule_free, restart, restartable
from pliant.units.init import Init, directions
from pliant.write import Writer

__all__ = ["TensorEditor"]


class TensorEditor:
    """Edits whole tensors, their gradients, and the optimizer state that belongs to them.

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
        max_change: ``None``, or the largest change of the outputs that an edit may make: one that makes a larger one
            is taken back, bit by bit; of a reset of several units, as many stay as are within it together.

    Attributes:
        stepped: The optimizer that has just stepped, if any. What the units of another optimizer's parameters have
            as a gradient belongs to the old units: a reset clears it.
        declared: As given.
        averages: Tensors by name of copies that average the model over training, see
            :func:`pliant.averages.follow_resets`.
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
        max_change: float | None = None,
    ) -> None:
        self.tensors, self.owners, self.inits = tensors, owners, inits
        self.num_members, self.events, self.dry_run = num_members, events, dry_run
        self.seeds = tuple(seeds)
        self.live: Tensor | None = None
        self.stepped: Optimizer | None = None
        self.writer = Writer(tensors, seeds, num_members=num_members)
        self.declared, self._measure = declared, measure
        self._limit = None if max_change is None else Limit(max_change)
        self.averages: list[Mapping[str, Tensor]] = []
        self._has_two_points = any(is_schedule_free(owner) for owner in {id(o): o for o in owners.values()}.values())
        self._directions = directions(tensors.keys())

    # ---- randomness ----
    def random_state(self) -> dict[str, list[Tensor]]:
        """State of all generators, by device."""
        return self.writer.random_state()

    def load_random_state(self, state: Mapping[str, Sequence[Tensor]]) -> None:
        """Restore :meth:`random_state`."""
        self.writer.load_random_state(state)

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
        self._refuse_between("shrink", names)
        self._do("shrink", names, lambda: self.writer.shrink(names, factors, towards, self.live))

    def clamp(self, names: Sequence[str], bounds: Sequence[tuple[float, float]]) -> None:
        """Clip whole parameters.

        Args:
            names: Canonical names.
            bounds: The lowest and the highest value of each.
        """
        if not names:
            return
        self._refuse_between("clamp", names)
        self._do("clamp", names, lambda: self.writer.clamp(names, bounds, self.live))

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
        self._refuse_between("add noise to", names)

        def write() -> None:
            tensors = [self.tensors[name] for name in names]
            scaled = [replace(inits[name], scale=inits[name].scale * noise_scale) for name in names]
            terms = [self.writer.draw(tensor, init) for tensor, init in zip(tensors, scaled, strict=True)]
            self.writer.add(tensors, terms, self.live)

        self._do("add_noise", names, write)

    def add(self, names: Sequence[str], terms: Sequence[Tensor], *, reason: str = "") -> None:
        """Add to whole parameters: noise, or a step along a gradient of one's own; moments are kept.

        Args:
            names: Canonical names.
            terms: One tensor each, of the parameter's shape (the whole of it, if it is sharded).
            reason: For the event log.
        """
        if not names:
            return
        self._refuse_between("add to", names)
        self._do(
            "add", names, lambda: self.writer.add([self.tensors[name] for name in names], terms, self.live), reason
        )

    def assign(self, name: str, value: Tensor, *, moments: Literal["zero", "keep"] = "zero", reason: str = "") -> None:
        """Overwrite a whole tensor in place.

        Args:
            name: Its canonical name.
            value: New values of the same shape.
            moments: Whether its optimizer state (Adam's step counter included) restarts too.
            reason: For the event log.
        """
        if moments == "keep":
            self._refuse_between("overwrite", [name])

        def write() -> None:
            owner = self.owners.get(name) if moments == "zero" else None
            if owner is not None:  # before anything is written: what is not known is refused
                restartable(owner, self.tensors[name], name, self.declared)
            self.writer.assign(self.tensors[name], value, self.live)
            if owner is not None:
                restart(owner, self.tensors[name], name, self.declared, self.live)
            for moment in self._averages_of(name) if moments == "zero" else ():
                self.writer.assign(moment.value, self.tensors[name], self.live)

        self._do("assign", [name], write, reason)

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
        self._refuse_between("restart the state of", owned)
        if not self.dry_run:
            with torch.no_grad():
                for name in owned if part != "step" else ():  # before anything is written: what is not known is refused
                    restartable(self.owners[name], self.tensors[name], name, self.declared)
                for name in owned:
                    restart(self.owners[name], self.tensors[name], name, self.declared, self.live, part=part)
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
    def _do(self, action: str, names: Sequence[str], write: Callable[[], None], reason: str = "") -> None:
        """Write whole tensors, measure what it has changed, take it back if that is too much, and log it."""
        if self.dry_run:
            return self._log_tensors(action, names, reason, None)
        change = self._begin()
        before = None if self._limit is None else self._before(names)
        with torch.no_grad():
            write()
        measured = None if change is None else change()
        if self._limit is None or before is None or measured is None or self._limit.allows(measured):
            return self._log_tensors(action, names, reason, measured)
        before.restore()
        return self._log_tensors("undone", names, self._why_undone(action, reason), measured)

    def _before(self, names: Sequence[str]) -> Before:
        return Before(names, self.tensors, self.owners, self.writer, self.averages)

    def _why_undone(self, action: str, reason: str) -> str:
        assert self._limit is not None
        return f"{action}{f' ({reason})' if reason else ''} changes outputs by more than {self._limit.max_change:g}"

    def _averages_of(self, name: str) -> list[Moment]:
        """What copies of the model that average over training hold of a tensor: new weights have no past there."""
        return [Moment(average[name], "weights") for average in self.averages if name in average]

    def _refuse_between(self, verb: str, names: Sequence[str]) -> None:
        """Weights that lie between two points can be given a new life; to move them, both points would have to move."""
        for name in names if self._has_two_points else ():  # asked at every step by some methods
            if is_schedule_free(self.owners.get(name)):
                raise NotYetSupported(
                    f"{self.events.intervention} would {verb} {name!r}, which {type(self.owners[name]).__name__} keeps "
                    "at two points (an average and the iterate behind it): the edit would reach one, and fade. Of "
                    "schedule-free optimizers Pliant supports methods that reset units or single weights."
                )

    def _normal(self, name: str) -> Init:
        """A standard normal distribution that leaves the padding row of an embedding alone."""
        init = self.inits.get(name)
        return Init("normal", 1.0, None if init is None else init.padding)

    def _begin(self) -> Callable[[], Tensor] | None:
        return None if self._measure is None or self.dry_run else self._measure()

    def _log_tensors(self, action: str, names: Sequence[str], reason: str, change: Tensor | None) -> None:
        self.events.add_tensors(action, names, reason, change)
