"""What a stream is: random access to tasks, and randomness that depends on names and numbers, never on history."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Protocol, final, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from pliant.errors import IllegalConfiguration

__all__ = [
    "LOSSES",
    "LOWER_IS_BETTER",
    "UNBOUNDED",
    "Augment",
    "Stream",
    "Task",
    "Traits",
    "check_length",
    "generator",
    "is_supervised",
    "require",
    "tensor_bytes",
    "traits",
]

LOSSES: tuple[str, ...] = ("cross_entropy", "mse", "binary_cross_entropy")
"""What a stream may ask to be minimised."""

LOWER_IS_BETTER: frozenset[str] = frozenset({"mse"})
"""Scores of which less is better; of all others, more."""

UNBOUNDED: frozenset[str] = frozenset({"return"})
"""Scores of which more is better and that may be below zero."""

Augment = Callable[[Tensor, np.random.Generator], Tensor]
"""From a batch of inputs and a generator to inputs of the same shape and dtype."""


def generator(purpose: str, *numbers: int) -> np.random.Generator:
    """Return a random generator that depends on ``purpose`` and ``numbers`` only.

    Two purposes never share a sequence, so adding a draw to one of them leaves all others as they were.

    >>> bool(generator("order", 1, 2).integers(1000) == generator("order", 1, 2).integers(1000))
    True
    """
    entropy = [zlib.crc32(purpose.encode()), *numbers]
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(entropy)))


def require(condition: bool, stream: object, message: str) -> None:
    """Raise IllegalConfiguration that names the stream unless ``condition`` holds."""
    if not condition:
        raise IllegalConfiguration(f"{type(stream).__name__}: {message}")


@dataclass(frozen=True, eq=False)
class Task:
    """One task of a stream: its data, how often and in which order it is seen, and what its definition asks for.

    Attributes:
        inputs: ``[N, *input_shape]`` of the stream's input dtype (float32 unless it says otherwise).
        targets: int64 ``[N]``, class labels; int64 ``[N, T]``, a label for every position; float32 ``[N, K]``,
            numbers, for K outputs.
        num_epochs: passes over the data.
        batch_size: examples per update; the last batch of a pass may be smaller.
        order_key: numbers that determine the order of every pass, together with its epoch.
        test_inputs: ``[M, *input_shape]`` held out from training, or None where held-out accuracy means nothing.
        test_targets: M targets, or None.
        active_outputs: the outputs that take part in this task's loss and score, in ascending order; None: all.
        reset_head: the definition asks for a new output layer when this task begins.
        augment: applied to the inputs of every training batch, with the generator of :meth:`augmented`; None: nothing.
        valid_inputs: ``[V, *input_shape]`` on which the definition selects the best weights of a task, or None.
        valid_targets: V targets, or None.
        name: what the task is, for people; for example its classes.
    """

    inputs: Tensor
    targets: Tensor
    num_epochs: int
    batch_size: int
    order_key: tuple[int, ...]
    test_inputs: Tensor | None = None
    test_targets: Tensor | None = None
    active_outputs: tuple[int, ...] | None = None
    reset_head: bool = False
    augment: Augment | None = None
    valid_inputs: Tensor | None = None
    valid_targets: Tensor | None = None
    name: str = ""

    def order(self, epoch: int) -> Tensor:
        """Return int64 ``[N]``: the order in which pass ``epoch`` shows the examples, each exactly once."""
        permutation = generator("order", *self.order_key, epoch).permutation(len(self.targets))
        return torch.from_numpy(permutation.astype(np.int64, copy=False))

    @property
    def num_steps(self) -> int:
        """Optimizer steps that the task takes."""
        return self.num_epochs * -(-len(self.targets) // self.batch_size)

    @property
    def num_bytes(self) -> int:
        """Memory of its tensors."""
        tensors = [value for field in fields(self) if isinstance(value := getattr(self, field.name), Tensor)]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def cut(self, num_steps: int) -> Task:
        """Return the task cut to about so many optimizer steps, at least one: what a run costs is measured on it."""
        per_pass = -(-len(self.targets) // self.batch_size)
        if num_steps < per_pass:
            some = slice(num_steps * self.batch_size)
            return replace(self, inputs=self.inputs[some], targets=self.targets[some], num_epochs=1)
        return replace(self, num_epochs=min(self.num_epochs, num_steps // per_pass))

    def augmented(self, inputs: Tensor, epoch: int, step: int) -> Tensor:
        """Return a batch as it is trained on: augmented with the randomness of its pass and its place in the pass.

        Args:
            inputs: the batch, ``[B, *input_shape]``.
            epoch: which pass, from 0.
            step: which batch of the pass, from 0.
        """
        if self.augment is None:
            return inputs
        return self.augment(inputs, generator("augment", *self.order_key, epoch, step))


@runtime_checkable
class Stream(Protocol):
    """A sequence of tasks with random access; implementations are frozen dataclasses whose fields are options.

    What a stream may say besides, as class attributes or properties, has a default: see :class:`Traits`. A stream that
    reads files may have a method ``prepare()``, called once before a run, that makes sure of them. Further class
    attributes are ``not_identity``, the names of options that change no result, ``control``, True where nothing
    changes between tasks, and ``title``, its name on paper.
    A stream whose tasks are no examples names what goes through them: ``trainer``, as ``"module:Class"``; see
    ``pliant.bench.rl``.
    """

    name: ClassVar[str]

    @property
    def num_inputs(self) -> int:
        """What models are built with: features per example, or ids where inputs are ids."""
        ...

    @property
    def num_classes(self) -> int:
        """Outputs of a model: labels are in ``[0, num_classes)``, numbers have so many columns."""
        ...

    def task(self, index: int, seed: int) -> Task:
        """Return task ``index`` of the stream that belongs to ``seed``: same arguments, same bytes."""
        ...


@final
@dataclass(frozen=True)
class Traits:
    """What a stream says of itself beyond its tasks, with defaults for what it leaves unsaid.

    Attributes:
        loss: what is minimised, one of :data:`LOSSES`; of agents, the algorithm.
        score: the online measure: ``accuracy``, ``mse``, ``auc``; of agents ``return``.
        requires_data: the data set that it reads from files, or None.
        measures_past: earlier tasks' test sets still mean something, so that forgetting can be measured.
        input_shape: shape of one example; default ``(num_inputs,)``.
        input_dtype: float32, or int64 where inputs are ids.
        max_tasks: tasks that there are; None: no end.
        task_bytes: memory of the tensors of its largest task; None: not known before it is built.
    """

    loss: str = "cross_entropy"
    score: str = "accuracy"
    requires_data: str | None = None
    measures_past: bool = False
    input_shape: tuple[int, ...] = ()
    input_dtype: torch.dtype = torch.float32
    max_tasks: int | None = None
    task_bytes: int | None = None

    @property
    def lower_is_better(self) -> bool:
        """Whether less of the score is better."""
        return self.score in LOWER_IS_BETTER

    @property
    def worst(self) -> float:
        """What a failed seed counts as: the worst score that there is, infinite where there is none."""
        return math.inf if self.lower_is_better else -math.inf if self.score in UNBOUNDED else 0.0

    @property
    def series(self) -> str:
        """The record's series of the score before each update; test series end alike."""
        return f"online_{self.score}"


def is_supervised(stream: object) -> bool:
    """Whether the tasks of a stream (or of a class of streams) are examples; those of agents are not."""
    return not hasattr(stream, "trainer")


def traits(stream: Stream) -> Traits:
    """Return what ``stream`` says of itself; works for streams that say nothing, as a user's own may.

    >>> from pliant.bench.streams import RandomLabelDigits
    >>> found = traits(RandomLabelDigits())
    >>> found.loss, found.score, found.lower_is_better, found.input_shape
    ('cross_entropy', 'accuracy', False, (64,))
    """
    said: dict[str, Any] = {field.name: getattr(stream, field.name, field.default) for field in fields(Traits)}
    said["input_shape"] = tuple(said["input_shape"]) or (stream.num_inputs,)
    known = said["loss"] in LOSSES or not is_supervised(stream)
    require(known, stream, f"loss {said['loss']!r} is none of {', '.join(LOSSES)}")
    return Traits(**said)


def check_length(stream: object, num_tasks: int) -> None:
    """Raise IllegalConfiguration if ``stream`` ends before so many tasks."""
    last = getattr(stream, "max_tasks", None)
    require(
        last is None or num_tasks <= last,
        stream,
        f"num_tasks is {num_tasks}, but there are {last} tasks; give num_tasks={last} (--tasks {last}) or fewer",
    )


def tensor_bytes(num_examples: int, input_shape: tuple[int, ...], itemsize: int = 4, target_bytes: int = 8) -> int:
    """Return the memory of so many examples: inputs of ``itemsize`` bytes each, and a target of ``target_bytes``."""
    return num_examples * (math.prod(input_shape) * itemsize + target_bytes)
