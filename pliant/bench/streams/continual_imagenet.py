"""Continual ImageNet: a long row of binary tasks, each with two classes that the network has never seen together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from pliant.bench.streams.base import Task, generator, require, tensor_bytes
from pliant.bench.streams.classes import ClassStream

__all__ = ["ContinualImageNet"]


@final
@dataclass(frozen=True)
class ContinualImageNet(ClassStream):
    """Task k tells the next two classes of a random order apart; the output layer is new for every task.

    Attributes:
        classes_per_task: classes of a task; they are called 0, 1, ... in it.
        num_epochs: passes over a task.
        batch_size: examples per update.
        reshuffle: when all classes have been used, go on with a new order; otherwise with the same one, so that tasks
            come back.
        reset_head: begin every task with a new output layer.

    Source: Dohare et al. (2024), Nature 632, 768-774: 1,000 classes of ImageNet at 32 x 32, 600 training and 100 test
        images per class, 250 passes of batch 100 per task, heads set to zero at each task, 5,000 tasks (2,000 without
        protection), test accuracy after the last pass; SGD with momentum 0.9. Preset ``kumar``: Kumar et al. (2023),
        arXiv:2308.11958: 10 passes (120 steps) per task, a new order in each round, one head kept. Deviations: seeds
            are
        fixed. uint8 files are scaled to -1..1; float files are taken as they are.
    """

    name: ClassVar[str] = "continual_imagenet"
    title: ClassVar[str] = "Continual ImageNet"

    classes_per_task: int = 2
    num_epochs: int = 10
    batch_size: int = 20
    reshuffle: bool = True
    reset_head: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        for option in ("num_epochs", "batch_size"):
            require(getattr(self, option) >= 1, self, f"{option} must be at least 1")
        require(2 <= self.classes_per_task <= self.num_all, self, f"classes_per_task must be in 2..{self.num_all}")

    @property
    def num_classes(self) -> int:
        """Outputs of a model."""
        return self.classes_per_task

    @property
    def measures_past(self) -> bool:
        """With one head for all tasks; a new head knows nothing of earlier ones."""
        return not self.reset_head

    @property
    def task_bytes(self) -> int:
        """Memory of a task."""
        return tensor_bytes((self.num_train + self.num_test) * self.classes_per_task, self.input_shape)

    def classes(self, index: int, seed: int) -> tuple[int, ...]:
        """Return the classes of a task."""
        turn, place = divmod(index, self.num_all // self.classes_per_task)
        order = generator(self.name, seed, turn if self.reshuffle else 0).permutation(self.num_all)
        return tuple(int(k) for k in order[place * self.classes_per_task : (place + 1) * self.classes_per_task])

    def task(self, index: int, seed: int) -> Task:
        """Return task ``index``; see :class:`Stream`."""
        require(index >= 0, self, f"there is no task {index}")
        classes = self.classes(index, seed)
        inputs, targets, test_inputs, test_targets = self.of_classes(classes, tuple(range(len(classes))))
        return Task(
            inputs=inputs,
            targets=targets,
            num_epochs=self.num_epochs,
            batch_size=self.batch_size,
            order_key=(seed, index),
            test_inputs=test_inputs,
            test_targets=test_targets,
            reset_head=self.reset_head and index > 0,
            name=f"classes {', '.join(map(str, classes))}",
        )
