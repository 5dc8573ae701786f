"""What a stream is: random access to tasks, and randomness that depends on names and numbers, never on history."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from pliant.errors import IllegalConfiguration

__all__ = ["Stream", "Task", "generator", "require"]


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
    """One task of a stream: its data, and how often and in which order it is seen.

    Attributes:
        inputs: float32 ``[N, F]``.
        targets: int64 ``[N]``, class labels.
        num_epochs: passes over the data.
        batch_size: examples per update; the last batch of a pass may be smaller.
        order_key: numbers that determine the order of every pass, together with its epoch.
        test_inputs: float32 ``[M, F]`` held out from training, or None where held-out accuracy means nothing.
        test_targets: int64 ``[M]`` or None.
    """

    inputs: Tensor
    targets: Tensor
    num_epochs: int
    batch_size: int
    order_key: tuple[int, ...]
    test_inputs: Tensor | None = None
    test_targets: Tensor | None = None

    def order(self, epoch: int) -> Tensor:
        """Return int64 ``[N]``: the order in which pass ``epoch`` shows the examples, each exactly once."""
        permutation = generator("order", *self.order_key, epoch).permutation(len(self.targets))
        return torch.from_numpy(permutation.astype(np.int64, copy=False))

    @property
    def num_steps(self) -> int:
        """Optimizer steps that the task takes."""
        return self.num_epochs * -(-len(self.targets) // self.batch_size)


@runtime_checkable
class Stream(Protocol):
    """A sequence of tasks with random access; implementations are frozen dataclasses whose fields are options.

    A stream that reads files may have a method ``prepare()``, called once before a run, that makes sure of them, and
    class attributes ``not_identity``, the names of options that change no result, ``control``, True where nothing
    changes between tasks, and ``title``, its name on paper.
    """

    name: ClassVar[str]

    @property
    def num_inputs(self) -> int:
        """Features per example."""
        ...

    @property
    def num_classes(self) -> int:
        """Labels are in ``[0, num_classes)``."""
        ...

    def task(self, index: int, seed: int) -> Task:
        """Return task ``index`` of the stream that belongs to ``seed``: same arguments, same bytes."""
        ...
