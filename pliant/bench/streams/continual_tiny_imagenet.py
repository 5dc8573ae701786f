"""Tiny ImageNet in chunks of classes, which stay or go when the next ones come."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from pliant.bench.streams.base import Task, generator, require, tensor_bytes
from pliant.bench.streams.classes import ClassStream

__all__ = ["ContinualTinyImageNet"]


@final
@dataclass(frozen=True)
class ContinualTinyImageNet(ClassStream):
    """Each task brings new classes of a random order; all outputs take part from the beginning.

    Attributes:
        classes_per_task: classes that come with a task.
        access: ``full`` (a task has all classes so far) or ``limited`` (only its own).
        num_epochs: passes over a task.
        batch_size: examples per update.

    Source: Han et al. (2026), FIRE, arXiv:2602.08040, class-incremental Tiny ImageNet: 20 chunks of 10 classes, all
        earlier ones kept, 100 passes of batch 256 per chunk, Adam 1e-3, VGG-16; test images of the classes so far.
        Deviations: seeds are fixed; the optimizer is not made anew at each chunk (add ``optimizer_reset``),
        gradients are not clipped, and the preset has a ResNet-18 in place of VGG-16. Images are read from one file per
        class, in any size.
    """

    name: ClassVar[str] = "continual_tiny_imagenet"
    title: ClassVar[str] = "Continual Tiny ImageNet"
    measures_past: ClassVar[bool] = True

    classes_per_task: int = 2
    access: str = "full"
    num_epochs: int = 10
    batch_size: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        for option in ("num_epochs", "batch_size"):
            require(getattr(self, option) >= 1, self, f"{option} must be at least 1")
        require(1 <= self.classes_per_task <= self.num_all, self, f"classes_per_task must be in 1..{self.num_all}")
        require(self.access in ("full", "limited"), self, f"access {self.access!r} is neither full nor limited")

    @property
    def num_classes(self) -> int:
        """Outputs of a model."""
        return self.num_all

    @property
    def max_tasks(self) -> int:
        """Tasks until all classes have come."""
        return -(-self.num_all // self.classes_per_task)

    @property
    def task_bytes(self) -> int:
        """Memory of the largest task."""
        most = self.num_all if self.access == "full" else self.classes_per_task
        return tensor_bytes((self.num_train + self.num_test) * most, self.input_shape)

    def classes(self, index: int, seed: int) -> tuple[int, ...]:
        """Return the classes of a task, in the order of their coming."""
        order = generator(self.name, seed).permutation(self.num_all)
        start = 0 if self.access == "full" else index * self.classes_per_task
        return tuple(int(k) for k in order[start : (index + 1) * self.classes_per_task])

    def task(self, index: int, seed: int) -> Task:
        """Return task ``index``; see :class:`Stream`."""
        require(0 <= index < self.max_tasks, self, f"there is no task {index} (of {self.max_tasks})")
        classes = self.classes(index, seed)
        inputs, targets, test_inputs, test_targets = self.of_classes(classes, classes)
        return Task(
            inputs=inputs,
            targets=targets,
            num_epochs=self.num_epochs,
            batch_size=self.batch_size,
            order_key=(seed, index),
            test_inputs=test_inputs,
            test_targets=test_targets,
            name=f"{len(classes)} classes, new {', '.join(map(str, classes[-self.classes_per_task :]))}",
        )
