"""``attach``: two lines that protect a model in a loop that stays as it is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, cast
from weakref import WeakKeyDictionary, WeakSet

from torch import nn
from torch.optim import Optimizer

from pliant.agents import Agent, guard_of, is_agent, parts_of_agent, refuse_methods
from pliant.errors import IllegalConfiguration, NoEffect, NotYetSupported, PliantError
from pliant.handle import Handle
from pliant.interventions.base import Intervention
from pliant.optimizer_state import MomentSpec, check_optimizer
from pliant.sharded import process_group_of, refuse_join
from pliant.surgery import operate
from pliant.units import UnitGraph
from pliant.units.export import Inputs, refuse_wrapped
from pliant.units.init import InitSpec
from pliant.units.patterns import matches
from pliant.units.several import Models, as_module
from pliant.wiring import (
    as_optimizers,
    check_batch,
    check_conflicts,
    is_within,
    parts_of,
    refuse_trainer,
    units_of,
    unwrapped,
    wrappers_of,
)

__all__ = ["attach", "handles_of"]

_HANDLES: WeakKeyDictionary[nn.Module, WeakSet[Handle]] = WeakKeyDictionary()
"""What is attached to which module."""


def attach(
    model: Models | Agent,
    optimizer: Optimizer | Sequence[Optimizer] | Intervention | Sequence[Intervention] | None = None,
    methods: Intervention | Sequence[Intervention] | None = None,
    *,
    example_inputs: Any = None,
    units: UnitGraph | None = None,
    seed: int | Sequence[int] = 0,
    init: InitSpec = None,
    dry_run: bool = False,
    moments: MomentSpec = None,
    measure_change: Inputs | None = None,
    max_change: float | None = None,
    where: str = "*",
) -> Handle:
    """Protect a model: the interventions act after every step of its optimizer, in a loop that stays as it is.

    Args:
        model: The model that is trained, before ``torch.compile``. A model wrapped in DistributedDataParallel, or
            sharded by ``fully_shard``, is accepted when ``units`` were found on the plain model. Or several modules by
            name, ``{"actor": actor, "critic": critic}``: unit groups get the names as prefixes. Leave out what no
            optimizer trains, such as target networks. Or an agent of Stable-Baselines3, ``attach(agent, methods)``:
            its networks, optimizers, inputs and initial distributions are found by themselves, see
            ``docs/reinforcement_learning.md``.
        optimizer: The optimizer (or several) that updates it. Each unit group follows the clock of the optimizer that
            owns its incoming weights. Optimizers may own other parameters too, such as a temperature. Left out for an
            agent.
        methods: One intervention or an ordered list; they act in this order. One that is listed twice acts twice, and
            an empty list changes nothing (training without protection, with the same clock and checkpoints). What
            another handle does to the same units is refused, and so is what would undo it: detach that handle first.
        example_inputs: One small batch as the loop passes it, to find the unit groups; for several modules, a
            mapping from their names to the inputs of each. See :func:`~pliant.units.discover.find_units`.
        units: Or the unit groups, found before.
        seed: Seed of all fresh initial values; under DDP the same on all ranks. A sequence says that the model is a
            stack of members, one seed each: every parameter has a leading member dimension, and ``units`` are those
            of the single model.
        init: How parameters are initialised, where that is not PyTorch's own default for their layer, see
            :func:`pliant.units.init.initialisers`.
        dry_run: Only report in ``handle.events`` what would be edited; ``num_resets`` then counts what would be, too.
        moments: For optimizers from elsewhere: the names of their moments, the state with one entry per weight, and
            the value that a new weight's entry starts from, such as ``{"my_buffer": 0.0}``; ``"weights"`` if it
            starts as a copy of the weights, ``"keep"`` if a reset must not touch it.
        measure_change: A batch, as the loop passes it: every event then carries the largest relative change of the
            model's outputs on it (two forward passes for each edit, in evaluation mode). A reset of a unit that was
            in use is a change, also where it "preserves the function": that says that the new weights add nothing to
            the loss of the old ones.
        max_change: With ``measure_change``, the largest such change that one edit may make. An edit that makes a larger
            one is taken back at once: weights, buffers, moments and random states get the bits that they had, and the
            event says ``"undone"``. Of a reset of several units as many stay as are within the limit together (they
            are tried in halves, 16 times at most). The method is not told: to its books the units are new, so that it
            comes back to them in its own time. Each edit then waits for an accelerator.
        where: The part of the model in which methods act, besides their own ``where``: a pattern of names, or several
            with commas between; a module's name stands for all that is in it. Modules that a method puts into the
            model follow its own options.

    While it is attached, save ``state_dict()``s as usual; pickling the whole module (``torch.save(model)``) needs
    ``handle.detach()`` first, because hooks cannot be pickled. ``torch.distributed.checkpoint`` takes the handle
    itself, ``dcp.save({"model": ..., "optimizer": ..., "pliant": handle}, ...)``, and :func:`pliant.checkpoint.pack`
    makes of its state what safetensors store.

    The order for several processes: find the units of the plain model; wrap or shard it; make the optimizer; attach.

    Returns:
        The handle; keep it to save and load its state, to signal task boundaries, and to detach.

    Raises:
        IllegalConfiguration: If the model is compiled, an edited parameter belongs to no optimizer, a hyper-parameter
            is out of range, methods undo each other, an initial distribution is needed and unknown, or the model fails
            on ``measure_change``.
        NotYetSupported: If the optimizer keeps state that cannot be reset, or two optimizers update one tensor.
        NoEffect: If a method would find nothing to act on.

    Example:
        >>> import torch, pliant
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> method = pliant.ContinualBackprop(replacement_rate=0.01, maturity_threshold=5)
        >>> handle = pliant.attach(model, optimizer, method, example_inputs=torch.randn(3, 4))
        >>> for _ in range(100):
        ...     optimizer.zero_grad()
        ...     model(torch.randn(16, 4)).square().mean().backward()
        ...     optimizer.step()
        >>> handle.num_resets
        {'0': tensor(6)}
        >>> handle.detach()

        Several modules and optimizers, for example the ``policy.actor`` and ``policy.critic`` of Stable-Baselines3's
        SAC with ``[policy.actor.optimizer, policy.critic.optimizer]``, whose ``learn()`` stays as it is:

        >>> actor = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> critic = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1))
        >>> optimizers = [torch.optim.Adam(net.parameters()) for net in (actor, critic)]
        >>> inputs = {"actor": torch.randn(3, 4), "critic": torch.randn(3, 6)}
        >>> handle = pliant.attach({"actor": actor, "critic": critic}, optimizers, method, example_inputs=inputs)
        >>> [group.name for group in handle.units]
        ['actor.0', 'critic.0']
        >>> handle.detach()
    """
    refuse_trainer(model)
    if is_agent(model):
        if methods is not None and optimizer is not None:
            raise IllegalConfiguration("the optimizers of an agent are found by themselves: attach(agent, methods).")
        return _attach_agent(
            model,
            optimizer if methods is None else methods,
            example_inputs=example_inputs,
            units=units,
            seed=seed,
            init=init,
            dry_run=dry_run,
            moments=moments,
            measure_change=measure_change,
            max_change=max_change,
            where=where,
        )
    if methods is None or optimizer is None:
        raise IllegalConfiguration(
            "attach needs a model, its optimizer and the methods; only an agent of Stable-Baselines3 is attached to "
            "without naming optimizers."
        )
    given = cast(Models, model)
    plain, process_group = unwrapped(given, units)
    model = as_module(plain)
    refuse_wrapped(model, sharded=units is not None)
    process_group = process_group or process_group_of(model)
    if process_group is not None and not isinstance(seed, int):
        raise IllegalConfiguration("a stack of members cannot be spread over processes; train each member in one.")
    optimizers = as_optimizers(optimizer)
    for item in optimizers:
        check_optimizer(item)
    chosen: list[Any] = list(methods) if isinstance(methods, (list, tuple)) else [methods]
    for method in chosen:
        if not isinstance(method, Intervention):
            raise IllegalConfiguration(
                f"{method!r} is no intervention; pass instances such as pliant.ContinualBackprop()."
            )
    for method in chosen:
        method.check()
    check_conflicts(chosen)
    modules = parts_of(plain).values()
    if not dry_run:
        _check_others(modules, chosen, where)
    seeds = (seed,) if isinstance(seed, int) else tuple(seed)
    too_late = units is not None or process_group is not None or not isinstance(seed, int)
    operations = _operate(model, optimizers, chosen, seeds[0], example_inputs, too_late=too_late, dry_run=dry_run)
    units = units_of(model, example_inputs, units)
    _check_one_owner(model, optimizers, chosen, units)
    if measure_change is not None:
        check_batch(model, measure_change)
    _check_limit(max_change, measure_change, seed)
    _check_where(model, units, where)
    handle = Handle(
        model,
        optimizers,
        chosen,
        units,
        seeds=seeds,
        num_members=None if isinstance(seed, int) else len(seeds),
        init=init,
        dry_run=dry_run,
        process_group=process_group,
        moments=moments,
        measure_change=measure_change,
        max_change=max_change,
        where=where,
    )
    wrappers = wrappers_of(given)
    if wrappers:
        handle.also_remove([item.register_step_pre_hook(refuse_join(wrappers)) for item in optimizers])
    for module in modules:
        _HANDLES.setdefault(module, WeakSet()).add(handle)
    for name, tensors in operations:
        handle.events.intervention = name
        handle.events.add_tensors("surgery", tensors)
    return handle


def _attach_agent(
    agent: Any,
    methods: Any,
    *,
    example_inputs: Any,
    units: UnitGraph | None,
    init: InitSpec,
    dry_run: bool,
    moments: MomentSpec,
    **more: Any,
) -> Handle:
    """The same for the trained networks of an agent; its saves then take the handle's state along."""
    parts = parts_of_agent(agent)
    refuse_methods(parts.kind, methods if isinstance(methods, (list, tuple)) else [methods])
    if example_inputs is None and units is None:
        example_inputs = parts.example_inputs
    try:
        with parts.exportable():
            handle = attach(
                parts.models,
                parts.optimizers,
                methods,
                example_inputs=example_inputs,
                units=units,
                init=parts.init if init is None else init,
                dry_run=dry_run,
                moments=parts.moments if moments is None else moments,
                **more,
            )
    except PliantError as error:
        error.add_note(f"raised while attaching to the networks of this {parts.kind}")
        raise
    if handle.methods and not dry_run:
        try:
            guard_of(agent).add(handle)
        except PliantError:
            handle.detach()
            raise
    return handle


def _check_limit(max_change: float | None, measure_change: Inputs | None, seed: int | Sequence[int]) -> None:
    """Refuse a limit that could not be held."""
    if max_change is None:
        return
    if not 0 < max_change < float("inf"):
        raise IllegalConfiguration(f"max_change={max_change!r} is out of range; it must be positive and finite.")
    if measure_change is None:
        raise IllegalConfiguration("max_change needs a batch to measure the change on: pass measure_change=batch.")
    if not isinstance(seed, int):
        raise NotYetSupported("max_change is for single models: one member's edit would be measured by another's.")


def _check_where(model: nn.Module, units: UnitGraph, where: str) -> None:
    """Refuse a part of the model that is not there."""
    if any(is_within(group.name, where) for group in units):
        return
    if not any(matches(name, where) for name, _ in (*model.named_parameters(), *model.named_buffers())):
        names = ", ".join(name for name, _ in model.named_children()) or "none"
        raise NoEffect(
            f"attach(where={where!r}) matches nothing in the model, so nothing would be protected. Its modules are: "
            f"{names}; its unit groups: {', '.join(group.name for group in units) or 'none'}."
        )


def handles_of(model: nn.Module) -> list[Handle]:
    """The handles that are attached to a model; those that only report (``dry_run``) too.

    Args:
        model: The module that was given to :func:`attach`, or one that contains it.
    """
    found = {handle for module in model.modules() for handle in _HANDLES.get(module, ())}
    return [handle for handle in found if handle.is_attached]


def _check_others(modules: Iterable[nn.Module], methods: Sequence[Intervention], where: str) -> None:
    """Refuse methods that a handle on the same modules has already, or that undo what it does."""
    others = {handle for module in modules for handle in _HANDLES.get(module, ())}
    for other in others:
        if not other.is_attached or other.events.dry_run:
            continue
        for method in methods:
            apart = where != other.where and "*" not in (where, other.where)
            if not apart and any(type(method) is type(old) and _may_overlap(method, old) for old in other.methods):
                raise IllegalConfiguration(
                    f"{type(method).__name__} is attached to this model already ({other!r}), and would act twice. Call "
                    "detach() on that handle first; if it is meant to act twice, list both in one call of attach."
                )
        check_conflicts([*other.methods, *methods])


def _may_overlap(method: Intervention, other: Intervention) -> bool:
    """Whether two of a kind act on the same; patterns that differ are taken for different parts of the model."""
    mine, its = (item.unit_pattern() or item.parameter_pattern() for item in (method, other))
    return mine == its or "*" in (mine, its)


def _operate(
    model: nn.Module,
    optimizers: Sequence[Optimizer],
    methods: Sequence[Intervention],
    seed: int,
    example_inputs: Any,
    *,
    too_late: bool,
    dry_run: bool,
) -> list[tuple[str, tuple[str, ...]]]:
    """Let the methods that change the model do so; returns which tensors each has put in or taken out."""
    changing = [method for method in methods if method.changes_model]
    if not changing:
        return []
    names = ", ".join(type(method).__name__ for method in changing)
    if too_late:
        raise IllegalConfiguration(
            f"{names} changes the model, so the units are those of the changed model and ranks must agree on it: "
            "attach to the plain, single model with example_inputs=..., before any wrapper; units found before do not "
            "fit, and a stack of members cannot be changed."
        )
    if dry_run:
        raise IllegalConfiguration(f"{names} changes the model, which dry_run cannot show: try it on a deep copy.")
    if example_inputs is None:  # said before anything is changed
        raise IllegalConfiguration(f"{names} changes the model: pass example_inputs=(x,), one small batch.")
    done = []
    for method in changing:
        name = type(method).__name__
        try:
            done.append(
                (name, operate(model, optimizers, seed, partial(method.surgery_with, example_inputs=example_inputs)))
            )
        except NoEffect as error:
            raise NoEffect(f"{name}: {error}") from error
    return done


def _check_one_owner(
    model: nn.Module, optimizers: Sequence[Optimizer], methods: Sequence[Intervention], units: UnitGraph
) -> None:
    """A reset clears the moments in one optimizer; a tensor that two of them update would keep the other's."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    owners: dict[str, int] = {}
    for item in optimizers:
        for key in {id(p) for group in item.param_groups for p in group["params"]}:
            if key in names:
                owners[names[key]] = owners.get(names[key], 0) + 1
    patterns = [pattern for method in methods if (pattern := method.unit_pattern()) is not None]
    for group in {group.name: group for pattern in patterns for group in units.select(pattern)}.values():
        for name in group.tensors:
            if owners.get(name, 0) > 1:
                raise NotYetSupported(
                    f"{name!r} (unit group {group.name!r}) is updated by {owners[name]} of the optimizers; Pliant "
                    "edits tensors that one optimizer owns. Give it to one of them, or leave the group out with "
                    "where=..."
                )
