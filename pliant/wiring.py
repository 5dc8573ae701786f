"""What ``attach`` checks and works out before a handle starts: who owns what, and which units each method can edit."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from pliant.edit import Editor
from pliant.errors import IllegalConfiguration, NoEffect
from pliant.forward import outputs, relative_change
from pliant.interventions.base import Context, Intervention
from pliant.optimizer_state import check_units
from pliant.units import find_units
from pliant.units.export import Inputs
from pliant.units.graph import UnitGraph
from pliant.units.group import UnitGroup
from pliant.units.patterns import matches
from pliant.units.rename import as_named_in
from pliant.units.several import Models

__all__ = [
    "as_optimizers",
    "change_of",
    "check_batch",
    "check_boundary",
    "check_conflicts",
    "check_method",
    "check_same",
    "check_shapes",
    "editable_groups",
    "find_owners",
    "inputs_first",
    "is_dry_step",
    "is_within",
    "labels",
    "needed_statistics",
    "on_step",
    "parts_of",
    "passed_on",
    "prepare",
    "recorded",
    "refuse_trainer",
    "units_of",
    "unwrapped",
    "with_terms",
    "wrappers_of",
]


def wrappers_of(model: Models) -> list[nn.Module]:
    """The DistributedDataParallel wrappers among what was given."""
    return [part for part in parts_of(model).values() if isinstance(part, nn.parallel.DistributedDataParallel)]


def unwrapped(model: Models, units: UnitGraph | None) -> tuple[Models, Any]:
    """The plain module or modules, and the process group of their DistributedDataParallel wrappers.

    Raises:
        IllegalConfiguration: If only some are wrapped, or the units were not found before.
    """
    several = isinstance(model, Mapping)
    parts = parts_of(model)
    wrapped = {name: part for name, part in parts.items() if isinstance(part, nn.parallel.DistributedDataParallel)}
    if not wrapped:
        return model, None
    if units is None or len(wrapped) < len(parts):
        which = ", ".join(map(repr, wrapped)) if several else "the model"
        raise IllegalConfiguration(
            f"{which} is wrapped in DistributedDataParallel: "
            + (
                "find the units of the plain model before wrapping it, and pass units=..."
                if units is None
                else "wrap all of the models in it, or none, so that all ranks decide on the same statistics."
            )
        )
    process_group = next(iter(wrapped.values())).process_group
    plain = {name: part.module for name, part in wrapped.items()}
    return (plain if several else plain[""]), process_group


def parts_of(model: Models) -> dict[str, nn.Module]:
    """The modules by name; one alone has the empty name."""
    return dict(model) if isinstance(model, Mapping) else {"": model}


def as_optimizers(optimizer: Any) -> list[Any]:
    """One optimizer, or several, as a list; who uses them says what is wrong with something else."""
    return [_inner(item) for item in (optimizer if isinstance(optimizer, (list, tuple)) else [optimizer])]


def _inner(optimizer: Any) -> Any:
    """The optimizer whose ``step()`` runs hooks: Accelerate's and Lightning's wrappers hold it, and run none."""
    inner = getattr(optimizer, "optimizer", None)
    is_one = isinstance(optimizer, Optimizer) and "_optimizer_step_post_hooks" in vars(optimizer)
    return _inner(inner) if isinstance(inner, Optimizer) and not is_one else optimizer


_TRAINERS = {
    ("transformers", "Trainer"): "Trainer(..., callbacks=[pliant.huggingface.Protect(methods)])",
    ("lightning", "Trainer"): "Trainer(..., callbacks=[pliant.lightning.Protect(methods)])",
    ("pytorch_lightning", "Trainer"): "Trainer(..., callbacks=[pliant.lightning.Protect(methods)]) of `lightning`",
}


def refuse_trainer(model: Any) -> None:
    """Refuse a framework's trainer in place of a model: its optimizer does not exist before training begins.

    Raises:
        IllegalConfiguration: Naming the callback that attaches at the right moment.
    """
    for kind in type(model).__mro__:
        callback = _TRAINERS.get((kind.__module__.partition(".")[0], kind.__name__))
        if callback is not None:
            raise IllegalConfiguration(
                f"{type(model).__name__} is a trainer, not a model, and makes its optimizer when training begins: use "
                f"{callback}."
            )


def units_of(model: nn.Module, example_inputs: Any, units: UnitGraph | None) -> UnitGraph:
    """The unit graph that was given, under the names that the model has now, or the one found with example inputs.

    Raises:
        IllegalConfiguration: If neither was given, or something else than a unit graph.
    """
    if units is None:
        if example_inputs is None:
            raise IllegalConfiguration("pass example_inputs=(x,), one small batch, or units=pliant.find_units(...).")
        units = find_units(model, example_inputs)
    if not isinstance(units, UnitGraph):
        raise IllegalConfiguration(
            f"units is of type {type(units).__name__}; pass units=pliant.find_units(model, x), or example_inputs=(x,)."
        )
    return as_named_in(units, model)


def check_conflicts(methods: Sequence[Intervention]) -> None:
    """Refuse methods that undo each other; they say so themselves.

    Raises:
        IllegalConfiguration: Naming both, and why.
    """
    for i, one in enumerate(methods):
        for j, other in enumerate(methods):
            why = one.conflicts_with(other) if i != j else None
            if why is not None:
                raise IllegalConfiguration(
                    f"{type(one).__name__} and {type(other).__name__} do not go together: {why.rstrip('.')}."
                )


def labels(methods: Sequence[Intervention]) -> list[str]:
    """A name for each method; one that is listed twice is ``"<method>#2"``."""
    names = [type(method).__name__ for method in methods]
    counts = [names[:m].count(name) for m, name in enumerate(names)]
    return [name + (f"#{before + 1}" if before else "") for name, before in zip(names, counts, strict=True)]


def check_shapes(units: UnitGraph, tensors: Mapping[str, Tensor], num_members: int | None, model: str) -> None:
    """Refuse a unit graph of another model.

    Raises:
        IllegalConfiguration: Naming the tensor that is missing or does not fit.
    """
    for group in units:
        for piece in group.slices:
            if piece.name not in tensors:
                raise IllegalConfiguration(
                    f"the unit graph names {piece.name!r}, which {model} does not have. Find the units of this model."
                )
            tensor = tensors[piece.name]
            largest = max(max(row) for row in piece.table)
            wrong_stack = num_members is not None and tensor.shape[0] != num_members
            if wrong_stack or tensor.ndim < -piece.dim or tensor.shape[piece.dim] <= largest:
                raise IllegalConfiguration(
                    f"{piece.name!r} has shape {tuple(tensor.shape)}, which does not fit the unit graph"
                    + (f" of a stack of {num_members} members." if num_members else ".")
                    + " Find the units of this model."
                )


def check_same(
    now: Mapping[str, Tensor], attached: Mapping[str, Tensor], units: UnitGraph, owners: Mapping[str, Optimizer]
) -> None:
    """Refuse to go on with a model whose tensors are others than those that were there at ``attach``.

    Raises:
        IllegalConfiguration: Naming the tensor.
    """
    for group in units:
        for name in group.tensors:
            if name in owners and now.get(name) is not attached[name]:
                raise IllegalConfiguration(
                    f"{name!r} of the model is not the tensor that pliant was attached to: a layer was replaced, or "
                    "load_state_dict(assign=True) was used, and edits would go nowhere. Do that first, then attach "
                    "(and give the optimizer the new parameters)."
                )


def check_boundary(methods: Sequence[Intervention], *, is_quiet: bool) -> None:
    """Refuse a task boundary in a quiet period, if what methods do at boundaries would be left out.

    Raises:
        IllegalConfiguration: Naming them.
    """
    waiting = [type(method).__name__ for method in methods if method.needs_boundary]
    if is_quiet and waiting:
        raise IllegalConfiguration(
            f"{', '.join(waiting)} acts at task boundaries, and a quiet period is on, in which nothing is edited. Call "
            "handle.resume() before handle.task_boundary()."
        )


def inputs_first(units: UnitGraph, tensors: Mapping[str, Tensor]) -> set[str]:
    """Matrices whose last dimension is the output: ``x @ W`` instead of ``nn.Linear``'s ``x @ W.T``."""
    ends = {("incoming", -1), ("outgoing", -2)}
    found = {piece.name for group in units for piece in group.slices if (piece.role, piece.dim) in ends}
    return {name for name in found if name in tensors and tensors[name].ndim == 2}


def find_owners(tensors: Mapping[str, Tensor], optimizers: Sequence[Optimizer]) -> dict[str, Optimizer]:
    """Which optimizer updates each parameter."""
    by_id = {id(p): item for item in optimizers for group in item.param_groups for p in group["params"]}
    return {name: by_id[id(tensor)] for name, tensor in tensors.items() if id(tensor) in by_id}


def editable_groups(
    method: Intervention, units: UnitGraph, tensors: Mapping[str, Tensor], excluded: dict[str, str], where: str = "*"
) -> list[UnitGroup]:
    """The groups that a method edits; those with frozen parameters go to ``excluded``, with the reason.

    Args:
        method: The method.
        units: The unit graph.
        tensors: Parameters and buffers by name.
        excluded: Group name to the reason why it is left alone.
        where: The part of the model in which methods act, besides their own patterns.

    Raises:
        NoEffect: If none is left.
    """
    pattern = method.unit_pattern()
    if pattern is None:
        return []
    try:
        groups = units.require(pattern)
    except NoEffect as error:
        raise NoEffect(" ".join(filter(None, [f"{type(method).__name__}: {error}", method.hint]))) from None
    groups = tuple(group for group in groups if is_within(group.name, where))
    if not groups:
        raise NoEffect(
            f"{type(method).__name__}: no unit group that matches {pattern!r} is in attach(where={where!r}), so it "
            f"would do nothing. The model's groups are: {', '.join(group.name for group in units)}."
        )
    for group in groups:
        fixed = [n for n in group.tensors if isinstance(tensors[n], nn.Parameter) and not tensors[n].requires_grad]
        if fixed:
            excluded[group.name] = f"frozen parameters: {', '.join(fixed)}"
    usable = [group for group in groups if group.name not in excluded]
    if method.needs & {"features", "mean_abs_gradient"}:  # what is recomputed apart from the forward has no graph
        apart = [group.name for group in usable if group.name in units.replays]
        usable = [group for group in usable if group.name not in apart]
        if apart and not usable:
            raise NoEffect(
                f"{type(method).__name__} needs activations with their graph, and those of {', '.join(apart)} are "
                "recomputed apart from the forward pass. Choose other groups with where=..."
            )
    if not usable:
        raise NoEffect(
            f"{type(method).__name__}: every unit group that matches {pattern!r} has frozen parameters "
            f"({', '.join(sorted(excluded))}), so it would do nothing."
        )
    return usable


def is_within(group: str, where: str) -> bool:
    """Whether a unit group is in a part of the model; whoever names a module names all kinds of units in it.

    Example:
        >>> [is_within(name, "encoder, head") for name in ("encoder.0", "encoder.1:heads", "head", "body.0")]
        [True, True, True, False]
    """
    return matches(group, where) or matches(group.replace(":", "."), where)


def check_method(
    method: Intervention,
    groups: Sequence[UnitGroup],
    tensors: Mapping[str, Tensor],
    owners: Mapping[str, Optimizer],
    edit: Editor,
) -> None:
    """Refuse what a method could not do right on the groups that it edits.

    Raises:
        IllegalConfiguration: If nobody owns a parameter, activations cannot be seen, or an initial distribution is
            unknown or zero.
        NotYetSupported: If an optimizer's state cannot be reset unit by unit.
    """
    stacked = edit.num_members is not None
    for group in groups:
        for name in group.tensors:
            if not isinstance(tensors[name], nn.Parameter):
                continue
            if name not in owners:
                raise IllegalConfiguration(
                    f"{type(method).__name__} would edit {name!r} (unit group {group.name!r}), but no given "
                    "optimizer owns it. Pass every optimizer that trains the model, or leave the group out "
                    "with where=..."
                )
            check_units(owners[name], tensors[name], name)
        if method.needs and group.tap is None:
            raise IllegalConfiguration(
                f"{type(method).__name__} reads activations, but those of {group.name!r} cannot be seen by any "
                "hook. Leave the group out with where=..."
            )
        if method.redraws:
            drawn = [(edit.init_of(piece.name), piece) for piece in group.role("incoming")]
            matrices = [init for init, piece in drawn if piece.rank(tensors[piece.name], is_stack=stacked) > 1]
            if matrices and all(init.kind == "constant" and init.scale == 0 for init in matrices):
                raise IllegalConfiguration(
                    f"{type(method).__name__} would draw units of {group.name!r} anew, whose incoming weights all "
                    "start at zero: with outgoing zeros they would stay dead (a LoRA adapter of an embedding; "
                    "pliant.lora.RankRecycling knows how). Leave the group out with where=..., or say how it is drawn "
                    "with init=..."
                )


def needed_statistics(methods: Sequence[Intervention], usable: Sequence[frozenset[str]]) -> dict[str, frozenset[str]]:
    """Group name to the statistics that some method reads of it."""
    needs: dict[str, frozenset[str]] = {}
    for method, names in zip(methods, usable, strict=True):
        if method.needs:
            for name in sorted(names):  # in the same order in every process: reading sharded tensors is collective
                needs[name] = needs.get(name, frozenset()) | method.needs
    return needs


def prepare(method: Intervention, contexts: Sequence[Context]) -> None:
    """Nothing to act on for one optimizer (of a temperature, say) is fine; for all of them it is an error.

    Raises:
        NoEffect: The first one's.
    """
    without: list[NoEffect] = []
    for ctx in contexts:
        try:
            method.prepare(ctx)
        except NoEffect as error:
            without.append(error)
    if without and len(without) == len(contexts):
        raise without[0]


def passed_on(batch: Any, methods: Sequence[Intervention], contexts: Sequence[Sequence[Context]]) -> Any:
    """A batch after all methods that act on batches, in order, each with the context of the first optimizer."""
    for method, row in zip(methods, contexts, strict=True):
        if type(method).on_batch is not Intervention.on_batch:
            batch = method.on_batch(row[0], batch)
    return batch


def with_terms(
    total: Tensor,
    methods: Sequence[Intervention],
    contexts: Sequence[Sequence[Context]],
    loss: Tensor | None,
    reference: Inputs | None,
) -> Tensor:
    """A number plus the loss terms of all methods on all optimizers, with their graphs: ``[]``."""
    for method, row in zip(methods, contexts, strict=True):
        if type(method).penalty is Intervention.penalty:
            continue
        for ctx in row:
            ctx.loss, ctx.reference = loss, reference
            term = method.penalty(ctx)
            ctx.loss = ctx.reference = None  # the graph must not be kept alive
            if term is not None:
                total = total + term
    return total


def recorded(methods: Sequence[Intervention], contexts: Sequence[Sequence[Context]]) -> dict[str, float]:
    """What the methods report of themselves, by ``"<method>.<name>"``, with ``"[1]"`` where optimizers are several."""
    found: dict[str, float] = {}
    for label, method, row in zip(labels(methods), methods, contexts, strict=True):
        for ctx in row:
            which = f"[{ctx.index}]" if len(row) > 1 else ""
            for key, value in method.on_record(ctx).items():
                found[f"{label}.{key}{which}"] = float(value)
    return found


def check_batch(model: nn.Module, batch: Inputs) -> None:
    """Refuse, before training starts, a batch on which no change can be measured.

    Raises:
        IllegalConfiguration: If the model fails on it, or returns no numbers.
    """
    try:
        before = outputs(model, batch)
    except IllegalConfiguration:
        raise
    except Exception as error:
        raise IllegalConfiguration(
            f"{type(model).__name__} fails on the batch given as measure_change, in evaluation mode: "
            f"{type(error).__name__}: {str(error).rstrip('.')}. Pass one batch as the training loop passes it."
        ) from error
    relative_change(before, before)


def change_of(model: nn.Module, batch: Inputs) -> Callable[[], Tensor]:
    """Remember the outputs on a batch; what is returned tells by how much they have changed since."""
    before = outputs(model, batch)
    return lambda: relative_change(before, outputs(model, batch))


def on_step(optimizer: Optimizer, after: Callable[..., None], before: Callable[..., None] | None = None) -> list[Any]:
    """Hooks that fire once for each step.

    PyTorch's own fire twice where a subclass's ``step`` calls its parent's, if the parent class has ever been used by
    itself in this process: the inner call, too, runs all hooks.

    Args:
        optimizer: The optimizer.
        after: Called after each step with the arguments of PyTorch's hooks.
        before: Called before it.

    Returns:
        Handles to remove the hooks.
    """
    kinds = [kind for kind in type(optimizer).__mro__ if issubclass(kind, Optimizer) and kind is not Optimizer]
    if sum("step" in vars(kind) for kind in kinds) < 2:  # nobody's parent: PyTorch's hooks are right, and cost less
        hooks = [optimizer.register_step_post_hook(after)]
        return [optimizer.register_step_pre_hook(before), *hooks] if before is not None else hooks
    depth = 0

    def enter(item: Optimizer, args: Any, kwargs: Any) -> None:
        nonlocal depth
        if depth and not _is_nested(item):
            depth = 0  # an earlier step has raised, and never came to its end
        depth += 1
        if depth == 1 and before is not None:
            before(item, args, kwargs)

    def leave(item: Optimizer, args: Any, kwargs: Any) -> None:
        nonlocal depth
        depth = max(depth - 1, 0)
        if not depth:
            after(item, args, kwargs)

    return [optimizer.register_step_pre_hook(enter), optimizer.register_step_post_hook(leave)]


def _is_nested(optimizer: Optimizer) -> bool:
    """Whether a step of this optimizer is running inside another one: PyTorch's wrapper is on the stack twice."""
    frame, found = sys._getframe(1), 0
    while frame is not None and found < 2:
        if frame.f_code.co_name == "wrapper" and frame.f_locals.get("self") is optimizer:
            found += 1
        frame = frame.f_back  # type: ignore[assignment]
    return found == 2


def is_dry_step(optimizer: Optimizer) -> bool:
    """Whether the optimizer is only being made to create its state.

    ``torch.distributed.checkpoint`` calls ``optimizer.step()`` with step size zero and gradients of zero, before it
    saves or loads an optimizer that has no state. No training step is that, and nothing may happen at it.
    """
    rate = optimizer.param_groups[0].get("lr", 1.0)
    if type(rate) is float and rate:  # nearly always, and asked at every step
        return False
    if isinstance(rate, Tensor) and (rate.device.type != "cpu" or rate.ndim):
        return False
    if rate != 0:
        return False
    frame = sys._getframe(1)
    while frame.f_back is not None:  # only at step size zero: a warm-up may begin there, so the caller decides
        frame = frame.f_back
        if frame.f_code.co_name == "_init_optim_state" and "checkpoint" in frame.f_code.co_filename:
            return True
    return False
