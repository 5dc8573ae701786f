"""Neighbouring members with the same settings: their optimizer and their interventions, on their share of a stack.

Members that differ in step size, replacement rate, optimizer or method train in one stack: forward and backward run
once for all. Each group of members with the same settings, a cohort, has an optimizer and a handle of its own. These
see a smaller stacked model whose parameters are views of the whole stack's, so that every element-wise optimizer and
every intervention works as it does on a stack of its own, bit by bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

import torch
from torch import Tensor, nn

from pliant.bench.ensemble import stack
from pliant.bench.experiment import Experiment
from pliant.bench.schedules import StepSizes
from pliant.errors import IllegalConfiguration, NoEffect, NotYetSupported

__all__ = ["ELEMENTWISE", "Cohort", "check_together", "find_units_of", "is_elementwise", "make_cohorts"]

ELEMENTWISE = frozenset(
    [
        *("SGD", "Adam", "AdamW", "Adamax", "NAdam", "RAdam", "RMSprop", "Adagrad", "Adadelta", "ASGD", "Rprop"),
        "UPGD",  # its largest utility is one for each member
    ]
)
"""Optimizers that move every weight by its own gradient and state, so that members do not touch each other."""


def is_elementwise(optimizer: torch.optim.Optimizer) -> bool:
    """Whether an optimizer is known to treat the members of a stack apart."""
    return type(optimizer).__name__ in ELEMENTWISE


def check_together(experiments: Sequence[Experiment]) -> None:
    """Refuse experiments whose members cannot share one stack.

    Raises:
        IllegalConfiguration: they differ in more than optimizer and methods.
        NotYetSupported: a method needs the whole forward pass for itself; names it.
    """
    first = experiments[0]
    for other in experiments[1:]:
        mine, theirs = first.to_dict(), other.to_dict()
        for name in mine.keys() | theirs.keys():
            if name not in ("optimizer", "methods", "schedule") and mine.get(name) != theirs.get(name):
                raise IllegalConfiguration(
                    f"members of one stack may differ in optimizer, schedule and methods; these differ in {name}: "
                    f"{mine.get(name)} and {theirs.get(name)}"
                )
    if len(experiments) == 1:
        return
    for experiment in experiments:
        for method in experiment.build_methods():
            name = type(method).__name__
            if adds_to_loss(method):
                raise NotYetSupported(
                    f"{name} adds a term to the loss, which would need a forward pass of its own among members with "
                    "other settings; run its seeds by themselves"
                )
            if changes_batches(method):
                raise NotYetSupported(
                    f"{name} changes the batches, and members of one stack train on batches of one size; run its seeds "
                    "by themselves"
                )


def adds_to_loss(method: Any) -> bool:
    """Whether a method has a term for the loss, as it is set."""
    from pliant.interventions.base import Intervention

    if type(method).penalty is Intervention.penalty:
        return False
    says = type(method).needs_penalty is not Intervention.needs_penalty and type(method).__module__.startswith(
        "pliant."
    )
    return bool(method.needs_penalty) if says else True


def changes_batches(method: Any) -> bool:
    """Whether a method acts on batches."""
    from pliant.interventions.base import Intervention

    return type(method).on_batch is not Intervention.on_batch


def find_units_of(model: nn.Module, example: Tensor, *, required: bool) -> Any:
    """Return the unit graph of a single model, or None where it has none and no method needs it."""
    from pliant.units import find_units

    try:
        return find_units(model, (example,))
    except NoEffect:
        if required:
            raise
        return None


@final
class Cohort:
    """The members of one experiment within a run, with their optimizer and their interventions.

    Args:
        experiment: their settings.
        seeds: one for each.
        start: the position of the first of them among all members.
        model: their model: the whole one where all members have the same settings.
        units: the units of the single model, or None.
        first_inputs: what methods that change the model look at; None where there are none.
        stacked: whether ``model`` is a stack.

    Attributes:
        members: their positions among all members.
        optimizer: theirs.
        step_sizes: their schedule at work; None for a constant step size.
        handle: their interventions; None without any.
    """

    def __init__(
        self,
        experiment: Experiment,
        seeds: Sequence[int],
        start: int,
        model: nn.Module,
        units: Any,
        first_inputs: Tensor | None,
        *,
        stacked: bool,
        init: Any,
    ) -> None:
        self.experiment, self.seeds, self.model, self.stacked = experiment, tuple(seeds), model, stacked
        self.members = slice(start, start + len(seeds))
        self.optimizer = experiment.build_optimizer(model, self.seeds if stacked else self.seeds[0])
        if next(model.parameters()).is_cuda:  # a captured step keeps its counters on the device
            for group in self.optimizer.param_groups:
                if "capturable" in group:
                    group["capturable"] = True
        self.methods = experiment.build_methods()
        self.adds_to_loss = any(adds_to_loss(method) for method in self.methods)
        self.changes_batches = any(changes_batches(method) for method in self.methods)
        self.changes_model = first_inputs is not None
        schedule = experiment.build_schedule()
        self.step_sizes = None if schedule is None else StepSizes(schedule, self.optimizer, experiment.num_tasks)
        self.handle: Any = None
        if self.methods:
            from pliant.attach import attach

            self.handle = attach(
                model,
                self.optimizer,
                self.methods,
                units=units,
                example_inputs=None if first_inputs is None else (first_inputs,),
                seed=list(self.seeds) if stacked else self.seeds[0],
                init=init,
            )

    def num_resets(self) -> Tensor:
        """Units reset so far, float64 ``[members]``."""
        total = torch.zeros(len(self.seeds), dtype=torch.float64)
        if self.handle is not None:
            for count in self.handle.num_resets.values():
                total += torch.as_tensor(count, dtype=torch.float64).cpu()
        return total

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps beside the model."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "handle": None if self.handle is None else self.handle.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from :meth:`state_dict`."""
        self.optimizer.load_state_dict(state["optimizer"])
        if self.handle is not None:
            self.handle.load_state_dict(state["handle"])

    def silence(self, member: int) -> None:
        """Zero the weights and the moments of one member, given by its position among all."""
        local = member - self.members.start
        with torch.no_grad():
            for tensor in (*self.model.parameters(), *self.model.buffers()):
                (tensor[local] if self.stacked else tensor).zero_()
            for parameter in self.model.parameters():
                for value in self.optimizer.state.get(parameter, {}).values():
                    if isinstance(value, Tensor) and value.shape == parameter.shape:
                        (value[local] if self.stacked else value).zero_()

    def share_gradients(self, whole: nn.Module) -> None:
        """Give the parameters their share of the gradients of the whole stack."""
        if whole is self.model:
            return
        for mine, theirs in zip(self.model.parameters(), whole.parameters(), strict=True):
            mine.grad = None if theirs.grad is None else theirs.grad[self.members]

    def close(self) -> None:
        """Detach from model and optimizer."""
        if self.handle is not None:
            self.handle.detach()
            self.handle = None


def make_cohorts(
    experiments: Sequence[Experiment],
    seeds: Sequence[int],
    whole: nn.Module,
    singles: Sequence[nn.Module],
    example: Tensor,
    *,
    units: Any,
    first_inputs: Tensor | None,
    stacked: bool,
) -> list[Cohort]:
    """The cohorts of a run: one for each experiment, with all seeds each.

    Args:
        experiments: in order, see :func:`check_together`; the members of each follow those of the one before.
        seeds: of every experiment.
        whole: the model of all members.
        singles: the single models, one for each member.
        example: a small batch of one member.
        units: of the single model; None where there are none.
        first_inputs: see :class:`Cohort`.
        stacked: whether ``whole`` is a stack.
    """
    made = []
    for number, experiment in enumerate(experiments):
        start = number * len(seeds)
        model = whole
        if len(experiments) > 1:
            model = _share(whole, singles[start : start + len(seeds)], start, example)
        made.append(
            Cohort(
                experiment,
                seeds,
                start,
                model,
                units,
                first_inputs,
                stacked=stacked,
                init=getattr(singles[0], "init", None),
            )
        )
    return made


def _share(whole: nn.Module, singles: Sequence[nn.Module], start: int, example: Tensor) -> nn.Module:
    """A stacked model of some members whose parameters and buffers are views of the whole stack's."""
    model = stack(singles, example).to(next(whole.parameters()).device)
    members = slice(start, start + len(singles))
    for (_, mine), (_, theirs) in zip(model.named_modules(), whole.named_modules(), strict=True):
        for name, parameter in theirs._parameters.items():
            if parameter is not None:
                view = parameter.detach()[members]
                mine._parameters[name] = nn.Parameter(view, requires_grad=parameter.requires_grad)
        for name, buffer in theirs._buffers.items():
            if buffer is not None:
                mine._buffers[name] = buffer[members]
    return model.train(whole.training)
