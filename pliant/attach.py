"""``attach``: two lines that protect a model in a loop that stays as it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer

from pliant.errors import IllegalConfiguration
from pliant.handle import Handle
from pliant.interventions.base import Intervention
from pliant.optimizer_state import check_optimizer
from pliant.sharded import process_group_of, refuse_join
from pliant.units import UnitGraph, find_units
from pliant.units.export import Inputs, refuse_wrapped
from pliant.units.init import InitSpec

__all__ = ["attach"]


def attach(
    model: nn.Module,
    optimizer: Optimizer | Sequence[Optimizer],
    methods: Intervention | Sequence[Intervention],
    *,
    example_inputs: Inputs | None = None,
    units: UnitGraph | None = None,
    seed: int | Sequence[int] = 0,
    init: InitSpec = None,
    dry_run: bool = False,
) -> Handle:
    """Protect a model: the interventions act after every step of its optimizer, in a loop that stays as it is.

    Args:
        model: The model that is trained, before ``torch.compile``. A model wrapped in DistributedDataParallel, or
            sharded by ``fully_shard``, is accepted when ``units`` were found on the plain model.
        optimizer: The optimizer (or several) that updates it. Each unit group follows the clock of the optimizer that
            owns its incoming weights.
        methods: One intervention or an ordered list; they act in this order.
        example_inputs: One small batch as the loop passes it, to find the unit groups.
        units: Or the unit groups, found before.
        seed: Seed of all fresh initial values; under DDP the same on all ranks. A sequence says that the model is a
            stack of members, one seed each: every parameter has a leading member dimension, and ``units`` are those
            of the single model.
        init: How parameters are initialised, where that is not PyTorch's own default for their layer, see
            :func:`pliant.units.init.initialisers`.
        dry_run: Only report in ``handle.events`` what would be edited.

    While it is attached, save ``state_dict()``s as usual; pickling the whole module (``torch.save(model)``) needs
    ``handle.detach()`` first, because hooks cannot be pickled.

    Returns:
        The handle; keep it to save and load its state, to signal task boundaries, and to detach.

    Raises:
        IllegalConfiguration: If the model is compiled, an edited parameter belongs to no optimizer, a hyper-parameter
            is out of range, or an initial distribution is needed and unknown.
        NotYetSupported: If the optimizer keeps state that cannot be reset.
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
    """
    process_group = wrapped = None
    if isinstance(model, nn.parallel.DistributedDataParallel):
        if units is None:
            raise IllegalConfiguration(
                "the model is wrapped in DistributedDataParallel: find the units of the plain model before wrapping "
                "it, and pass units=..."
            )
        process_group, wrapped = model.process_group, model
        model = model.module
    refuse_wrapped(model, sharded=units is not None)
    process_group = process_group or process_group_of(model)
    if process_group is not None and not isinstance(seed, int):
        raise IllegalConfiguration("a stack of members cannot be spread over processes; train each member in one.")
    optimizers = [optimizer] if isinstance(optimizer, Optimizer) else _as_list(optimizer)
    for item in optimizers:
        check_optimizer(item)
    chosen = [methods] if isinstance(methods, Intervention) else list(methods)
    for method in chosen:
        if not isinstance(method, Intervention):
            raise IllegalConfiguration(
                f"{method!r} is no intervention; pass instances such as pliant.ContinualBackprop()."
            )
    if units is None:
        if example_inputs is None:
            raise IllegalConfiguration("pass example_inputs=(x,), one small batch, or units=pliant.find_units(...).")
        units = find_units(model, example_inputs)
    seeds = (seed,) if isinstance(seed, int) else tuple(seed)
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
    )
    if wrapped is not None:
        handle.also_remove([item.register_step_pre_hook(refuse_join(wrapped)) for item in optimizers])
    return handle


def _as_list(optimizer: Any) -> list[Optimizer]:
    if isinstance(optimizer, (list, tuple)):
        return list(optimizer)
    inner = getattr(optimizer, "optimizer", None)  # Accelerate's wrapper holds the real one
    if isinstance(inner, Optimizer):
        return [inner]
    return [optimizer]  # check_optimizer says what is wrong with it
