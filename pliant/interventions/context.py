"""What an intervention sees of the run: the clock of an optimizer, statistics, its state, and the editor."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pliant.devices import can_read
from pliant.edit import Editor
from pliant.errors import IllegalConfiguration, NoEffect
from pliant.interventions.state import Memory, matches
from pliant.sharded import whole
from pliant.stats import Collector, GroupStats
from pliant.stats.capture import listening
from pliant.stats.reader import TapReader
from pliant.units.depth import module_of
from pliant.units.export import Inputs
from pliant.units.graph import UnitGraph
from pliant.units.group import UnitGroup

__all__ = ["Clock", "Context", "Progress", "Sample"]


class Clock:
    """Counts the real steps of one optimizer: skipped steps of mixed precision do not count.

    Attributes:
        step: Steps that the host knows of.
        real: The exact count on the device, int64 ``[]``, once a fused optimizer has been able to skip a step without
            the host knowing; ``None`` before.
    """

    def __init__(self) -> None:
        self.step = 0
        self.real: Tensor | None = None

    def advance(self, live: Tensor | None = None) -> int:
        """One more step, which is returned; ``live`` says (1 or 0, on the device) whether it changed anything."""
        if live is not None and self.real is None:
            self.real = torch.full((), self.step, dtype=torch.int64, device=live.device)
        self.step += 1
        if self.real is not None:
            self.real.add_(1 if live is None else live.to(torch.int64))
        return self.step

    def now(self) -> int | Tensor:
        """Real steps so far, a copy."""
        return self.step if self.real is None else self.real.clone()

    def every(self, period: int | None) -> bool:
        """Whether this step closes a period; never if the period is ``None``."""
        return period is not None and self.step > 0 and self.step % period == 0

    def next(self, period: int | None) -> int:
        """The first step after this one that closes a period; out of reach if the period is ``None``."""
        return sys.maxsize if period is None else (self.step // period + 1) * period


class Sample(NamedTuple):
    """A step whose statistics were wanted.

    Attributes:
        step: Its number.
        elapsed: Real steps since the sample before, this one included: an int, or an int64 scalar on the device where
            only the device knows.
        live: As in :class:`Context`, at that step.
    """

    step: int
    elapsed: int | Tensor
    live: Tensor | None


@dataclass
class Progress:
    """What a handle counts beside the clocks of its optimizers.

    Attributes:
        num_boundaries: Task boundaries so far.
        quiet_since: The step at which the quiet period began; -1 where there is none.
    """

    num_boundaries: int = 0
    quiet_since: int = -1

    @property
    def is_quiet(self) -> bool:
        """Whether nothing is to be edited at present."""
        return self.quiet_since >= 0


class Context:
    """What an intervention sees of the run: read anything, change only through ``edit``.

    Attributes:
        clock: Steps of the optimizer that owns the groups.
        units: The unit graph.
        edit: The writer.
        optimizer: The optimizer; ``index`` says which of the given ones.
        live: ``None``, or a device scalar that is 0 where a mixed-precision step was skipped and 1 otherwise;
            changes of state must be masked by it.
        elapsed: Real steps since this intervention last acted on this optimizer, this one included: an int, or an
            int64 scalar on the device where only the device knows.
        num_members: S for a stack of members, else ``None``.
        samples: In ``observe``, the steps to be observed, oldest first.
        loss: What the user gave to ``handle.penalty(loss=...)``, the loss that the term will be added to; else
            ``None``.
        reference: What the user gave to ``handle.penalty(reference=...)``, a batch of inputs; else ``None``.
        layer_types: Tensor name to the type of the module that owns it (of a parametrized one: the module itself).
        modules: The model's modules by name, to look at.
    """

    def __init__(
        self,
        *,
        units: UnitGraph,
        owned: frozenset[str],
        optimizer: Optimizer,
        index: int,
        parameters: Mapping[str, Tensor],
        edit: Editor,
        clock: Clock,
        memory: Memory,
        collector: Collector,
        forward: Callable[..., Any],
        modules: Mapping[str, nn.Module],
        num_members: int | None,
        layer_types: Mapping[str, type[nn.Module]],
        progress: Progress,
    ) -> None:
        self._progress = progress
        self.layer_types = layer_types
        self.units, self.clock, self.edit, self.num_members = units, clock, edit, num_members
        self.modules = modules
        self.live: Tensor | None = None
        self.elapsed: int | Tensor = 1
        self.task = 0
        self.samples: list[Sample] = []
        self.loss: Tensor | None = None
        self.reference: Inputs | None = None
        self.optimizer, self.index = optimizer, index
        self._owned, self._parameters = owned, parameters
        self._buffers: dict[str, Tensor] | None = None
        self._memory, self._collector, self._forward = memory, collector, forward
        self._stats, self._features = collector.stats, collector.features
        self._selected: dict[str, tuple[tuple[UnitGroup, ...], list[Tensor]]] = {}
        self._readers: dict[str, TapReader] = {}

    @property
    def is_quiet(self) -> bool:
        """Whether a quiet period is on: only methods with ``acts_in_quiet`` are asked then, and must edit nothing that
        gives units or weights a new start.
        """
        return self._progress.is_quiet

    def groups(self, where: str = "*") -> tuple[UnitGroup, ...]:
        """The editable groups that match a pattern and belong to this context's optimizer."""
        if where not in self._selected:
            groups = tuple(group for group in self.units.select(where) if group.name in self._owned)
            owned = [name for group in groups for name in group.tensors if name in self.edit.owners]
            self._selected[where] = groups, [self.edit.tensors[name] for name in dict.fromkeys(owned)]
        groups, parameters = self._selected[where]
        for parameter in parameters:
            if not parameter.requires_grad:
                return tuple(group for group in groups if not self._is_frozen(group))
        return groups

    def _is_frozen(self, group: UnitGroup) -> bool:
        """Whether a parameter of the group has been frozen since ``attach``: what no optimizer trains is not edited."""
        tensors, owners = self.edit.tensors, self.edit.owners
        return any(name in owners and not tensors[name].requires_grad for name in group.tensors)

    def stats(self, group: UnitGroup) -> GroupStats:
        """Statistics of the group's activations over the last sampled step."""
        return self._stats(group)

    def features(self, group: UnitGroup) -> list[Tensor]:
        """The group's activations with their graph, ``[N, U]`` or ``[S, N, U]``, for :meth:`Intervention.penalty`.

        One tensor for each training forward since the last backward pass; samples, positions and time steps are rows.
        ``"features"`` must be in the method's ``needs``.
        """
        return self._features(group)

    def count_rows(self, module: str, into: MutableMapping[str, Tensor], key: str) -> None:
        """From ``prepare``: count, until ``detach``, which rows of an embedding training looks up.

        Args:
            module: The embedding's name.
            into: A mapping of :meth:`tensors`, so that the counts are saved; ``into[key]`` is int64 ``[rows]``, of
                this process alone: :meth:`total_rows` sums over processes.
            key: Under which name.
        """
        self._collector.count_rows(module, into, key)

    def total_rows(self, counts: Tensor) -> Tensor:
        """What :meth:`count_rows` has counted, over all processes; all of them must ask at once."""
        return self._collector.total_rows(counts)

    def is_seen(self, group: UnitGroup) -> bool:
        """Whether this step's training forward went through the group (a network may use one of its heads only)."""
        return self._stats(group).step == self.clock.step

    def state(self, group: UnitGroup) -> dict[str, Tensor]:
        """The :class:`PerUnit` state of one group, by name; changed in place."""
        return self._memory.units[group.name]

    def states(self, name: str, groups: Sequence[UnitGroup]) -> list[Tensor]:
        """One :class:`PerUnit` state of several groups as few tensors, for changes that are the same for all units.

        A single tensor, ``[all units]``, where these are all groups of the method; else one for each group.
        """
        return self._memory.together(name, groups)

    def parameter_state(self, name: str) -> dict[str, Tensor]:
        """One :class:`PerParameter` state: parameter name to tensor, of this optimizer's parameters."""
        return {key: value for key, value in self._memory.parameters[name].items() if key in self._parameters}

    def snapshot(self, name: str) -> dict[str, Tensor]:
        """One :class:`Snapshot`: tensor name to tensor, of the whole network; changed in place."""
        return self._memory.snapshots[name]

    def tensors(self, name: str) -> dict[str, Tensor]:
        """One :class:`Tensors` state: a mapping that the method fills and changes as it needs."""
        return self._memory.tensors[name]

    def scalar(self, name: str) -> Tensor:
        """One :class:`Scalar` for this optimizer, ``[]`` or ``[S]``; changed in place."""
        return self._memory.scalars[name][str(self.index)]

    @property
    def host(self) -> dict[str, bool | int | float | str]:
        """The :class:`Host` state for this optimizer, by name; assign to it."""
        return self._memory.host[self.index]

    def call(self, inputs: Inputs, params: Mapping[str, Tensor] | None = None, *, training: bool = False) -> Any:
        """Run the model without a trace: statistics do not count it, and modes, buffers and randomness are restored.

        Gradients follow the surrounding ``torch.no_grad()`` or ``torch.enable_grad()``.

        Args:
            inputs: A tensor, a tuple of positional inputs, or a mapping of keyword inputs.
            params: Parameters and buffers to be used instead of the model's own, by name; for example a snapshot.
            training: Whether the model runs in training mode.

        Returns:
            What the model returns.

        Raises:
            IllegalConfiguration: If ``params`` names a tensor that the model does not have.
        """
        return self._forward(inputs, params, training=training)

    def hear(
        self,
        inputs: Inputs,
        groups: Sequence[UnitGroup],
        params: Mapping[str, Tensor] | None = None,
        *,
        training: bool = False,
    ) -> dict[str, list[Tensor]]:
        """What groups do when the model runs as in :meth:`call`, with the graph.

        Args:
            inputs: As for :meth:`call`.
            groups: Which; each must have a tap that needs no replay.
            params: As for :meth:`call`.
            training: As for :meth:`call`.

        Returns:
            Group name to ``[N, U]`` or ``[S, N, U]``, one for each run of the group's module.
        """
        for group in groups:
            if group.name not in self._readers:
                self._readers[group.name] = TapReader(
                    group, None, self.edit.tensors, members=self.num_members is not None
                )
        readers = [self._readers[group.name] for group in groups]
        with listening(self.modules[""], readers, with_graph=True) as heard:
            self.call(inputs, params, training=training)
        return heard

    def parameters(self, where: str = "*") -> dict[str, Tensor]:
        """The optimizer's parameters by name, without those that are frozen by now.

        Args:
            where: A shell-style pattern of names, or several with commas between; a module's name stands for all that
                is in it.

        See :meth:`whole` for their values.
        """
        return {name: item for name, item in self._parameters.items() if item.requires_grad and matches(name, where)}

    def buffers(self) -> dict[str, Tensor]:
        """The buffers, by name, of the modules whose parameters the optimizer trains.

        Those of modules without parameters belong to the first optimizer.
        """
        if self._buffers is None:
            tensors = self.edit.tensors
            parameters = {name for name, item in tensors.items() if isinstance(item, nn.Parameter)}
            mine = {module_of(name) for name in self._parameters}
            others = {module_of(name) for name in parameters}
            self._buffers = {
                name: item
                for name, item in tensors.items()
                if name not in parameters
                and (module_of(name) in mine or (self.index == 0 and module_of(name) not in others))
            }
        return self._buffers

    def whole(self, name: str) -> Tensor:
        """A parameter's or buffer's values, detached; of one that is sharded over processes, all of them.

        Every process must ask at once, which they do: all run the same methods.
        """
        return self.edit.writer.whole(name)

    def gradient(self, name: str) -> Tensor | None:
        """A parameter's gradient, detached and dense; of one that is sharded over processes, all of it.

        In ``after_step`` it is that of the step, as the optimizer has seen it, unless somebody has cleared it since.
        It may still be multiplied by the scale of mixed precision, see :meth:`pliant.edit.Editor.gradient_scale`.

        Returns:
            The gradient, or ``None`` if there is none.
        """
        gradient = self._parameters[name].grad
        if gradient is None:
            return None
        gradient = gradient.detach()
        return whole(gradient.to_dense() if gradient.is_sparse else gradient)

    def freeze(self, names: Sequence[str]) -> None:
        """From now on no optimizer changes these parameters; what they have as gradients is dropped."""
        for name in names if not self.edit.dry_run else ():
            parameter = self.edit.tensors[name]
            parameter.requires_grad_(False)
            parameter.grad = None

    def set_parameters(self, parameters: Mapping[str, Tensor]) -> None:
        """The handle tells that the optimizer has taken on further parameters."""
        self._parameters, self._buffers = parameters, None

    def learning_rates(self, names: Sequence[str]) -> list[float]:
        """The current step size of each parameter, from its optimizer's parameter group."""
        rates = {id(p): float(group["lr"]) for group in self.optimizer.param_groups for p in group["params"]}
        return [rates[id(self._parameters[name])] for name in names]

    def magnitude(self, group: UnitGroup, role: Literal["outgoing", "incoming"] = "outgoing") -> Tensor:
        r"""Sum of absolute outgoing weights per unit, :math:`\sum_k |w_{ki}|`: ``[U]`` or ``[S, U]``.

        Args:
            group: The group.
            role: Or that of the incoming weights, without biases.
        """
        total: Tensor | None = None
        is_stack = self.num_members is not None
        with torch.no_grad():
            for piece in group.role(role):
                if role == "incoming" and piece.rank(self.edit.tensors[piece.name], is_stack=is_stack) == 1:
                    continue
                sums = self.edit.writer.sum_abs(piece)
                total = sums if total is None else total + sums
        if total is None:
            raise NoEffect(f"unit group {group.name!r} has no {role} weights.")
        return total

    def gradient_magnitude(self, group: UnitGroup) -> Tensor | None:
        r"""Sum of the absolute gradients of each unit's incoming weights (biases left out): ``[U]`` or ``[S, U]``.

        Of the parameters of this optimizer only; see :meth:`gradient` for what they are in ``after_step``.

        Returns:
            The sums, or ``None`` if none of these weights has a gradient.
        """
        is_stack = self.num_members is not None
        mine = [piece for piece in group.role("incoming") if piece.name in self._parameters]
        matrices = [piece for piece in mine if piece.rank(self._parameters[piece.name], is_stack=is_stack) >= 2]
        total: Tensor | None = None
        for piece in matrices or mine:
            gradient = self._parameters[piece.name].grad
            if gradient is not None:
                gradient = gradient.detach()
                sums = self.edit.writer.sum_abs(piece, gradient.to_dense() if gradient.is_sparse else gradient)
                total = sums if total is None else total + sums
        return total

    def check_finite(self, values: Tensor, group: UnitGroup | str, what: str = "activations") -> Tensor:
        """A mask of finite entries; for a single model on a CPU, anything else stops the run.

        Args:
            values: What is checked.
            group: Of which group, or of which tensor.
            what: What the values were computed from, for the message.

        Raises:
            IllegalConfiguration: Naming the group and the step; nothing has been edited.
        """
        finite = values.isfinite()
        if can_read(values) and self.num_members is None and not bool(finite.all()):
            name = group if isinstance(group, str) else group.name
            raise IllegalConfiguration(
                f"the {what} of {name!r} are not finite at step {self.clock.step}: training has diverged "
                "(a NaN or infinite loss). Nothing was reset. Lower the step size or clip the gradients, and resume "
                "from the last checkpoint."
            )
        return finite
