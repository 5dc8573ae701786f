"""``probe``: can this network still learn as fresh ones do? The ground truth, at the price of learning."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pliant.attach import attach
from pliant.errors import IllegalConfiguration
from pliant.fresh import copy_of, fresh_twin
from pliant.handle import Handle
from pliant.interventions.base import Intervention
from pliant.interventions.state import matches
from pliant.isolation import preserved_randomness, seed_everything
from pliant.probe.learning import Network, Run, learn
from pliant.probe.loading import as_task, described_task, moved
from pliant.probe.objective import Loss, Objective, inputs_of
from pliant.probe.optimizers import MakeOptimizer, Moments, described, maker
from pliant.probe.result import ProbeResult
from pliant.probe.tasks import Task
from pliant.units import UnitGraph, find_units
from pliant.units.init import InitSpec

__all__ = ["probe"]

_POINTS = 50


def probe(
    model: nn.Module,
    task: Any,
    *,
    optimizer: MakeOptimizer | Optimizer | Sequence[Optimizer],
    moments: Moments | None = None,
    steps: int = 500,
    seeds: int | Sequence[int] = 5,
    twins: int = 1,
    methods: Intervention | Sequence[Intervention] = (),
    example_inputs: Any = None,
    loss: Loss = None,
    objective: Callable[[nn.Module, Any], Tensor] | None = None,
    evaluation: Literal["task"] | Iterable[Any] | Callable[[int], Iterable[Any]] | None = None,
    every: int | None = None,
    threshold: float | None = None,
    reset_head: str | None = None,
    init: InitSpec = None,
    make_model: Callable[[], nn.Module] | None = None,
) -> ProbeResult:
    """Let copies of a network and freshly initialised twins learn the same new task, and compare how well they do.

    For each seed a task is drawn; the aged network and its fresh twins learn it from the same batches in the same
    order, with the same budget, optimizer and dropout masks. The model, its optimizer, gradients, modes, hooks and
    every random state are as they were afterwards, also where the task fails midway: only copies are trained.

    Args:
        model: The network as it is now.
        task: One of the tasks of this package (``RandomLabels``, ``PermutedInputs``, ...), a loader or list of batches,
            a function of the seed that gives one, or inputs and targets ``(x, y)``. See
            :class:`~pliant.probe.objective.Objective` for what a batch can be. A loader is read once for each seed,
            and its first ``steps`` batches are kept in memory.
        optimizer: A function from a list of parameters to an optimizer (or several): everybody starts with it. Or the
            live optimizer (or several), to learn as the network does now, at its present learning rate.
        moments: With a live optimizer, and only then: ``"fresh"``: everybody starts without moments; ``"carried"``:
            the aged network keeps its own, and the twins start without.
        steps: Optimizer steps of each network.
        seeds: How many, or which. Intervals need at least two.
        twins: Fresh twins per seed; their mean is what the aged network is compared with.
        methods: Interventions that are attached to everybody while they learn. Their state starts anew.
        example_inputs: For methods, with ``objective``: the inputs as the loop passes them, to find the units.
        loss: The loss, see :data:`~pliant.probe.objective.Loss`; by default the task's own.
        objective: Or ``(model, batch) -> loss``.
        evaluation: What curves are measured on: ``None``: on the training batches, each before its step; ``"task"``:
            in evaluation mode, on the task's test data, or all of its examples; or batches, or a function of the seed
            that gives them.
        every: Steps per point of a curve; a fiftieth of the budget by default.
        threshold: The loss that counts as learnt; by default, for each seed, where the fresh twins have made nine
            tenths of their progress.
        reset_head: Pattern of names (``"head"``): these layers start the task as the first twin's do.
        init: How parameters are initialised, see :func:`~pliant.fresh.fresh_twin`. A model that initialises its layers
            itself needs this or ``make_model``.
        make_model: Or a function that makes a fresh network, as there.

    Returns:
        Curves, gaps with intervals, and a verdict; ``print`` it.

    Raises:
        IllegalConfiguration: If the pieces do not fit: an empty loader, a label out of range, a loss that is not
            finite at the first step, an optimizer that owns none of the parameters, an unknown initial distribution.
        NoEffect: If nothing in the model is trained.

    Source:
        Lyle et al. (2023), arXiv:2303.01486, probe networks with new random targets; the comparison with networks
        retrained from scratch is that of Dohare et al. (Nature 2024).

    Example:
        >>> from pliant.probe import RandomLabels
        >>> model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3))
        >>> task = RandomLabels(inputs=torch.randn(32, 4), num_classes=3)
        >>> def make(parameters):
        ...     return torch.optim.Adam(parameters, lr=0.01)
        >>> result = probe(model, task, optimizer=make, steps=30, seeds=3)
        >>> result.outcome in ("worse", "better", "no difference shown", "no verdict"), result.gap.num
        (True, 3)
    """
    chosen = as_task(task)
    measure = Objective(getattr(chosen, "loss", None) if loss is None and objective is None else loss, objective)
    numbers = _seeds(seeds)
    for name, value in (("steps", steps), ("twins", twins), ("every", 1 if every is None else every)):
        if value < 1:
            raise IllegalConfiguration(f"{name} must be at least 1, not {value}.")
    if threshold is not None and not math.isfinite(threshold):
        raise IllegalConfiguration(f"threshold must be a finite loss, not {threshold}.")
    every = min(steps, every or max(1, steps // _POINTS))
    make = maker(model, optimizer, moments)
    plan = _Plan(model, chosen, measure, make, steps, every, _as_list(methods), example_inputs, evaluation)
    runs: list[Run] = []
    with preserved_randomness(model), torch.inference_mode(False), torch.enable_grad():
        for seed in numbers:
            batches, judged = plan.batches(seed)
            fresh = [
                fresh_twin(model, seed=seed * _APART + twin, init=init, make_model=make_model) for twin in range(twins)
            ]
            aged = copy_of(model)
            if reset_head is not None:
                _take_over(aged, fresh[0], reset_head)
            networks: list[tuple[Network, int | None, nn.Module]] = [("aged", None, aged)]
            networks += [("fresh", twin, net) for twin, net in enumerate(fresh)]
            for network, twin, net in networks:
                runs.append(plan.run(net, network, seed, twin, batches, judged))
    config = {
        "model": type(model).__name__,
        "task": described_task(chosen),
        "steps": steps,
        "every": every,
        "seeds": list(numbers),
        "twins": twins,
        "methods": [repr(method) for method in plan.methods],
        "optimizer": plan.optimizer,
        "moments": moments,
        "evaluation": evaluation if isinstance(evaluation, str) else evaluation and "given",
        "reset_head": reset_head,
    }
    return ProbeResult(tuple(runs), config, threshold)


_APART = 1_000_003  # twins of one seed are not those of the next


@dataclass
class _Plan:
    """What is the same for all networks."""

    model: nn.Module
    task: Task
    objective: Objective
    make: Callable[[nn.Module, Network], list[Optimizer]]
    steps: int
    every: int
    methods: list[Intervention]
    example_inputs: Any
    evaluation: Any
    units: UnitGraph | None = None
    optimizer: list[dict[str, Any]] = field(default_factory=list)

    def batches(self, seed: int) -> tuple[Sequence[Any], Sequence[Any] | None]:
        """Batches to learn and batches to be judged on, where the model is."""
        device = next(self.model.parameters()).device
        seed_everything(self.model, seed)
        batches = self.task.batches(seed, self.steps)
        if len(batches) != self.steps:
            raise IllegalConfiguration(
                f"{type(self.task).__name__} gave {len(batches)} batches for {self.steps} steps (seed {seed})."
            )
        if self.evaluation is None:
            return moved(batches, device), None
        if self.evaluation == "task":
            if not hasattr(self.task, "evaluation"):
                raise IllegalConfiguration(
                    f'evaluation="task" needs a task with an evaluation(seed); {type(self.task).__name__} has none. '
                    "Give batches."
                )
            judged = self.task.evaluation(seed)
        else:
            judged = self.evaluation(seed) if callable(self.evaluation) else self.evaluation
            judged = judged if isinstance(judged, Sequence) and not isinstance(judged, tuple) else list(judged)
        if not len(judged):
            raise IllegalConfiguration("evaluation=... gave no batch.")
        return moved(batches, device), moved(judged, device)

    def run(
        self,
        net: nn.Module,
        network: Network,
        seed: int,
        twin: int | None,
        batches: Sequence[Any],
        judged: Sequence[Any] | None,
    ) -> Run:
        """Let one network learn."""
        if not net.training:  # a checkpoint that has just been loaded; single layers in evaluation mode are on purpose
            net.train()
        if network == "aged":
            self.objective.check(net, batches)
        optimizers = self.make(net, network)
        self.optimizer = self.optimizer or described(optimizers)
        seed_everything(net, seed)  # the same dropout masks for all
        handle = self.attached(net, optimizers, seed, batches[0]) if self.methods else None
        steps, losses, accuracies = learn(
            net,
            optimizers,
            self.objective,
            batches,
            every=self.every,
            evaluation=judged,
            handle=handle,
            name="the aged network" if network == "aged" else f"fresh twin {twin}",
        )
        return Run(network, seed, twin, tuple(steps), tuple(losses), None if accuracies is None else tuple(accuracies))

    def attached(self, net: nn.Module, optimizers: list[Optimizer], seed: int, batch: Any) -> Handle:
        """Methods on a copy; the units are the same for all copies."""
        inputs = self.example_inputs
        if inputs is None:
            if self.objective.function is not None:
                raise IllegalConfiguration("methods with objective=... need example_inputs=..., to find the units.")
            inputs = inputs_of(batch)
        if any(method.changes_model for method in self.methods):
            return attach(net, optimizers, self.methods, example_inputs=inputs, seed=seed)
        if self.units is None:
            self.units = find_units(net, inputs)
        return attach(net, optimizers, self.methods, units=self.units, seed=seed)


def _take_over(aged: nn.Module, fresh: nn.Module, pattern: str) -> None:
    """Give some layers of the aged copy the values of a twin."""
    theirs = {**dict(fresh.named_parameters()), **dict(fresh.named_buffers())}
    mine = {**dict(aged.named_parameters()), **dict(aged.named_buffers())}
    chosen = [name for name in mine if matches(name, pattern)]
    if not chosen:
        raise IllegalConfiguration(f"reset_head={pattern!r} matches nothing; parameters are {', '.join(mine)}.")
    with torch.no_grad():
        for name in chosen:
            mine[name].copy_(theirs[name])


def _seeds(seeds: int | Sequence[int]) -> tuple[int, ...]:
    numbers = tuple(range(seeds)) if isinstance(seeds, int) else tuple(int(seed) for seed in seeds)
    if not numbers or min(numbers) < 0 or len(set(numbers)) < len(numbers):
        raise IllegalConfiguration(f"seeds must be a number >= 1, or different numbers >= 0, not {seeds!r}.")
    return numbers


def _as_list(methods: Intervention | Sequence[Intervention]) -> list[Intervention]:
    return [methods] if isinstance(methods, Intervention) else list(methods)
