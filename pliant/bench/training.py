"""How members take their training steps: through autograd, by hand, or by replaying a captured graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, final

import torch
from torch import Tensor, nn

from pliant.bench.batches import Chunk, TaskData
from pliant.bench.cohorts import Cohort
from pliant.bench.fused import FusedMLP, Part, can_fuse, steps_by_hand

__all__ = ["Autograd", "ByHandSteps", "Steps", "make_steps"]


class Steps(Protocol):
    """Takes the training steps of a task."""

    def begin(self, data: TaskData, weight_S: Tensor | None) -> None:
        """A task begins; ``weight_S`` is the factor of each member's gradient, None for all ones."""

    def run(self, chunk: Chunk) -> Tensor:
        """Train on the batches of a chunk; return the outputs before each update, ``[K, S, B, ..., C]``."""
        ...


def make_steps(model: nn.Module, cohorts: Sequence[Cohort], *, stacked: bool, by_hand: bool | None = None) -> Steps:
    """Choose how the members of a run take their steps.

    Args:
        model: of all members.
        cohorts: their settings.
        stacked: whether the model is a stack.
        by_hand: True and False insist; None: where it can be done.
    """
    plain = not any(cohort.adds_to_loss or cohort.changes_batches for cohort in cohorts)
    if next(model.parameters()).is_cuda and plain and by_hand is None:
        from pliant.bench.graphs import Captured

        return Captured(model, cohorts, stacked=stacked)
    if by_hand is not False and plain and can_fuse(model) and all(_can_tell(cohort) for cohort in cohorts):
        return ByHandSteps(model, cohorts)
    return Autograd(model, cohorts, stacked=stacked)


def _can_tell(cohort: Cohort) -> bool:
    """Whether its interventions can follow steps that do not call the model."""
    wanted = {name for method in cohort.methods for name in method.needs}
    return not cohort.changes_model and not wanted & {"features", "mean_abs_gradient"}


@final
class ByHandSteps:
    """Stacked or single MLPs whose steps are written out, see :mod:`pliant.bench.fused`."""

    def __init__(self, model: Any, cohorts: Sequence[Cohort]) -> None:
        parts = [
            Part(
                cohort.members,
                tuple(cohort.model.parameters()),
                cohort.optimizer,
                None if cohort.handle is None else cohort.handle.by_hand(),
                None if cohort.step_sizes is None else cohort.step_sizes.before_step,
            )
            for cohort in cohorts
        ]
        leave_gradients = not all(steps_by_hand(cohort.methods) for cohort in cohorts)
        self.fused = FusedMLP(model, parts, leave_gradients=leave_gradients)

    def begin(self, data: TaskData, weight_S: Tensor | None) -> None:
        """Take note of the task's heads."""
        self._heads, self._weight_S = data.heads, weight_S

    def run(self, chunk: Chunk) -> Tensor:
        """See :class:`Steps`."""
        heads, weight_S, constants = self._heads, self._weight_S, chunk.constants.unbind(0)
        outputs = chunk.inputs.new_empty(*chunk.inputs.shape[:3], heads.num_outputs)
        self.fused.run(chunk.inputs, outputs, lambda step, out: heads.gradient(out, constants[step], weight_S))
        return outputs


@final
class Autograd:
    """Any model: forward, the gradient of the loss by hand, backward, and the optimizers' own steps."""

    def __init__(self, model: nn.Module, cohorts: Sequence[Cohort], *, stacked: bool) -> None:
        self.model, self.cohorts, self.stacked = model, cohorts, stacked
        self.parameters = list(model.parameters())
        only = cohorts[0] if len(cohorts) == 1 else None
        # Asked for at every step only where some intervention has a term for the loss.
        self.penalty: Callable[..., Any] | None = None
        self.batch: Callable[[Any], Any] | None = None
        if only is not None and only.handle is not None:
            self.penalty = only.handle.penalty if only.adds_to_loss else None
            self.batch = only.handle.batch if only.changes_batches else None
        self.hooks = [] if only is not None else _relay(model, cohorts)

    def begin(self, data: TaskData, weight_S: Tensor | None) -> None:
        """Take note of the task's heads."""
        self.heads, self.weight_S = data.heads, weight_S
        self.previous: Tensor | None = None  # inputs of the step before: what methods that compare outputs look at
        self.parameters = list(self.model.parameters())

    def run(self, chunk: Chunk) -> Tensor:
        """See :class:`Steps`."""
        heads, weight_S, cohorts = self.heads, self.weight_S, self.cohorts
        kept = []
        for inputs, targets, constant in zip(
            chunk.inputs.unbind(0), chunk.targets.unbind(0), chunk.constants.unbind(0), strict=True
        ):
            if self.batch is not None:
                inputs, constant = self._extended(inputs, targets)
            outputs = self.forward(inputs)
            detached = outputs.detach()
            gradient = heads.gradient(detached, constant, weight_S)
            for parameter in self.parameters:  # what zero_grad does, without its 20 us of bookkeeping
                parameter.grad = None
            extra = None
            if self.penalty is not None:
                extra = self._penalty(detached, constant, inputs)
            if isinstance(extra, Tensor) and extra.requires_grad:
                torch.autograd.backward([outputs, extra], [gradient, None])
            else:
                outputs.backward(gradient)  # type: ignore[no-untyped-call]
            for cohort in cohorts:
                cohort.share_gradients(self.model)
                if cohort.step_sizes is not None:
                    cohort.step_sizes.before_step()
                cohort.optimizer.step()
            kept.append(detached[:, : targets.shape[1]] if self.batch is not None else detached)  # new ones alone count
        return torch.stack(kept)

    def forward(self, inputs: Tensor) -> Tensor:
        """Outputs ``[S, B, ..., C]`` of a batch."""
        outputs: Tensor = self.model(inputs) if self.stacked else self.model(inputs[0]).unsqueeze(0)
        return outputs

    def _penalty(self, outputs: Tensor, constant: Tensor, inputs: Tensor) -> Any:
        """The methods' terms: they are told the loss, of each member in a stack, and inputs ``[S, B, F]`` seen before.

        The first step of a task has no step before it and is given its own batch.
        """
        assert self.penalty is not None
        reference = inputs if self.previous is None else self.previous
        self.previous = inputs
        loss_S = self.heads.loss(outputs, constant)
        if self.stacked:
            return self.penalty(loss=loss_S, reference=reference)
        return self.penalty(loss=loss_S[0], reference=reference[0])

    def _extended(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """A batch after the methods that act on batches, ``[S, B, F]``, and the constant part of its gradient."""
        assert self.batch is not None
        if self.stacked:
            inputs, targets = self.batch((inputs, targets))
        else:
            inputs, targets = (row.unsqueeze(0) for row in self.batch((inputs[0], targets[0])))
        constant = self.heads.constant(targets.unsqueeze(0), self._dtype, self.weight_S)[0]
        return inputs, constant

    @property
    def _dtype(self) -> torch.dtype:
        return self.parameters[0].dtype


def _relay(model: nn.Module, cohorts: Sequence[Cohort]) -> list[Any]:
    """Hooks on the whole stack that tell each cohort what its members' units do: its own model is never called."""
    tellers = [(cohort, cohort.handle.by_hand()) for cohort in cohorts if cohort.handle is not None]
    names = sorted({name for _, teller in tellers for name in teller.modules})

    def hook_for(name: str) -> Callable[[nn.Module, Any], None]:
        def hook(module: nn.Module, args: Any) -> None:
            if module.training and torch.is_grad_enabled():
                for cohort, teller in tellers:
                    if teller.listens:
                        teller.hear(name, args[0].detach()[cohort.members].clone())

        return hook

    return [model.get_submodule(name).register_forward_pre_hook(hook_for(name)) for name in names]
