"""Class-incremental learning with all earlier data kept: classes come, none goes, and yet networks get worse."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from pliant.bench.streams.augment import FlipCropRotate
from pliant.bench.streams.base import Task, generator, require, tensor_bytes
from pliant.bench.streams.images import ImageStream

__all__ = ["ClassIncremental"]


@final
@dataclass(frozen=True)
class ClassIncremental(ImageStream):
    """Task k trains on all images of the first ``(k + 1) * classes_per_task`` classes of a random order.

    The head has an output for every class; only those of classes that have come take part in loss and score. The first
    images of each class are kept for validation, by which the best weights of a task are chosen. What a network loses
    by having learnt before is its distance to one that is trained from scratch on the same classes: add a run of
    ``fresh_start``.

    Attributes:
        classes_per_task: classes that arrive with each task.
        num_train_per_class: training images of each class.
        num_valid: images of each class kept for validation, the first in the files; 0: none.
        num_epochs: passes over a task.
        batch_size: examples per update.
        augment: mirror, shift (reflected by 4 pixels) and turn (0 to 15 degrees) training images.

    Source: Dohare et al. (2024), Nature 632, 768-774, class-incremental CIFAR-100: 5 classes every 200 passes, 20
        tasks, 450 training and 50 validation images per class, batch 90, ResNet-18, SGD 0.1 (times 0.2 after 60, 120
        and 160 passes of a task), momentum 0.9, weight decay 5e-4, best-validation weights at the end of each task. The
        published accuracy of a task is the largest test accuracy of its 200 passes. Deviations: seeds are fixed; the
        paper's text adds outputs with the classes, its code masks a head of 100, as here.
    """

    name: ClassVar[str] = "class_incremental"
    title: ClassVar[str] = "Class-incremental images"
    measures_past: ClassVar[bool] = True

    classes_per_task: int = 2
    num_train_per_class: int = 80
    num_valid: int = 10
    num_epochs: int = 20
    batch_size: int = 16
    augment: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for option in ("classes_per_task", "num_train_per_class", "num_epochs", "batch_size"):
            require(getattr(self, option) >= 1, self, f"{option} must be at least 1")
        require(self.classes_per_task <= self.num_classes, self, f"there are {self.num_classes} classes")
        require(self.num_valid >= 0, self, "num_valid must not be negative")
        known = self.num_train // self.num_classes
        wanted = self.num_train_per_class + self.num_valid
        require(wanted <= known, self, f"num_train_per_class + num_valid is {wanted}; {self.dataset} has about {known}")
        require(not (self.augment and self.flat), self, "augment needs images: flat=False")

    @property
    def max_tasks(self) -> int:
        """Tasks until all classes have come."""
        return -(-self.num_classes // self.classes_per_task)

    @property
    def task_bytes(self) -> int:
        """Memory of the last task."""
        each = self.num_train_per_class + self.num_valid
        return tensor_bytes(each * self.num_classes + self._about.num_test, self.input_shape)

    def classes(self, index: int, seed: int) -> tuple[int, ...]:
        """Return the classes that have come by a task, in the order of their coming."""
        order = generator(self.name, seed).permutation(self.num_classes)
        return tuple(int(label) for label in order[: (index + 1) * self.classes_per_task])

    def task(self, index: int, seed: int) -> Task:
        """Return task ``index``; see :class:`Stream`."""
        require(0 <= index < self.max_tasks, self, f"there is no task {index} (of {self.max_tasks})")
        found = self.images()
        classes = self.classes(index, seed)
        valid, train = self._split([found.of_class(label) for label in classes])
        test = torch.cat([found.test_of_class(label) for label in classes])
        return Task(
            inputs=self.inputs(found.train_images[train]),
            targets=found.train_labels[train],
            num_epochs=self.num_epochs,
            batch_size=self.batch_size,
            order_key=(seed, index),
            test_inputs=self.inputs(found.test_images[test]),
            test_targets=found.test_labels[test],
            active_outputs=tuple(sorted(classes)),
            augment=FlipCropRotate() if self.augment else None,
            valid_inputs=self.inputs(found.train_images[valid]) if self.num_valid else None,
            valid_targets=found.train_labels[valid] if self.num_valid else None,
            name=f"{len(classes)} classes, new {', '.join(map(str, classes[-self.classes_per_task :]))}",
        )

    def _split(self, places: list[Tensor]) -> tuple[Tensor, Tensor]:
        stop = self.num_valid + self.num_train_per_class
        valid = torch.cat([of_class[: self.num_valid] for of_class in places])
        return valid, torch.cat([of_class[self.num_valid : stop] for of_class in places])
