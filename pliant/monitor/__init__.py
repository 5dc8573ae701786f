"""``monitor``: metrics of the units while the user's own loop runs, and alarms."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from typing import Any

from torch.optim import Optimizer

from pliant.errors import IllegalConfiguration, NoEffect, PliantError
from pliant.monitor.alarms import Alarm
from pliant.monitor.core import Monitor
from pliant.monitor.history import History, Reading
from pliant.monitor.watched import DEFAULT, METRICS
from pliant.monitor.writers import CSVWriter, JSONLWriter, MLflowWriter, TensorBoardWriter, WandbWriter, Writer
from pliant.sharded import process_group_of, refuse_join
from pliant.units import UnitGraph
from pliant.units.export import refuse_wrapped
from pliant.units.init import InitSpec
from pliant.units.several import Models, as_module
from pliant.wiring import as_optimizers, refuse_trainer, units_of, unwrapped, wrappers_of

__all__ = [
    "DEFAULT",
    "METRICS",
    "Alarm",
    "CSVWriter",
    "History",
    "JSONLWriter",
    "MLflowWriter",
    "Monitor",
    "Reading",
    "TensorBoardWriter",
    "WandbWriter",
    "Writer",
    "monitor",
]

Callback = Callable[[Alarm], object]


def monitor(
    model: Models,
    optimizer: Optimizer | Sequence[Optimizer],
    metrics: str | Sequence[str] = DEFAULT,
    *,
    example_inputs: Any = None,
    units: UnitGraph | None = None,
    every: int | None = None,
    budget: float | None = 0.01,
    where: str = "*",
    num_samples: int = 512,
    history: int = 10_000,
    reference: Any = None,
    init: InitSpec = None,
    padding: str | int | None = "attention_mask",
    writers: Writer | Sequence[Writer] = (),
    on_alarm: Callback | Sequence[Callback] = (),
) -> Monitor:
    """Measure a model every so many optimizer steps, on the forward passes, gradients and steps of training itself.

    Nothing runs twice: on sampled steps, hooks keep some activations of the training forward, and the metrics are
    computed after the step. Other steps cost one Python call for each optimizer. Light metrics are read every
    ``every`` steps; heavy ones (ranks, clones, the distance from the beginning) are measured by their own clock and
    spaced out, so that all of it together stays within ``budget``.

    Alarms are raised where a metric becomes much worse than in the model's own past, or than in a freshly initialised
    twin, in two readings in a row; see :class:`Alarm` and ``docs/monitor.md``.

    Args:
        model: The model that is trained, before ``torch.compile``; or several by name. A model wrapped in
            DistributedDataParallel, or sharded by ``fully_shard``, is accepted with ``units`` of the plain model: what
            the processes see is then put together, and every process reports the same.
        optimizer: Its optimizer, whose steps are the clock. Of several, the steps of the first; gradients and updates
            are read at the steps of the optimizer that owns the weights.
        metrics: Names out of :data:`METRICS`, or one.
        example_inputs: One small batch, to find the unit groups.
        units: Or the unit groups, found before.
        every: Steps between light readings. By default 500, and more where these would take more than half of the
            budget; a number that is given is kept to.
        budget: The share of the time of training steps that monitoring may take. ``None``: no limit, and all metrics
            are in every reading.
        where: Which unit groups, a pattern of names.
        num_samples: At most so many samples per group and reading (batch, time and space are samples). Ranks are
            bounded by it.
        history: Readings kept in memory. Of the older half ever fewer are kept as the run
            goes on, see :class:`History`.
        reference: A batch as the loop passes it, on which a freshly initialised twin is measured once, now.
            ``example_inputs`` if left out; ``False`` for no twin.
        init: How parameters are initialised, where that is not PyTorch's own default for their layer; for the twin.
        padding: The argument of the model's call that is an attention mask ``[B, T]``: its keyword, or its place.
            Positions where it is 0 are no samples.
        writers: Where readings and alarms go: :class:`CSVWriter`, :class:`JSONLWriter`, :class:`TensorBoardWriter`,
            :class:`WandbWriter`, :class:`MLflowWriter`, or anything with their methods.
        on_alarm: Called with every :class:`Alarm` that is raised or withdrawn, within the ``optimizer.step()`` after
            which it was; it may act, for instance attach a method.

    Returns:
        The monitor: ``latest``, ``history``, ``current``, ``alarms``, ``cost``, ``state_dict()``, ``detach()``.

    Raises:
        IllegalConfiguration: For an unknown metric, a compiled model or what is no optimizer; at the first step and at
            readings, if no training forward was seen.
        NoEffect: If there is nothing to measure.

    Example:
        >>> import torch, pliant
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> watch = pliant.monitor(model, optimizer, ["dead_fraction"], example_inputs=torch.randn(3, 4), every=1)
        >>> model(torch.randn(16, 4)).square().mean().backward()
        >>> optimizer.step()
        >>> 0 <= watch.latest.values["dead_fraction"]["0"] <= 1
        True
        >>> watch.alarms
        ()
        >>> watch.detach()
    """
    refuse_trainer(model)
    plain, process_group = unwrapped(model, units)
    module = as_module(plain)
    refuse_wrapped(module, sharded=units is not None)
    process_group = process_group or process_group_of(module)  # which refuses what is sharded in another way
    optimizers = as_optimizers(optimizer)
    for item in optimizers or [None]:
        if not isinstance(item, Optimizer):
            raise IllegalConfiguration(f"monitor counts the steps of an optimizer; {type(item).__name__} is none.")
    names = tuple(dict.fromkeys([metrics] if isinstance(metrics, str) else metrics))
    for name in names:
        if name not in METRICS:
            near = difflib.get_close_matches(name, METRICS, n=3) or METRICS
            raise IllegalConfiguration(f"there is no metric {name!r} to monitor; nearest: {', '.join(near)}.")
    if not names:
        raise NoEffect("monitor was given no metric, so it would measure nothing.")
    if (every is not None and every < 1) or num_samples < 1 or history < 1:
        raise IllegalConfiguration("monitor: every, num_samples and history must be at least 1.")
    if budget is not None and not 0 < budget <= 1:
        raise IllegalConfiguration(f"monitor: budget is a share of the time, in (0, 1], or None; not {budget}.")
    found = Monitor(
        module,
        optimizers,
        names,
        units_of(module, example_inputs, units),
        every=every,
        budget=budget,
        where=where,
        num_samples=num_samples,
        history=history,
        padding=padding,
        process_group=process_group,
        writers=list(writers) if isinstance(writers, (list, tuple)) else [writers],  # type: ignore[list-item]
        on_alarm=[on_alarm] if callable(on_alarm) else list(on_alarm),
    )
    if wrappers := wrappers_of(model):
        found.also_remove([item.register_step_pre_hook(refuse_join(wrappers)) for item in optimizers])
    _add_twin(found, example_inputs if reference is None else reference, init, asked=reference is not None)
    return found


def _add_twin(found: Monitor, inputs: Any, init: InitSpec, *, asked: bool) -> None:
    """Compare with a fresh twin where there is a batch; only one that was asked for must exist."""
    if inputs is None or inputs is False:
        return found.without_twin("no batch was given: pass reference=batch." if inputs is None else "reference=False.")
    try:
        found.compare_with_fresh(inputs, init=init)
    except Exception as error:  # the batch goes through the user's own code
        reason = str(error).strip().partition("\n")[0]
        if not asked:
            return found.without_twin(reason)
        found.detach()
        if isinstance(error, PliantError):
            raise
        raise IllegalConfiguration(f"the batch given as reference fails in training mode: {reason}") from error
    return None
