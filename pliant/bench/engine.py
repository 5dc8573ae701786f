"""The training loop of the benchmarks: one experiment, several seeds at once where the model allows it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pliant import metrics, records
from pliant.bench import checkpoint, measure
from pliant.bench.ensemble import stack
from pliant.bench.experiment import Experiment
from pliant.bench.schedules import StepSizes
from pliant.bench.streams.base import Task, generator
from pliant.errors import IllegalConfiguration, NoEffect, NotYetSupported, RecordError, UnsupportedError

__all__ = ["Failure", "Members", "Stopped", "can_stack"]

_CHUNK_BYTES = 32 * 2**20
"""Batches are gathered from the task's data in chunks of about this size, not one by one."""


class Stopped(Exception):
    """The run was asked to stop; what it had finished is in its checkpoint."""


@dataclass(frozen=True)
class Failure:
    """Why and at which task (its index) one seed failed."""

    task: int
    message: str


_FIRST = 256
"""Examples of the first task that methods which change the model look at."""


def can_stack(experiment: Experiment) -> bool:
    """Whether the seeds of this experiment can be trained as one stacked model; methods must not change the model."""
    if any(method.changes_model for method in experiment.build_methods()):
        return False
    try:
        stack([experiment.build_model(seed) for seed in (0, 1)], torch.zeros(5, experiment.build_stream().num_inputs))
    except NotYetSupported:
        return False
    return True


def _logit_gradient(logits: Tensor, target_SBC: Tensor) -> Tensor:
    """Return the gradient of each member's mean cross-entropy with respect to its logits.

    Args:
        logits: any shape ``[..., C]``.
        target_SBC: minus one over the batch size at the label of each example, zero elsewhere, shaped as logits.

    It is what autograd computes for ``F.cross_entropy``, bit by bit, at a fifth of the cost; the loss itself is
    evaluated once per chunk from the kept logits.
    """
    gradient: Tensor = torch.ops.aten._log_softmax_backward_data(
        target_SBC, torch.log_softmax(logits, -1), -1, logits.dtype
    )
    return gradient


def _target_gradient(targets: Tensor, num_classes: int, dtype: torch.dtype, weight_S: Tensor | None) -> Tensor:
    """Minus one over the batch size at the label of each example: ``[..., S, B]`` to ``[..., S, B, C]``."""
    gradient = torch.zeros(*targets.shape, num_classes, dtype=dtype)
    gradient.scatter_(-1, targets.unsqueeze(-1), -1.0 / targets.shape[-1])
    if weight_S is not None:
        gradient *= weight_S[:, None, None]
    return gradient


@dataclass
class _Chunk:
    """Consecutive batches of equal size: ``inputs [K, S, B, F]``, ``targets [K, S, B]``, ``gradients [K, S, B, C]``."""

    inputs: Tensor
    targets: Tensor
    gradients: Tensor


@dataclass
class _TaskData:
    """The data of all members for one task, ``[S, N, F]`` and ``[S, N]``, and its batches in the stream's order."""

    tasks: Sequence[Task]
    num_classes: int
    inputs: Tensor = field(init=False)
    targets: Tensor = field(init=False)

    def __post_init__(self) -> None:
        shapes = {(task.inputs.shape, task.num_epochs, task.batch_size) for task in self.tasks}
        if len(shapes) != 1:
            raise IllegalConfiguration(
                f"the stream gives its seeds tasks of different sizes: {sorted(map(str, shapes))}"
            )
        self.inputs = torch.stack([task.inputs for task in self.tasks])
        self.targets = torch.stack([task.targets for task in self.tasks])

    def test(self) -> tuple[Tensor, Tensor] | None:
        inputs = [task.test_inputs for task in self.tasks if task.test_inputs is not None]
        targets = [task.test_targets for task in self.tasks if task.test_targets is not None]
        return (torch.stack(inputs), torch.stack(targets)) if inputs and targets else None

    def chunks(self, weight_S: Tensor | None) -> Iterator[_Chunk]:
        """Yield all batches of the task; ``weight_S`` scales the gradient of each member (None: all ones)."""
        task = self.tasks[0]
        num_members, num_examples, num_features = self.inputs.shape
        size = min(task.batch_size, num_examples)
        num_full = num_examples // size
        per_chunk = max(1, _CHUNK_BYTES // (num_members * size * num_features * self.inputs.element_size()))
        flat_inputs, flat_targets = self.inputs.flatten(0, 1), self.targets.flatten()
        offset_S1 = torch.arange(num_members).unsqueeze(1) * num_examples
        # Passes without a smaller last batch follow each other without a seam: fewer, larger chunks.
        epochs = range(task.num_epochs)
        joined = [epochs] if num_full * size == num_examples else [[epoch] for epoch in epochs]
        for together in joined:
            order_SN = torch.stack([torch.cat([t.order(epoch) for epoch in together]) for t in self.tasks]) + offset_S1
            num_batches = num_full * len(together)
            bounds = [
                (k * size, min(k + per_chunk, num_batches) * size, size) for k in range(0, num_batches, per_chunk)
            ]
            if num_full * size < num_examples:
                bounds.append((num_full * size, num_examples, num_examples - num_full * size))
            for start, stop, batch in bounds:
                index_KSB = order_SN[:, start:stop].reshape(num_members, -1, batch).transpose(0, 1)
                inputs = flat_inputs[index_KSB]
                targets = flat_targets[index_KSB]
                gradients = _target_gradient(targets, self.num_classes, inputs.dtype, weight_S)
                yield _Chunk(inputs, targets, gradients)


class Members:
    """Several seeds of one experiment, trained together (or one seed alone), with everything that they need.

    Args:
        experiment: what is run.
        seeds: the members, in order.
        folder: results folder of the experiment, for checkpoints; None: neither read nor write any.
        stacked: train all seeds as one stacked model; False needs exactly one seed.
        checkpoint_every: seconds between checkpoints, which are taken at the first task boundary after; 0 is
            every task.
        should_stop: polled at task boundaries; when it returns True the state is saved and Stopped is raised.
    """

    def __init__(
        self,
        experiment: Experiment,
        seeds: Sequence[int],
        folder: Path | None,
        *,
        stacked: bool,
        checkpoint_every: float = 30.0,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        if not stacked and len(seeds) != 1:
            raise IllegalConfiguration(f"{experiment.id}: seeds that are not stacked run one at a time")
        self.experiment = experiment
        self.seeds = tuple(seeds)
        self.folder = folder
        self.stacked = stacked
        self.checkpoint_every = checkpoint_every
        self.should_stop = should_stop
        self.stream = experiment.build_stream()
        self.next_task = 0
        self.seconds = 0.0
        self.series: dict[str, list[Tensor]] = {}
        self.failures: dict[int, Failure] = {}
        self._build()
        self._restore()

    # -- construction ------------------------------------------------------------------------------------------

    def _build(self) -> None:
        singles = [self.experiment.build_model(seed) for seed in self.seeds]
        example = torch.zeros(5, self.stream.num_inputs)
        self.model = stack(singles, example) if self.stacked else singles[0]
        self.model.train()
        self.optimizer = self.experiment.build_optimizer(self.model, self.seeds if self.stacked else self.seeds[0])
        schedule = self.experiment.build_schedule()
        num_tasks = self.experiment.num_tasks
        self.step_sizes = None if schedule is None else StepSizes(schedule, self.optimizer, num_tasks)
        methods = self.experiment.build_methods()
        changes_model = any(method.changes_model for method in methods)
        self.units = None if changes_model else _find_units(singles[0], example, required=bool(methods))
        self.handle: Any = None
        self._num_resets = torch.zeros(len(self.seeds), dtype=torch.float64)
        if methods:
            from pliant.attach import attach
            from pliant.interventions.base import Intervention

            self._has_penalty = any(type(method).penalty is not Intervention.penalty for method in methods)
            self._changes_batches = any(type(method).on_batch is not Intervention.on_batch for method in methods)
            first = (self.stream.task(0, self.seeds[0]).inputs[:_FIRST],) if changes_model else None
            self.handle = attach(
                self.model,
                self.optimizer,
                methods,
                units=self.units,
                example_inputs=first,
                seed=list(self.seeds) if self.stacked else self.seeds[0],
                init=getattr(singles[0], "init", None),
            )
            self.units = self.handle.units

    def _identity(self) -> dict[str, str]:
        return {"experiment": records.canonical_json(self.experiment.to_dict()), "torch": str(torch.__version__)}

    def _restore(self) -> None:
        state = None if self.folder is None else checkpoint.load_checkpoint(self.folder, self.seeds)
        if state is None or self.folder is None:
            return
        for key, value in self._identity().items():
            if state.get(key) != value:
                raise RecordError(
                    f"{self.folder / checkpoint.FOLDER}: the checkpoint of seeds {list(self.seeds)} was written with "
                    f"another {key} ({state.get(key)!r:.80}); delete the folder to start those seeds again"
                )
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.handle is not None:
            self.handle.load_state_dict(state["handle"])
            self._num_resets = self._count_resets()
        self.series = {name: list(values.unbind(0)) for name, values in state["series"].items()}
        self.failures = {int(member): Failure(*entry) for member, entry in state["failures"].items()}
        self.next_task = int(state["next_task"])
        self.seconds = float(state["seconds"])

    def save(self) -> None:
        """Write the checkpoint of the current task boundary."""
        if self.folder is None:
            return
        state = {
            **self._identity(),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "handle": None if self.handle is None else self.handle.state_dict(),
            "series": {name: torch.stack(values) for name, values in self.series.items()},
            "failures": {member: [failure.task, failure.message] for member, failure in self.failures.items()},
            "next_task": self.next_task,
            "seconds": self.seconds,
        }
        checkpoint.save_checkpoint(self.folder, self.seeds, state)

    # -- running -----------------------------------------------------------------------------------------------

    def run(self, on_task: Callable[[Members], None] = lambda members: None) -> None:
        """Run the remaining tasks; ``on_task`` is called after each.

        Raises:
            Stopped: ``should_stop`` said so; the state of the last task boundary is saved.
        """
        last_saved = time.monotonic()
        while self.next_task < self.experiment.num_tasks and len(self.failures) < len(self.seeds):
            if self.should_stop():
                if self.next_task > 0:
                    self.save()
                raise Stopped
            started = time.monotonic()
            self._run_task(self.next_task)
            self.next_task += 1
            self.seconds += time.monotonic() - started
            on_task(self)
            finished = self.next_task == self.experiment.num_tasks
            if not finished and time.monotonic() - last_saved >= self.checkpoint_every:
                self.save()
                last_saved = time.monotonic()

    def close(self) -> None:
        """Detach everything from model and optimizer."""
        if self.handle is not None:
            self.handle.detach()
            self.handle = None

    def _run_task(self, index: int) -> None:
        data = _TaskData([self.stream.task(index, seed) for seed in self.seeds], self.stream.num_classes)
        # Whatever draws from the global generator (dropout) depends on seed and task, not on what ran before.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(generator("training", *self.seeds, index).integers(2**63)))
            if index > 0 and self.handle is not None:
                self.handle.task_boundary()
            if self.step_sizes is not None:
                self.step_sizes.begin_task(index, data.tasks[0].num_steps)
            try:
                hits_S, losses_S, num_seen = self._train(data)
            except UnsupportedError:
                # A method that meets NaN stops a single model; a stack it lets finish its task.
                if self.stacked or self._end_of_task(data)[1].isfinite().all():
                    raise
                self._diverged(0, index)
                return
        row = {"online_accuracy": hits_S / num_seen, "loss": losses_S / num_seen}
        end_accuracy, end_loss = self._end_of_task(data)
        finite = torch.isfinite(row["loss"]) & torch.isfinite(end_loss)
        for member in (~finite).nonzero().flatten().tolist():
            self._diverged(member, index)
        row["end_accuracy"] = end_accuracy
        test = data.test()
        if test is not None:
            row["test_accuracy"] = measure.accuracy_and_loss(self.model, *test, self.stacked)[0]
        row |= measure.unit_health(self._activations(data.inputs[:, : measure.NUM_PROBE]), len(self.seeds))
        row["weight_magnitude"] = self._weight_magnitude()
        counts = self._count_resets()
        row["num_resets"] = counts - self._num_resets
        self._num_resets = counts
        for name, values in row.items():
            self.series.setdefault(name, []).append(values.double())

    def _train(self, data: _TaskData) -> tuple[Tensor, Tensor, int]:
        """Train on one task; return hits and summed loss of each member before the updates, and examples seen."""
        num_members = len(self.seeds)
        hits_S = torch.zeros(num_members, dtype=torch.float64)
        losses_S = torch.zeros(num_members, dtype=torch.float64)
        num_seen = 0
        model, optimizer, stacked = self.model, self.optimizer, self.stacked
        parameters = list(model.parameters())
        # Asked for at every step only where some intervention has a term for the loss.
        penalty = self.handle.penalty if self.handle is not None and self._has_penalty else None
        extends = self.handle is not None and self._changes_batches
        weight_S = self._weights()
        step_sizes = self.step_sizes
        previous: Tensor | None = None  # the inputs of the step before: what methods that compare outputs look at
        for chunk in data.chunks(weight_S):
            kept = []
            for batch in zip(chunk.inputs.unbind(0), chunk.targets.unbind(0), chunk.gradients.unbind(0), strict=True):
                inputs, targets, gradients = batch
                if extends:
                    inputs, gradients = self._extended(inputs, targets, weight_S)
                logits = model(inputs) if stacked else model(inputs[0]).unsqueeze(0)
                detached = logits.detach()
                for parameter in parameters:  # what zero_grad does, without its 20 us of bookkeeping
                    parameter.grad = None
                extra = None
                if penalty is not None:
                    extra = penalty(**self._for_penalty(detached, gradients, inputs if previous is None else previous))
                    previous = inputs
                if isinstance(extra, Tensor) and extra.requires_grad:
                    torch.autograd.backward([logits, extra], [_logit_gradient(detached, gradients), None])
                else:
                    logits.backward(_logit_gradient(detached, gradients))
                if step_sizes is not None:
                    step_sizes.before_step()
                optimizer.step()
                kept.append(detached[:, : targets.shape[1]] if extends else detached)  # new examples alone count
            logits_KSBC = torch.stack(kept)
            hits_S += (logits_KSBC.argmax(-1) == chunk.targets).sum((0, 2))
            picked = torch.log_softmax(logits_KSBC.double(), -1).gather(-1, chunk.targets.unsqueeze(-1))
            losses_S -= picked.sum((0, 2, 3))
            num_seen += chunk.targets.shape[0] * chunk.targets.shape[2]
        return hits_S, losses_S, num_seen

    def _for_penalty(self, logits: Tensor, gradients: Tensor, reference: Tensor) -> dict[str, Tensor]:
        """What ``handle.penalty`` is given: the loss, of each member in a stack, and inputs ``[S, B, F]`` seen before.

        The first step of a task has no step before it and is given its own batch.
        """
        loss_S = (gradients * torch.log_softmax(logits, -1)).sum((1, 2))
        return (
            {"loss": loss_S, "reference": reference} if self.stacked else {"loss": loss_S[0], "reference": reference[0]}
        )

    def _extended(self, inputs: Tensor, targets: Tensor, weight_S: Tensor | None) -> tuple[Tensor, Tensor]:
        """A batch after the methods that act on batches, ``[S, B, F]``, and the constant part of its gradient."""
        if self.stacked:
            inputs, targets = self.handle.batch((inputs, targets))
        else:
            inputs, targets = (row.unsqueeze(0) for row in self.handle.batch((inputs[0], targets[0])))
        return inputs, _target_gradient(targets, self.stream.num_classes, inputs.dtype, weight_S)

    def _weights(self) -> Tensor | None:
        """Ones for the living members and zeros for the failed; None while all live."""
        if not self.failures:
            return None
        weight_S = torch.ones(len(self.seeds))
        weight_S[list(self.failures)] = 0.0
        return weight_S

    def _diverged(self, member: int, task: int) -> None:
        """Record the failure, and silence the member: zero weights, zero moments, zero gradients from now on."""
        message = f"diverged: the loss is not finite in task {task} (the first is 0); try a smaller step size"
        self.failures.setdefault(member, Failure(task, message))
        with torch.no_grad():
            for parameter in self.model.parameters():
                target = parameter[member] if self.stacked else parameter
                target.zero_()
                for value in self.optimizer.state.get(parameter, {}).values():
                    if isinstance(value, Tensor) and value.shape == parameter.shape:
                        (value[member] if self.stacked else value).zero_()

    # -- measuring ---------------------------------------------------------------------------------------------

    def _end_of_task(self, data: _TaskData) -> tuple[Tensor, Tensor]:
        """Accuracy and loss on the task's own data, at most the first ``MAX_EVALUATED`` examples."""
        some = slice(measure.MAX_EVALUATED)
        return measure.accuracy_and_loss(self.model, data.inputs[:, some], data.targets[:, some], self.stacked)

    def _activations(self, inputs_SNF: Tensor) -> dict[str, Tensor]:
        if self.units is None:
            return {}
        from pliant import stats

        if self.stacked:
            return dict(stats.capture(self.model, self.units, inputs_SNF, members=len(self.seeds)))
        captured = stats.capture(self.model, self.units, inputs_SNF[0])
        return {name: act_NU.unsqueeze(0) for name, act_NU in captured.items()}

    def _weight_magnitude(self) -> Tensor:
        """Mean |w| over the weight matrices: parameters of at least two axes per member, no biases."""
        least = 3 if self.stacked else 2
        weights = [parameter.detach() for parameter in self.model.parameters() if parameter.ndim >= least]
        magnitude = metrics.weight_magnitude(weights, members=self.stacked)
        return magnitude if self.stacked else magnitude.unsqueeze(0)

    def _count_resets(self) -> Tensor:
        total_S = torch.zeros(len(self.seeds), dtype=torch.float64)
        if self.handle is not None:
            for count in self.handle.num_resets.values():
                total_S += torch.as_tensor(count, dtype=torch.float64)
        return total_S

    # -- results -----------------------------------------------------------------------------------------------

    def series_of(self, member: int) -> dict[str, list[float]]:
        """Return the series of one member: all its tasks, or those before the task in which it failed."""
        stop = self.failures[member].task if member in self.failures else self.next_task
        return {name: [float(values[member]) for values in columns[:stop]] for name, columns in self.series.items()}


def _find_units(model: nn.Module, example: Tensor, *, required: bool) -> Any:
    """Return the unit graph of the single model, or None where it has none and no method needs it."""
    from pliant.units import find_units

    try:
        return find_units(model, (example,))
    except NoEffect:
        if required:
            raise
        return None
