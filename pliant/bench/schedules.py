r"""Learning-rate schedules: the step size of every update as a function of where in the task, or the stream, it is.

A schedule is part of an experiment, as its optimizer is. It multiplies the step size of each parameter group, and has
no state: the factor depends on the number of the task and of the step in it alone, so that a resumed run needs nothing
of it. With :math:`n` steps in a period (a task; or the stream, each of whose tasks counts as long as any other) and
:math:`s = 0 \dots n-1` of them done, the first :math:`m = \lceil \mathrm{warmup} \cdot n \rceil` have the factor
:math:`(s+1)/m`, and the others the one that the schedule's class says, of :math:`q = (s-m)/(n-m) \in [0, 1)`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch

from pliant.errors import IllegalConfiguration

__all__ = ["SCHEDULES", "Constant", "Cosine", "Linear", "PerTask", "Schedule", "StepDecay", "StepSizes"]


def _require(condition: bool, schedule: object, message: str) -> None:
    if not condition:
        raise IllegalConfiguration(f"schedule {type(schedule).__name__}: {message}")


@dataclass(frozen=True)
class Schedule(ABC):
    """Base of the schedules; a subclass is final and says the factor behind the warm-up.

    Attributes:
        warmup: share of the period, in [0, 1), in which the factor rises linearly to 1.
        over: ``"task"``: the schedule begins anew at each task; ``"stream"``: once over all tasks.
    """

    name: ClassVar[str]

    warmup: float = 0.0
    over: str = "task"

    def __post_init__(self) -> None:
        """Refuse what is out of range."""
        _require(0 <= self.warmup < 1, self, f"warmup={self.warmup!r} must be in [0, 1)")
        _require(self.over in ("task", "stream"), self, f"over={self.over!r} must be 'task' or 'stream'")

    @abstractmethod
    def shape(self, progress: float) -> float:
        """The factor behind the warm-up, at ``progress`` in [0, 1)."""

    def factor(self, task: int, step: int, num_steps: int, num_tasks: int) -> float:
        """The factor of one update.

        Args:
            task: Number of the task, from 0.
            step: Updates done in this task.
            num_steps: Updates that the task has.
            num_tasks: Tasks of the stream.
        """
        done, whole = (step, num_steps) if self.over == "task" else (task * num_steps + step, num_tasks * num_steps)
        rising = math.ceil(self.warmup * whole)
        if done < rising:
            return (done + 1) / rising
        return self.shape((done - rising) / (whole - rising))

    def check(self, num_tasks: int) -> None:  # noqa: B027
        """Refuse what does not suit the number of tasks."""


@final
@dataclass(frozen=True)
class Constant(Schedule):
    """The same step size throughout, but for a warm-up.

    >>> [Constant(warmup=0.5).factor(0, step, 4, 1) for step in range(4)]
    [0.5, 1.0, 1.0, 1.0]
    """

    name: ClassVar[str] = "constant"

    def shape(self, progress: float) -> float:
        """One."""
        return 1.0


@final
@dataclass(frozen=True)
class StepDecay(Schedule):
    """Multiplied by ``decay`` at each milestone.

    Attributes:
        milestones: where, as shares of what comes after the warm-up, in rising order within (0, 1).
        decay: by how much, in (0, 1].

    Source: class-incremental CIFAR-100 of Dohare et al. (2024) has milestones 0.3, 0.6 and 0.8 and decay 0.2.

    >>> [round(StepDecay(milestones=(0.5, 0.75), decay=0.1).factor(0, step, 4, 1), 9) for step in range(4)]
    [1.0, 1.0, 0.1, 0.01]
    """

    name: ClassVar[str] = "step"

    milestones: tuple[float, ...] = (0.3, 0.6, 0.8)
    decay: float = 0.2

    def __post_init__(self) -> None:
        """Refuse what is out of range."""
        super().__post_init__()
        inside = bool(self.milestones) and all(0 < milestone < 1 for milestone in self.milestones)
        rising = list(self.milestones) == sorted(set(self.milestones))
        _require(inside and rising, self, f"milestones={self.milestones!r} must rise within (0, 1)")
        _require(0 < self.decay <= 1, self, f"decay={self.decay!r} must be in (0, 1]")

    def shape(self, progress: float) -> float:
        """``decay`` to the power of the number of milestones that are passed."""
        return float(self.decay ** sum(progress >= milestone for milestone in self.milestones))


@final
@dataclass(frozen=True)
class Cosine(Schedule):
    r"""Half a cosine, from 1 to ``final``: :math:`f + (1-f)(1+\cos \pi q)/2`.

    Attributes:
        final: the factor that is approached, in [0, 1].

    Source: Loshchilov & Hutter (2017), SGDR, arXiv:1608.03983; over a task it is their warm restart at each task.

    >>> [round(Cosine().factor(1, step, 4, 2), 3) for step in range(4)]
    [1.0, 0.854, 0.5, 0.146]
    """

    name: ClassVar[str] = "cosine"

    final: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what is out of range."""
        super().__post_init__()
        _require(0 <= self.final <= 1, self, f"final={self.final!r} must be in [0, 1]")

    def shape(self, progress: float) -> float:
        """Half a cosine."""
        return self.final + (1 - self.final) * (1 + math.cos(math.pi * progress)) / 2


@final
@dataclass(frozen=True)
class Linear(Schedule):
    """A straight line from 1 to ``final``.

    Attributes:
        final: the factor that is approached, in [0, 1].

    >>> [Linear(over="stream").factor(task, 0, 10, 4) for task in range(4)]
    [1.0, 0.75, 0.5, 0.25]
    """

    name: ClassVar[str] = "linear"

    final: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what is out of range."""
        super().__post_init__()
        _require(0 <= self.final <= 1, self, f"final={self.final!r} must be in [0, 1]")

    def shape(self, progress: float) -> float:
        """A straight line."""
        return 1 - (1 - self.final) * progress


@final
@dataclass(frozen=True)
class PerTask(Schedule):
    """A schedule and a factor of its own for every task: what tuning each task by itself gives.

    Attributes:
        tasks: for each task the name of a schedule, which has its default options and begins at the task, and what its
            factors are multiplied by. As many as the experiment has tasks.

    >>> schedule = PerTask(tasks=(("constant", 0.5), ("cosine", 2.0)))
    >>> schedule.factor(0, 3, 4, 2), round(schedule.factor(1, 2, 4, 2), 9)
    (0.5, 1.0)
    """

    name: ClassVar[str] = "per_task"

    tasks: tuple[tuple[str, float], ...] = ()

    def __post_init__(self) -> None:
        """Refuse what is out of range."""
        super().__post_init__()
        _require(self.over == "task" and self.warmup == 0, self, "has neither warmup nor over: each task has its own")
        for entry in self.tasks:
            known = len(entry) == 2 and entry[0] in SCHEDULES and entry[0] != self.name
            _require(known, self, f"{entry!r} must be the name of another schedule and a factor")
            _require(0 <= entry[1] < math.inf, self, f"the factor in {entry!r} must be at least 0 and finite")

    def check(self, num_tasks: int) -> None:
        """As many entries as tasks."""
        _require(len(self.tasks) == num_tasks, self, f"has {len(self.tasks)} entries for {num_tasks} tasks")

    def shape(self, progress: float) -> float:
        """Never asked: each task has its own."""
        raise AssertionError("a task's own schedule is asked")

    def factor(self, task: int, step: int, num_steps: int, num_tasks: int) -> float:
        """The factor of one update, see :meth:`Schedule.factor`."""
        name, times = self.tasks[task]
        return times * SCHEDULES[name]().factor(0, step, num_steps, 1)


SCHEDULES: dict[str, type[Schedule]] = {cls.name: cls for cls in (Constant, StepDecay, Cosine, Linear, PerTask)}
"""Schedule classes by the name that experiments and the command line use."""


class StepSizes:
    """A schedule at work: sets the step size of an optimizer before each of its steps.

    Args:
        schedule: Which one.
        optimizer: Whose; the step sizes that it has now are those that are multiplied, so make this before a state is
            loaded into it.
        num_tasks: Tasks of the stream.
    """

    def __init__(self, schedule: Schedule, optimizer: torch.optim.Optimizer, num_tasks: int) -> None:
        self.schedule = schedule
        self.optimizer = optimizer
        self.num_tasks = num_tasks
        rates = [group["lr"] for group in optimizer.param_groups]
        self._base: list[Any] = [rate.clone() if isinstance(rate, torch.Tensor) else rate for rate in rates]
        self._factors: Sequence[float] = ()
        self._step = 0

    def begin_task(self, task: int, num_steps: int) -> None:
        """The next step is the first of the given task."""
        self._factors = [self.schedule.factor(task, step, num_steps, self.num_tasks) for step in range(num_steps)]
        self._step = 0

    def before_step(self) -> None:
        """Set the step size of the coming step."""
        factor = self._factors[self._step]
        self._step += 1
        for group, base in zip(self.optimizer.param_groups, self._base, strict=True):
            lr = group["lr"]
            if isinstance(lr, torch.Tensor):  # a captured or compiled step reads this very tensor
                lr.copy_(base * factor)
            else:
                group["lr"] = base * factor
