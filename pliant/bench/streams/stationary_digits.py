"""Digits where nothing ever changes: the control that shows what keeping plasticity costs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from pliant.bench.data.digits import NUM_DIGITS, load_digits
from pliant.bench.streams.base import Task, require, tensor_bytes
from pliant.bench.streams.permuted_digits import split_digits

__all__ = ["StationaryDigits"]


@final
@dataclass(frozen=True)
class StationaryDigits:
    """Every task is the same: the true digits with their true labels, in a new order each time.

    A task boundary is still signalled, because a learner cannot know that nothing changed. Test accuracy is
    measured on the digits that no task of the seed ever shows.

    Attributes:
        num_examples: training digits, the first ones of the seed's training part.
        num_test: held-out digits; the split is that of ``PermutedDigits``.
        num_epochs: passes per task.
        batch_size: examples per update.
    """

    name: ClassVar[str] = "stationary_digits"
    num_inputs: ClassVar[int] = 64
    num_classes: ClassVar[int] = 10
    control: ClassVar[bool] = True

    num_examples: int = 512
    num_test: int = 597
    num_epochs: int = 5
    batch_size: int = 16

    def __post_init__(self) -> None:
        require(1 <= self.num_test < NUM_DIGITS, self, f"num_test must be in 1..{NUM_DIGITS - 1}")
        num_train = NUM_DIGITS - self.num_test
        require(1 <= self.num_examples <= num_train, self, f"num_examples must be in 1..{num_train} (1797 - num_test)")
        require(self.num_epochs >= 1, self, "num_epochs must be at least 1")
        require(self.batch_size >= 1, self, "batch_size must be at least 1")

    @property
    def task_bytes(self) -> int:
        """Memory of a task."""
        return tensor_bytes(self.num_examples + self.num_test, (self.num_inputs,))

    def task(self, index: int, seed: int) -> Task:
        """Return task ``index``; see :class:`Stream`."""
        require(index >= 0, self, f"there is no task {index}")
        inputs_NF, targets = load_digits()
        train, test = split_digits(seed, self.num_test)
        chosen = train[: self.num_examples]
        return Task(
            inputs=inputs_NF[chosen],
            targets=targets[chosen],
            num_epochs=self.num_epochs,
            batch_size=self.batch_size,
            order_key=(seed, index),
            test_inputs=inputs_NF[test],
            test_targets=targets[test],
        )
