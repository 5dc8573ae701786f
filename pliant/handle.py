"""The handle: everything that ``attach`` put on a model and its optimizers, and all state of the interventions."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pliant.checkpoint import is_dry_step
from pliant.devices import can_read
from pliant.edit import Editor
from pliant.errors import IllegalConfiguration, NoEffect
from pliant.events import EventLog
from pliant.interventions.base import Clock, Context, Intervention
from pliant.sharded import Whole, reshard, sharded_modules
from pliant.stats import Collector
from pliant.stats.capture import named_tensors
from pliant.units import UnitGraph
from pliant.units.init import InitSpec, initialisers

__all__ = ["Handle"]

STATE_VERSION = 2


def _inputs_first(units: UnitGraph, tensors: Mapping[str, Tensor]) -> set[str]:
    """Matrices whose last dimension is the output: ``x @ W`` instead of ``nn.Linear``'s ``x @ W.T``."""
    ends = {("incoming", -1), ("outgoing", -2)}
    found = {piece.name for group in units for piece in group.slices if (piece.role, piece.dim) in ends}
    return {name for name in found if name in tensors and tensors[name].ndim == 2}


class Handle:
    """Everything that was attached: hooks, clocks, state and randomness. Made by :func:`attach`.

    Attributes:
        units: The unit graph.
        methods: The interventions, in order.
        events: The log of edits.
        excluded: Unit groups that are left alone although a method's pattern matches them, and why.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizers: Sequence[Optimizer],
        methods: Sequence[Intervention],
        units: UnitGraph,
        *,
        seeds: tuple[int, ...],
        num_members: int | None,
        init: InitSpec,
        dry_run: bool,
        process_group: Any,
    ) -> None:
        self.units, self.methods, self.num_members = units, tuple(methods), num_members
        self.excluded: dict[str, str] = {}
        self._optimizers = list(optimizers)
        self._tensors = named_tensors(model)
        self._sharded_modules = sharded_modules(model)
        self._check_shapes(model)
        self.events = EventLog()
        self.events.num_members = num_members
        self._owners = self._find_owners(model)
        inits = initialisers(
            model, init, members=num_members is not None, inputs_first=_inputs_first(units, self._tensors)
        )
        self._editor = Editor(
            self._tensors, self._owners, inits, seeds, num_members=num_members, events=self.events, dry_run=dry_run
        )
        self._clocks = [Clock() for _ in self._optimizers]
        self._num_boundaries = 0
        self._owned = [self._groups_of(item, model) for item in self._optimizers]
        self._check_methods()
        self._state = [self._make_state(method) for method in self.methods]
        seen = Whole(self._tensors, model) if self._sharded_modules else self._tensors
        self._collector = Collector(
            model, units, self._needs(), seen, num_members=num_members, process_group=process_group
        )
        self._contexts = [[self._context(m, o) for o in range(len(optimizers))] for m in range(len(self.methods))]
        self._hooks: list[Any] = []
        try:
            for method, contexts in zip(self.methods, self._contexts, strict=True):
                for ctx in contexts:
                    method.prepare(ctx)
        except Exception:
            self._collector.remove()
            raise
        count = len(self._optimizers)
        self._next = [[0] * len(self.methods) for _ in range(count)]
        self._acted: list[list[int | Tensor]] = [[0] * len(self.methods) for _ in range(count)]
        self._wake, self._listens = [0] * count, [False] * count
        for index in range(count):
            self._plan(index)
        for index, item in enumerate(self._optimizers):
            if any(type(method).before_step is not Intervention.before_step for method in self.methods):
                self._hooks.append(item.register_step_pre_hook(self._pre_hook(index)))
            self._hooks.append(item.register_step_post_hook(self._post_hook(index)))

    # ---- what the user reads and calls ----
    @property
    def num_steps(self) -> int:
        """Real steps of the first optimizer since ``attach``."""
        return self._clocks[0].step

    @property
    def num_resets(self) -> dict[str, Tensor]:
        """Units reset so far per group, ``[]`` each, or ``[S]`` for a stack of members."""
        return self.events.num_resets()

    def task_boundary(self, data: Any = None) -> None:
        """Tell the interventions that the data has changed (for those that need to know).

        Args:
            data: Optionally, data of the new task.
        """
        self._check_attached()
        self._num_boundaries += 1
        reshard(self._sharded_modules)
        for method, contexts in zip(self.methods, self._contexts, strict=True):
            for ctx in contexts:
                ctx.task = self._num_boundaries
                self._enter(method, ctx)
                method.at_task_boundary(ctx, data)

    def penalty(self) -> Tensor:
        """The sum of all loss terms of the interventions, to be added to the loss; zero if there are none."""
        self._check_attached()
        total = torch.zeros((), device=self._device)
        for method, contexts in zip(self.methods, self._contexts, strict=True):
            for ctx in contexts:
                term = method.penalty(ctx)
                if term is not None:
                    total = total + term
        return total

    def detach(self) -> None:
        """Remove every hook. Afterwards nothing of Pliant is left in the model or the optimizer."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        self._collector.remove()

    def also_remove(self, hooks: Sequence[Any]) -> None:
        """Take over hooks that others put on the optimizers: :meth:`detach` removes them."""
        self._hooks.extend(hooks)

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to continue bit by bit: plain tensors, numbers and strings.

        It loads with ``torch.load(..., weights_only=True)``.
        """
        return {
            "version": STATE_VERSION,
            "methods": [repr(method) for method in self.methods],
            "groups": {group.name: group.size for group in self.units},
            "num_members": self.num_members,
            "clocks": [clock.step for clock in self._clocks],
            # the same kinds of values at all times, so that a fresh handle's state is a template of every saved one
            "counts_on_device": [clock.real is not None for clock in self._clocks],
            "real_clocks": [torch.as_tensor(clock.now()) for clock in self._clocks],
            "acted": [[torch.as_tensor(step) for step in row] for row in self._acted],
            "num_boundaries": self._num_boundaries,
            "state": {
                index: {name: {k: value.clone() for k, value in kept.items()} for name, kept in per_group.items()}
                for index, per_group in enumerate(self._state)
            },
            "random": self._editor.random_state(),
            "num_resets": self._no_resets() | self.events.state_dict(),
        }

    def _no_resets(self) -> dict[str, Tensor]:
        names = [group.name for group in self.units if any(group.name in usable for usable in self._usable)]
        return {
            name: torch.zeros(self.num_members or 1, dtype=torch.long, device=self._device_of(name)) for name in names
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from :meth:`state_dict`.

        Raises:
            IllegalConfiguration: If it was saved by another version, other methods, or on a model with other unit
                groups; nothing has been changed then.
        """
        mine = self.state_dict()
        for key, what in (
            ("version", "format version"),
            ("methods", "interventions"),
            ("groups", "unit groups"),
            ("num_members", "number of members"),
        ):
            if key not in state:
                raise IllegalConfiguration(f"this is no state of a pliant handle: it has no {key!r}.")
            if state[key] != mine[key]:
                raise IllegalConfiguration(
                    f"the saved state has different {what}: {state[key]} instead of {mine[key]}. Attach with what it "
                    "was saved with, or start without loading it."
                )
        if len(state["clocks"]) != len(self._clocks):
            raise IllegalConfiguration(
                f"the saved state belongs to {len(state['clocks'])} optimizers; {len(self._clocks)} are attached."
            )
        self._acted = [[int(step) for step in row] for row in state["acted"]]
        for index, (clock, step) in enumerate(zip(self._clocks, state["clocks"], strict=True)):
            clock.step, clock.real = step, None
            if state["counts_on_device"][index]:
                clock.real = state["real_clocks"][index].clone().to(self._device)
                self._acted[index] = [acted.clone().to(self._device) for acted in state["acted"][index]]
        self._num_boundaries = state["num_boundaries"]
        for index, per_group in enumerate(self._state):
            for name, entries in per_group.items():
                for key, value in entries.items():
                    value.copy_(state["state"][index][name][key])
        self._editor.load_random_state(state["random"])
        self.events.load_state_dict({k: v.to(self._device_of(k)) for k, v in state["num_resets"].items() if v.any()})
        for index in range(len(self._clocks)):
            self._plan(index)

    def __repr__(self) -> str:
        attached = "attached" if self._hooks else "detached"
        return f"Handle({', '.join(map(repr, self.methods))}; {attached}, step {self.num_steps}, {self.events!r})"

    # ---- hooks ----
    def _pre_hook(self, index: int) -> Any:
        def hook(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
            closure = args[1] if len(args) > 1 else kwargs.get("closure")  # the optimizer itself comes first
            if is_dry_step(optimizer):
                return
            for method, contexts in zip(self.methods, self._contexts, strict=True):
                if type(method).before_step is Intervention.before_step:
                    continue
                if closure is not None:
                    raise IllegalConfiguration(
                        f"{type(method).__name__} changes gradients before the step, but under optimizer.step(closure) "
                        "there are none yet. Compute the loss before step(), or use a decoupled method."
                    )
                self._enter(method, contexts[index])
                method.before_step(contexts[index])

        return hook

    def _post_hook(self, index: int) -> Any:
        def hook(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
            if is_dry_step(optimizer):
                return
            self._after_step(index, getattr(optimizer, "found_inf", None))

        return hook

    def _after_step(self, index: int, found_inf: Tensor | None) -> None:
        live: Tensor | None = None
        if found_inf is not None:  # a fused optimizer that skips by itself: its hook fires although nothing changed
            if can_read(found_inf):
                if bool(found_inf):
                    self._collector.drop(self._owned[index], skipped=True)
                    return
            else:
                live = 1 - found_inf.float().reshape(())
        clock = self._clocks[index]
        clock.advance(live)
        if clock.step >= self._wake[index]:
            self._act(index, live)
        elif self._collector.enabled:
            self._collector.drop(self._owned[index], skipped=False)

    def _act(self, index: int, live: Tensor | None) -> None:
        """Run the interventions that are due at this step of an optimizer."""
        clock, groups = self._clocks[index], self._owned[index]
        due = [m for m, step in enumerate(self._next[index]) if step <= clock.step]
        if any(self.methods[m].samples(clock.step) for m in due):
            self._collector.finish(clock.step, groups)
        elif self._collector.enabled:
            self._collector.drop(groups, skipped=False)
        self._editor.live = live
        for m in due:
            method, ctx = self.methods[m], self._contexts[m][index]
            now = clock.now()
            ctx.live, ctx.elapsed = live, now - self._acted[index][m]
            self._enter(method, ctx)
            method.after_step(ctx)
            self._acted[index][m] = now
        self._editor.live = None
        self._plan(index)

    def _enter(self, method: Intervention, ctx: Context) -> None:
        self.events.step, self.events.intervention = ctx.clock.step, type(method).__name__

    def _plan(self, index: int) -> None:
        """When this optimizer's hook has to do something next: act, or begin to listen one step before."""
        step = self._clocks[index].step
        following = [
            sys.maxsize
            if type(method).after_step is Intervention.after_step
            else method.next_step(self._contexts[m][index])
            for m, method in enumerate(self.methods)
        ]
        self._next[index] = following
        wake = min(following, default=step + 1)
        sampled = any(method.samples(wake) for method, at in zip(self.methods, following, strict=True) if at == wake)
        self._wake[index] = wake - 1 if sampled and wake > step + 1 else wake
        self._listens[index] = sampled and wake == step + 1
        self._collector.enabled = any(self._listens)

    # ---- set-up ----
    def _check_attached(self) -> None:
        if not self._hooks:
            raise IllegalConfiguration("this handle is detached; call pliant.attach again.")

    def _check_shapes(self, model: nn.Module) -> None:
        for group in self.units:
            for piece in group.slices:
                if piece.name not in self._tensors:
                    raise IllegalConfiguration(
                        f"the unit graph names {piece.name!r}, which {type(model).__name__} does not have. "
                        "Find the units of this model."
                    )
                tensor = self._tensors[piece.name]
                largest = max(max(row) for row in piece.table)
                wrong_stack = self.num_members is not None and tensor.shape[0] != self.num_members
                if wrong_stack or tensor.ndim < -piece.dim or tensor.shape[piece.dim] <= largest:
                    raise IllegalConfiguration(
                        f"{piece.name!r} has shape {tuple(tensor.shape)}, which does not fit the unit graph"
                        + (f" of a stack of {self.num_members} members." if self.num_members else ".")
                        + " Find the units of this model."
                    )

    def _find_owners(self, model: nn.Module) -> dict[str, Optimizer]:
        by_id = {id(p): item for item in self._optimizers for group in item.param_groups for p in group["params"]}
        parameters = dict(model.named_parameters())
        return {name: by_id[id(tensor)] for name, tensor in parameters.items() if id(tensor) in by_id}

    def _groups_of(self, optimizer: Optimizer, model: nn.Module) -> list[Any]:
        """The groups whose clock is this optimizer's: it owns their first incoming tensor."""
        return [group for group in self.units if self._owners.get(group.role("incoming")[0].name) is optimizer]

    def _edited(self, method: Intervention) -> list[Any]:
        pattern = method.unit_pattern()
        if pattern is None:
            return []
        groups = self.units.require(pattern)
        for group in groups:
            fixed = [n for n in group.tensors if self._is_parameter(n) and not self._tensors[n].requires_grad]
            if fixed:
                self.excluded[group.name] = f"frozen parameters: {', '.join(fixed)}"
        usable = [group for group in groups if group.name not in self.excluded]
        if not usable:
            raise NoEffect(
                f"{type(method).__name__}: every unit group that matches {pattern!r} has frozen parameters "
                f"({', '.join(sorted(self.excluded))}), so it would do nothing."
            )
        return usable

    def _is_parameter(self, name: str) -> bool:
        return isinstance(self._tensors[name], nn.Parameter)

    def _check_methods(self) -> None:
        self._usable: list[frozenset[str]] = []
        for method in self.methods:
            groups = self._edited(method)
            self._usable.append(frozenset(group.name for group in groups))
            for group in groups:
                for name in group.tensors:
                    if self._is_parameter(name) and name not in self._owners:
                        raise IllegalConfiguration(
                            f"{type(method).__name__} would edit {name!r} (unit group {group.name!r}), but no given "
                            "optimizer owns it. Pass every optimizer that trains the model, or leave the group out "
                            "with where=..."
                        )
                if method.needs and group.tap is None:
                    raise IllegalConfiguration(
                        f"{type(method).__name__} reads activations, but those of {group.name!r} cannot be seen by any "
                        "hook. Leave the group out with where=..."
                    )
                if method.redraws:
                    for piece in group.role("incoming"):
                        self._editor.init_of(piece.name)

    def _needs(self) -> dict[str, frozenset[str]]:
        needs: dict[str, frozenset[str]] = {}
        for method, usable in zip(self.methods, self._usable, strict=True):
            if method.needs:
                for name in sorted(usable):  # in the same order in every process: reading sharded tensors is collective
                    needs[name] = needs.get(name, frozenset()) | method.needs
        return needs

    @property
    def _device(self) -> torch.device:
        return next(iter(self._tensors.values())).device

    def _device_of(self, group: str) -> torch.device:
        return self._tensors[self.units[group].slices[0].name].device

    def _make_state(self, method: Intervention) -> dict[str, dict[str, Tensor]]:
        result: dict[str, dict[str, Tensor]] = {}
        usable = self._usable[self.methods.index(method)]
        lead = () if self.num_members is None else (self.num_members,)
        for group in self.units:
            if group.name not in usable:
                continue
            tensor = self._tensors[group.slices[0].name]
            result[group.name] = {}
            for key, spec in method.state.items():
                shape = (*lead, 1 if spec.per_group else group.size)
                dtype = torch.int64 if spec.dtype == "int64" else torch.float32
                if dtype == torch.float32 and tensor.dtype == torch.float64:
                    dtype = torch.float64
                result[group.name][key] = torch.full(shape, spec.fill, dtype=dtype, device=tensor.device)
        return result

    def _context(self, method_index: int, optimizer_index: int) -> Context:
        optimizer = self._optimizers[optimizer_index]
        usable = self._usable[method_index]
        return Context(
            units=self.units,
            owned=frozenset(group.name for group in self._owned[optimizer_index] if group.name in usable),
            optimizer=optimizer,
            parameters={
                name: self._tensors[name]
                for name, owner in self._owners.items()
                if owner is optimizer and self._tensors[name].requires_grad
            },
            edit=self._editor,
            clock=self._clocks[optimizer_index],
            state=self._state[method_index],
            stats=self._collector.stats,
            num_members=self.num_members,
        )
