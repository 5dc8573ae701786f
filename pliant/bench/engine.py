"""The training loop of the benchmarks: one or several experiments, many members at once where the model allows it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from pliant import metrics
from pliant.bench import measure
from pliant.bench.batches import TaskData, TestData
from pliant.bench.cohorts import check_together, find_units_of, is_elementwise, make_cohorts
from pliant.bench.ensemble import needs_device, stack
from pliant.bench.experiment import Experiment
from pliant.bench.heads import renew_head
from pliant.bench.objective import Meter, Objective
from pliant.bench.selection import BestWeights
from pliant.bench.streams.base import generator, traits
from pliant.bench.trainer import Failure, Stopped, Trainer, trainer_of
from pliant.bench.training import Steps, make_steps
from pliant.errors import IllegalConfiguration, NotYetSupported, UnsupportedError

__all__ = ["Failure", "Members", "Stopped", "can_stack", "can_stack_together"]


_FIRST = 256
"""Examples of the first task that methods which change the model look at."""


def can_stack(experiment: Experiment, device: str = "cpu") -> bool:
    """Whether the seeds of this experiment are to be trained as one stacked model.

    Methods must not change the model, the optimizer must move every weight by itself, and the model must have a stacked
    form that provably equals single models. Convolutional networks are stacked on CUDA only: a CPU gains nothing from
    it, and their seeds run one by one, in processes.

    Args:
        experiment: what would run.
        device: where.
    """
    if trainer_of(experiment) is not Members:
        return False
    if any(method.changes_model for method in experiment.build_methods()):
        return False
    model = experiment.build_model(0)
    if not is_elementwise(experiment.build_optimizer(model)):
        return False
    if needs_device(model) and torch.device(device).type == "cpu":
        return False
    try:
        stack([model, experiment.build_model(1)], _example(experiment))
    except NotYetSupported:
        return False
    return True


def can_stack_together(experiments: Sequence[Experiment], device: str = "cpu") -> bool:
    """Whether the seeds of all these experiments can be members of one stack.

    They may differ in optimizer (and its options), schedule and methods (and theirs); ``Members(experiments, seeds,
    ...)`` then trains them together.

    Args:
        experiments: what would run.
        device: where.
    """
    try:
        check_together(experiments)
    except (IllegalConfiguration, NotYetSupported):
        return False
    return all(can_stack(experiment, device) for experiment in experiments)


def _example(experiment: Experiment) -> Tensor:
    """Five examples of the stream's shape, all zero."""
    said = traits(experiment.build_stream())
    return torch.zeros(5, *said.input_shape, dtype=said.input_dtype)


@final
class Members(Trainer):
    """Several members trained together (or one alone), with everything that they need.

    Args:
        experiment: what is run; or several experiments that differ in optimizer and methods only, which share the
            forward and the backward pass. Every one of them is run with all seeds.
        seeds: the seeds, in order.
        folder: where checkpoints are, the results folder of the experiment; None: neither read nor write any.
        stacked: train all members as one stacked model; False needs exactly one experiment and one seed.
        checkpoint_every: seconds between checkpoints, which are taken at the first task boundary after; 0 is
            every task.
        should_stop: polled at task boundaries; when it returns True the state is saved and Stopped is raised.
        device: where the members train.
        by_hand: False: through autograd even where the step can be written by hand.

    Attributes:
        experiments: the experiment of each member; the first one's members come first.
        seeds: the seed of each member.
        cohorts: the members by experiment, with optimizer and handle.
        series: name to one row of all members for each task.
        failures: position of a member to why it failed.

    Raises:
        IllegalConfiguration: experiments that cannot share a stack, or several members that are not stacked.
        NotYetSupported: a model or a method that cannot be stacked; named.
        RecordError: a checkpoint of something else.
    """

    version: ClassVar[str] = "2"

    def __init__(
        self,
        experiment: Experiment | Sequence[Experiment],
        seeds: Sequence[int],
        folder: Path | None,
        *,
        stacked: bool,
        checkpoint_every: float = 30.0,
        should_stop: Callable[[], bool] = lambda: False,
        device: str = "cpu",
        by_hand: bool | None = None,
    ) -> None:
        chosen = [experiment] if isinstance(experiment, Experiment) else list(experiment)
        if not chosen or not seeds:
            raise IllegalConfiguration("there are no members to train: no experiment, or no seed")
        if not stacked and len(seeds) * len(chosen) != 1:
            raise IllegalConfiguration(f"{chosen[0].id}: seeds that are not stacked run one at a time")
        check_together(chosen)
        super().__init__(chosen, seeds, folder, checkpoint_every, should_stop)
        self.stacked = stacked
        self.device = torch.device(device)
        self.objective = Objective(self.traits.loss, self.traits.score)
        self._past: dict[int, TestData] = {}  # test sets that are needed again; after an interruption made anew
        self._build(chosen, tuple(seeds), by_hand)
        self._restore()

    # -- construction ------------------------------------------------------------------------------------------

    def _build(self, experiments: Sequence[Experiment], seeds: Sequence[int], by_hand: bool | None) -> None:
        example = _example(self.experiment)
        singles = [item.build_model(seed) for item, seed in zip(self.experiments, self.seeds, strict=True)]
        changes_model = any(method.changes_model for item in experiments for method in item.build_methods())
        first = self.stream.task(0, seeds[0]).inputs[:_FIRST].to(self.device) if changes_model else None
        self.units = None
        if not changes_model:
            required = any(item.methods for item in experiments)
            self.units = find_units_of(singles[0], example, required=required)
        whole = stack(singles, example) if self.stacked else singles[0]
        self.model = whole.to(self.device).train()
        self.cohorts = make_cohorts(
            experiments, seeds, self.model, singles, example, units=self.units, first_inputs=first, stacked=self.stacked
        )
        self.handle: Any = self.cohorts[0].handle
        self.optimizer = self.cohorts[0].optimizer
        if self.handle is not None:
            self.units = self.handle.units
        self._num_resets = torch.zeros(len(self.seeds), dtype=torch.float64)
        self.steps: Steps = make_steps(self.model, self.cohorts, stacked=self.stacked, by_hand=by_hand)

    def _state(self) -> dict[str, Any]:
        return {"model": self.model.state_dict(), "cohorts": [cohort.state_dict() for cohort in self.cohorts]}

    def _load_state(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        for cohort, saved in zip(self.cohorts, state["cohorts"], strict=True):
            cohort.load_state_dict(saved)
        self._num_resets = self._count_resets()

    # -- running -----------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Detach everything from model and optimizer."""
        for cohort in self.cohorts:
            cohort.close()
        self.handle = None

    def _data(self, index: int) -> TaskData:
        tasks = {seed: self.stream.task(index, seed) for seed in dict.fromkeys(self.seeds)}
        return TaskData([tasks[seed] for seed in self.seeds], self.objective, self.stream.num_classes, self.device)

    def _run_task(self, index: int) -> None:
        data = self._data(index)
        # Whatever draws from the global generator (dropout) depends on seed and task, not on what ran before.
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(int(generator("training", *self.seeds, index).integers(2**63)))
            if index > 0:
                for cohort in self.cohorts:
                    if cohort.handle is not None:
                        cohort.handle.task_boundary()
            if data.tasks[0].reset_head:
                for cohort in self.cohorts:
                    renew_head(cohort, index)
            for cohort in self.cohorts:
                if cohort.step_sizes is not None:
                    cohort.step_sizes.begin_task(index, data.tasks[0].num_steps)
            try:
                online = self._train(data)
            except UnsupportedError:
                # A method that meets NaN stops a single model; a stack it lets finish its task.
                if self.stacked or self._end_of_task(data).loss().isfinite().all():
                    raise
                self._diverged(0, index)
                return
        self._measure(index, data, online)

    def _train(self, data: TaskData) -> Meter:
        """Train on one task; return what was measured before each update."""
        meter = Meter(self.objective, len(self.seeds))
        weight_S = self._weights()
        valid = data.held_out("valid")
        best = None if valid is None else BestWeights(self.model, valid, stacked=self.stacked)
        self.steps.begin(data, weight_S)
        for chunk in data.chunks(weight_S, next(self.model.parameters()).dtype):
            outputs = self.steps.run(chunk)
            meter.add(outputs if data.heads.active_SA is None else _selected(data, outputs), chunk.targets)
            if best is not None and chunk.ends_epoch:
                best.look(self.traits.lower_is_better)
        if best is not None:
            best.restore()
        return meter

    def _weights(self) -> Tensor | None:
        """Ones for the living members and zeros for the failed; None while all live."""
        if not self.failures:
            return None
        weight_S = torch.ones(len(self.seeds), device=self.device)
        weight_S[list(self.failures)] = 0.0
        return weight_S

    def _diverged(self, member: int, task: int) -> None:
        """Record the failure, and silence the member: zero weights, zero moments, zero gradients from now on."""
        message = f"diverged: the loss is not finite in task {task} (the first is 0); try a smaller step size"
        self.failures.setdefault(member, Failure(task, message))
        for cohort in self.cohorts:
            if cohort.members.start <= member < cohort.members.stop:
                cohort.silence(member)

    # -- measuring ---------------------------------------------------------------------------------------------

    def _measure(self, index: int, data: TaskData, online: Meter) -> None:
        """Add one row of all members to the series."""
        score = self.traits.score
        row = {self.online_series: online.score(), "loss": online.loss()}
        end = self._end_of_task(data)
        finite = torch.isfinite(row["loss"]) & torch.isfinite(end.loss())
        for member in (~finite).nonzero().flatten().tolist():
            self._diverged(member, index)
        row[f"end_{score}"] = end.score()
        test = data.held_out("test")
        if test is not None:
            row[f"test_{score}"] = measure.evaluate(self.model, test, self.stacked).score()
        if self.traits.measures_past:
            row |= self._measure_past(index)
            if test is not None:
                self._past = {key: kept for key, kept in self._past.items() if key > index - measure.NUM_PAST}
                self._past[index] = test
        row |= measure.unit_health(self._activations(data.training(measure.NUM_PROBE).inputs), len(self.seeds))
        row["weight_magnitude"] = self._weight_magnitude()
        counts = self._count_resets()
        row["num_resets"] = counts - self._num_resets
        self._num_resets = counts
        self._add_row(row)

    def _end_of_task(self, data: TaskData) -> Meter:
        """Score and loss on the task's own data, at most the first ``MAX_EVALUATED`` examples."""
        return measure.evaluate(self.model, data.training(measure.MAX_EVALUATED), self.stacked)

    def _measure_past(self, index: int) -> dict[str, Tensor]:
        """The mean score on the test sets of the latest earlier tasks, and how it has moved since each was learnt."""
        score = self.traits.score
        past, before = [], []
        for earlier in range(max(0, index - measure.NUM_PAST), index):
            test = self._past[earlier] if earlier in self._past else self._data(earlier).held_out("test")
            if test is None:
                raise IllegalConfiguration(
                    f"{self.stream.name}: measures_past needs test sets, and task {earlier} has none"
                )
            past.append(measure.evaluate(self.model, test, self.stacked).score())
            before.append(self.series[f"test_{score}"][earlier])
        if not past:
            unknown = torch.full((len(self.seeds),), float("nan"), dtype=torch.float64)
            return {f"past_{score}": unknown, "backward_transfer": unknown.clone()}
        now = torch.stack(past).mean(0)
        return {f"past_{score}": now, "backward_transfer": now - torch.stack(before).mean(0)}

    def _activations(self, inputs: Tensor) -> dict[str, Tensor]:
        if self.units is None:
            return {}
        from pliant import stats

        if self.stacked:
            return dict(stats.capture(self.model, self.units, inputs, members=len(self.seeds)))
        captured = stats.capture(self.model, self.units, inputs[0])
        return {name: act_NU.unsqueeze(0) for name, act_NU in captured.items()}

    def _weight_magnitude(self) -> Tensor:
        """Mean |w| over the weight matrices: parameters of at least two axes per member, no biases."""
        least = 3 if self.stacked else 2
        weights = [parameter.detach() for parameter in self.model.parameters() if parameter.ndim >= least]
        magnitude = metrics.weight_magnitude(weights, members=self.stacked).cpu()
        return magnitude if self.stacked else magnitude.unsqueeze(0)

    def _count_resets(self) -> Tensor:
        return torch.cat([cohort.num_resets() for cohort in self.cohorts])


def _selected(data: TaskData, outputs: Tensor) -> Tensor:
    """The active ones of the outputs ``[K, S, B, ..., C]`` of a chunk."""
    return torch.stack([data.heads.select(batch) for batch in outputs.unbind(0)])
