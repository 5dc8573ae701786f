"""The handle: everything that ``attach`` put on a model and its optimizers, and all state of the interventions."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pliant.devices import can_read
from pliant.edit import Editor
from pliant.errors import IllegalConfiguration
from pliant.events import EventLog
from pliant.forward import call
from pliant.interventions.base import Context, Intervention
from pliant.interventions.state import Memory, copy_of, matches
from pliant.lasting import Lasting
from pliant.optimizer_state import MomentSpec, check_declared
from pliant.reminders import Reminders
from pliant.resume import Keeper
from pliant.rounds import ByHand, Rounds, live_of
from pliant.schedule import Schedule
from pliant.sharded import Whole, reshard, sharded_modules
from pliant.stats import Collector
from pliant.stats.capture import named_tensors
from pliant.stats.listener import is_in_graph
from pliant.units import UnitGraph
from pliant.units.depth import layer_types
from pliant.units.export import Inputs
from pliant.units.init import InitSpec, initialisers
from pliant.wiring import (
    change_of,
    check_boundary,
    check_method,
    check_same,
    check_shapes,
    editable_groups,
    find_owners,
    inputs_first,
    is_dry_step,
    labels,
    needed_statistics,
    on_step,
    passed_on,
    prepare,
    recorded,
    with_terms,
)

__all__ = ["Handle"]


class Handle(Lasting):
    """Everything that was attached: hooks, clocks, state and randomness. Made by :func:`attach`.

    Attributes:
        units: The unit graph.
        methods: The interventions, in order.
        events: The log of edits.
        excluded: Unit groups that are left alone although a method's pattern matches them, and why.
        where: The part of the model in which methods act, besides their own patterns.

    Example:
        >>> import pliant
        >>> model, x = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 1)), torch.randn(4, 2)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> method = pliant.ShrinkAndPerturb(shrink=0.9, noise_scale=0.01, every=2)
        >>> handle = pliant.attach(model, optimizer, method, example_inputs=x)
        >>> for _ in range(4):
        ...     optimizer.zero_grad()
        ...     model(x).square().mean().backward()
        ...     optimizer.step()
        >>> handle
        <Handle: ShrinkAndPerturb; attached, step 4, 4 events>
        >>> [(event.step, event.action) for event in handle.events]
        [(2, 'shrink'), (2, 'add_noise'), (4, 'shrink'), (4, 'add_noise')]
        >>> handle.detach()
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
        moments: MomentSpec = None,
        measure_change: Inputs | None = None,
        max_change: float | None = None,
        where: str = "*",
    ) -> None:
        self.units, self.methods, self.num_members = units, tuple(methods), num_members
        self.excluded: dict[str, str] = {}
        super().__init__()
        self.where = where
        self._optimizers = list(optimizers)
        self._tensors = named_tensors(model)
        self._sharded_modules = sharded_modules(model)
        check_shapes(units, self._tensors, num_members, type(model).__name__)
        self.events = EventLog(dry_run=dry_run)
        self.events.num_members = num_members
        self._owners = find_owners(self._tensors, self._optimizers)
        check_declared(moments)
        inits = initialisers(
            model, init, members=num_members is not None, inputs_first=inputs_first(units, self._tensors)
        )
        self._forward = partial(call, model)
        self._model = model
        self._editor = Editor(
            self._tensors,
            self._owners,
            inits,
            seeds,
            num_members=num_members,
            events=self.events,
            dry_run=dry_run,
            declared=moments,
            measure=None if measure_change is None else partial(change_of, model, measure_change),
            max_change=max_change,
        )
        self._schedules = [Schedule(self.methods) for _ in self._optimizers]
        self._reminders = Reminders(self.methods)
        self._owned = [self._groups_of(item) for item in self._optimizers]
        self._check_methods()
        self._memory = [self._make_memory(m) for m in range(len(self.methods))]
        self._num_param_groups = [len(item.param_groups) for item in self._optimizers]
        seen = Whole(self._tensors, model) if self._sharded_modules else self._tensors
        self._collector = Collector(
            model,
            units,
            needed_statistics(self.methods, self._usable),
            seen,
            num_members=num_members,
            process_group=process_group,
        )
        self._contexts = [[self._context(m, o) for o in range(len(optimizers))] for m in range(len(self.methods))]
        self._hooks: list[Any] = []
        try:
            for method, contexts in zip(self.methods, self._contexts, strict=True):
                prepare(method, contexts)
        except Exception:  # a method that refuses must leave no hook behind; its error goes on to the user
            self._collector.remove()
            raise
        self._accelerated = any(tensor.is_cuda for tensor in self._tensors.values())
        self._keeper = Keeper(
            model,
            self._optimizers,
            self.methods,
            units,
            self._usable,
            self._editor,
            self._schedules,
            self._memory,
            self._make_memory,
            progress=self._progress,
            num_members=num_members,
        )
        self._writes_logs = process_group is None or torch.distributed.get_rank(process_group) == 0
        self._rounds = Rounds(
            self.methods,
            list(zip(*self._contexts, strict=True)) if self.methods else [() for _ in optimizers],
            self._schedules,
            [self._collector.of(groups) for groups in self._owned],
            collector=self._collector,
            editor=self._editor,
            enter=self._enter,
            check=self._check_tensors,
            progress=self._progress,
        )
        for index, item in enumerate(self._optimizers):
            acts_before = any(method.changes_gradients for method in self.methods)
            before = self._pre_hook(index) if acts_before else None
            self._hooks.extend(on_step(item, self._post_hook(index), before))

    # ---- what the user reads and calls ----
    @property
    def num_steps(self) -> int:
        """Real steps of the first optimizer since ``attach``."""
        return self._schedules[0].clock.step

    @property
    def num_resets(self) -> dict[str, Tensor]:
        """Units reset so far per group, ``[]`` each, or ``[S]`` for a stack of members; in a dry run, that would be."""
        return self.events.num_resets()

    @property
    def unheard(self) -> tuple[str, ...]:
        """Unit groups whose activations a method wants and has not seen in any sampled step so far.

        Other heads of a multi-task network may wait for their turn. A group that stays here is called in a way that its
        hook does not see, such as a submodule's function instead of the module.
        """
        return self._collector.unheard

    def waiting_for(self, call: str) -> tuple[str, ...]:
        """Methods that still wait for a call of this handle: ``"penalty"``, ``"batch"`` or ``"task_boundary"``."""
        return self._reminders.waiting_for(call)

    def task_boundary(self, data: Any = None) -> None:
        """Tell the interventions that the data has changed (for those that need to know).

        Args:
            data: Optionally, data of the new task.

        Raises:
            IllegalConfiguration: In a quiet period, if a method acts at task boundaries.
        """
        self._check_attached()
        check_boundary(self.methods, is_quiet=self.is_quiet)
        self._reminders.called("task_boundary")
        self._progress.num_boundaries += 1
        self._rounds.observe()
        reshard(self._sharded_modules)
        for method, contexts in zip(self.methods, self._contexts, strict=True):
            for ctx in contexts:
                ctx.task = self._progress.num_boundaries
                self._enter(method, ctx)
                self._editor.stepped = None
                method.at_task_boundary(ctx, data)

    def penalty(self, *, loss: Tensor | None = None, reference: Inputs | None = None) -> Tensor:
        """The sum of all loss terms of the interventions, to be added to the loss; zero if there are none.

        Args:
            loss: The loss that it will be added to, for methods that follow its size; they do not change it.
            reference: A batch of inputs besides the one that is trained on, for methods that compare outputs.

        Returns:
            A scalar with its graph, ``[]``.
        """
        self._check_attached()
        self._reminders.called("penalty")
        nothing = torch.zeros((), device=self._device)
        return nothing if self.events.dry_run else with_terms(nothing, self.methods, self._contexts, loss, reference)

    def batch(self, batch: Any) -> Any:
        """A batch as the methods want it to be trained on; call it before the forward pass.

        Args:
            batch: Inputs and targets together, a nested structure of tensors: ``x, y = handle.batch((x, y))``.

        Returns:
            The same structure. What is added to a batch stands behind it.
        """
        self._check_attached()
        self._reminders.called("batch")
        return passed_on(batch, self.methods, self._contexts)

    def step(self, optimizer: Optimizer | None = None) -> None:
        """Act after an optimizer step that ran inside a captured CUDA graph (call it after each replay).

        A replayed graph runs no hooks. Everywhere else they fire by themselves, and this must not be called.

        Args:
            optimizer: Which optimizer has stepped; may be left out where there is one only.

        Raises:
            IllegalConfiguration: If the optimizer was never captured, or is not attached.
        """
        self._check_attached()
        if optimizer is None and len(self._optimizers) > 1:
            raise IllegalConfiguration("several optimizers are attached: say which one has stepped.")
        found = [i for i, item in enumerate(self._optimizers) if optimizer is None or item is optimizer]
        if not found:
            raise IllegalConfiguration("this optimizer is not attached to this handle.")
        if not self._schedules[found[0]].in_graph:
            raise IllegalConfiguration(
                "handle.step() is for optimizer steps inside a captured CUDA graph, and none was captured since "
                "pliant.attach: the hook on optimizer.step() does it already. (Attach before the capture.)"
            )
        step = self._rounds[found[0]].after_step(getattr(self._optimizers[found[0]], "found_inf", None))
        if step >= self._reminders.next:
            self._reminders.check(step)

    def by_hand(self, optimizer: Optimizer | None = None) -> ByHand:
        """For a loop that calls neither the model nor ``optimizer.step()`` but computes what they would.

        Args:
            optimizer: Which optimizer's steps; may be left out where there is one only.

        Returns:
            What is to be told of each such step. Steps that call the model and the optimizer may come between.

        Raises:
            IllegalConfiguration: If the optimizer is not attached, or there are several and none is given.
            NotYetSupported: If a method wants to know more than the inputs of modules.
        """
        self._check_attached()
        found = [i for i, item in enumerate(self._optimizers) if optimizer is None or item is optimizer]
        if len(found) != 1:
            raise IllegalConfiguration("by_hand() is for one of the attached optimizers: say which.")
        after_step, reminders = self._rounds[found[0]].after_step, self._reminders

        def step() -> None:
            done = after_step(None)
            if done >= reminders.next:
                reminders.check(done)

        return ByHand(step, self._schedules[found[0]], self._rounds.heard(found[0]))

    def record(self) -> dict[str, float]:
        """Numbers for a log: steps, units reset so far, and what each intervention reports of itself.

        Returns:
            ``"num_steps"``, ``"num_resets"`` (over all groups and members), and ``"<method>.<name>"``; a method that
            is listed twice is ``"<method>#2"``, and with several optimizers ``"[1]"`` says which. Reading waits for an
            accelerator.
        """
        resets = sum(int(total.sum()) for total in self.num_resets.values())
        self._rounds.observe()
        found: dict[str, float] = {"num_steps": float(self.num_steps), "num_resets": float(resets)}
        return found | recorded(self.methods, self._contexts)

    def snapshot(self, name: str) -> dict[str, Tensor]:
        """A copy of a second network that a method keeps: ``handle.snapshot("tortoise")`` is tensor name to values.

        Raises:
            IllegalConfiguration: If no attached method, or more than one, keeps a network of that name.
        """
        self._check_attached()
        return copy_of(name, self._memory)

    def detach(self) -> None:
        """Remove every hook. Afterwards nothing of Pliant is left in the model or the optimizer.

        Copies of the network that a method kept in the handle are freed, too: save ``state_dict()`` before.
        """
        if self._hooks:
            self._reminders.check_boundary(self.num_steps)
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        self._collector.remove()
        self._close_logs()
        for memory in self._memory:
            memory.clear()

    def also_remove(self, hooks: Sequence[Any]) -> None:
        """Take over hooks that others put on the optimizers: :meth:`detach` removes them."""
        self._hooks.extend(hooks)

    @property
    def is_attached(self) -> bool:
        """Whether its hooks are on: from ``attach`` to ``detach()``."""
        return bool(self._hooks)

    def __repr__(self) -> str:
        attached = "attached" if self.is_attached else "detached"
        names = ", ".join(labels(self.methods)) or "no method"
        events = f"{len(self.events)} events" + (" (dry run)" if self.events.dry_run else "")
        quiet = f", quiet since step {self._progress.quiet_since}" if self.is_quiet else ""
        return f"<Handle: {names}; {attached}, step {self.num_steps}{quiet}, {events}>"

    # ---- hooks ----
    def _pre_hook(self, index: int) -> Any:
        def hook(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
            closure = args[1] if len(args) > 1 else kwargs.get("closure")  # the optimizer itself comes first
            if is_dry_step(optimizer):
                return
            found_inf = getattr(optimizer, "found_inf", None)
            if found_inf is not None and can_read(found_inf) and bool(found_inf):
                return  # a fused optimizer is about to skip this step
            for method, contexts in zip(self.methods, self._contexts, strict=True):
                if not method.changes_gradients:
                    continue
                if closure is not None:
                    raise IllegalConfiguration(
                        f"{type(method).__name__} changes gradients before the step, but under optimizer.step(closure) "
                        "there are none yet. Compute the loss before step(), or use a decoupled method."
                    )
                contexts[index].live = None if found_inf is None else live_of(found_inf)
                self._enter(method, contexts[index])
                method.before_step(contexts[index])

        return hook

    def _post_hook(self, index: int) -> Any:
        after_step, reminders, accelerated = self._rounds[index].after_step, self._reminders, self._accelerated

        def hook(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
            if is_in_graph(accelerated):  # the graph will step without this hook: see step()
                self._schedules[index].in_graph = True
                return
            if is_dry_step(optimizer):
                return
            step = after_step(getattr(optimizer, "found_inf", None))
            if step >= reminders.next:
                reminders.check(step)

        return hook

    def _enter(self, method: Intervention, ctx: Context) -> None:
        self.events.step, self.events.clock, self.events.intervention = ctx.clock.step, ctx.index, type(method).__name__
        self._editor.stepped = ctx.optimizer
        if len(ctx.optimizer.param_groups) != self._num_param_groups[ctx.index]:
            self._adopt_param_groups(ctx.index)

    def _adopt_param_groups(self, index: int) -> None:
        """The user has called ``add_param_group``: edits of whole tensors reach the new parameters.

        Units that could not be edited before (``excluded``) still are not: their statistics are not listened to.
        """
        self._num_param_groups[index] = len(self._optimizers[index].param_groups)
        self._owners.update(find_owners(self._tensors, self._optimizers))
        trained = self._trained(self._optimizers[index])
        for memory, contexts in zip(self._memory, self._contexts, strict=True):
            memory.extend(trained)
            contexts[index].set_parameters(trained)

    def _check_tensors(self) -> None:
        """Edits reach the tensors that were there at ``attach``; those of a model that has others would go nowhere."""
        if not self._sharded_modules:  # their parameters come and go with every forward
            check_same(named_tensors(self._model), self._tensors, self.units, self._owners)

    # ---- set-up ----
    def _trained(self, optimizer: Optimizer) -> dict[str, Tensor]:
        """The parameters that an optimizer owns and that are not frozen, by name."""
        owned = {name: self._tensors[name] for name, owner in self._owners.items() if owner is optimizer}
        return {name: item for name, item in owned.items() if item.requires_grad and matches(name, self.where)}

    def _groups_of(self, optimizer: Optimizer) -> list[Any]:
        """The groups whose clock is this optimizer's: it owns their first incoming tensor."""
        return [group for group in self.units if self._owners.get(group.role("incoming")[0].name) is optimizer]

    def _check_methods(self) -> None:
        self._usable: list[frozenset[str]] = []
        for method in self.methods:
            groups = editable_groups(method, self.units, self._tensors, self.excluded, self.where)
            check_method(method, groups, self._tensors, self._owners, self._editor)
            self._usable.append(frozenset(group.name for group in groups))

    @property
    def _device(self) -> torch.device:
        return next(iter(self._tensors.values())).device

    def _make_memory(self, m: int) -> Memory:
        method = self.methods[m]
        trained = [self._trained(optimizer) for optimizer in self._optimizers]
        return Memory(
            method.state,
            groups=[group for group in self.units if group.name in self._usable[m]],
            trained={name: tensor for part in trained for name, tensor in part.items()},
            pattern=method.parameter_pattern(),
            tensors=self._tensors,
            num_members=self.num_members,
            num_optimizers=len(self._optimizers),
        )

    def _context(self, method_index: int, optimizer_index: int) -> Context:
        optimizer = self._optimizers[optimizer_index]
        usable = self._usable[method_index]
        return Context(
            units=self.units,
            owned=frozenset(group.name for group in self._owned[optimizer_index] if group.name in usable),
            optimizer=optimizer,
            index=optimizer_index,
            parameters=self._trained(optimizer),
            edit=self._editor,
            clock=self._schedules[optimizer_index].clock,
            memory=self._memory[method_index],
            collector=self._collector,
            forward=self._forward,
            modules=dict(self._model.named_modules()),
            num_members=self.num_members,
            layer_types=layer_types(self._model, self._tensors),
            progress=self._progress,
        )
