"""5+1 CIFAR: hard tasks of several classes alternate with easy ones of a single class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import torch

from pliant.bench.streams.base import Task, generator, require, tensor_bytes
from pliant.bench.streams.images import ImageStream

__all__ = ["FivePlusOne"]


@final
@dataclass(frozen=True)
class FivePlusOne(ImageStream):
    """Even tasks have five classes, odd ones a single class; no class comes twice before all have been used.

    An easy task is answered with one output, which drives the network to where hard ones are difficult to learn. All
    outputs take part in every task, so the head is one for all classes.

    Attributes:
        num_hard: classes of an even task.
        num_easy: classes of an odd task.
        hard_epochs: passes over an even task.
        easy_epochs: passes over an odd task.
        batch_size: examples per update.
        per_class: training images of each class, the first in the files; 0: all (only where classes have equal sizes).
        reuse: when too few classes are left, begin with all of them again, in another order; otherwise the stream ends.

    Source: Kumar et al. (2023), arXiv:2308.11958, with CIFAR-100: 5 and 1 classes of 500 images, 625 steps of batch 16
        per task (in its configuration), 31 tasks, test images of the task's classes. Deviation: tasks are whole passes,
        4 over a hard task (628 steps, their last batch of 4 images) and 20 over an easy one (640).
    """

    name: ClassVar[str] = "five_plus_one"
    title: ClassVar[str] = "5+1 CIFAR"
    measures_past: ClassVar[bool] = True

    num_hard: int = 5
    num_easy: int = 1
    hard_epochs: int = 4
    easy_epochs: int = 20
    batch_size: int = 16
    per_class: int = 0
    reuse: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for option in ("num_hard", "num_easy", "hard_epochs", "easy_epochs", "batch_size"):
            require(getattr(self, option) >= 1, self, f"{option} must be at least 1")
        together = self.num_hard + self.num_easy
        require(together <= self.num_classes, self, f"num_hard + num_easy must be at most {self.num_classes}")
        known = self.num_train // self.num_classes
        unequal = self.dataset in ("digits", "mnist")
        least = 1 if unequal else 0
        require(least <= self.per_class <= known, self, f"per_class must be in {least}..{known} for {self.dataset}")

    @property
    def max_tasks(self) -> int | None:
        """Tasks until the classes are used up."""
        rounds, left = divmod(self.num_classes, self.num_hard + self.num_easy)
        return None if self.reuse else 2 * rounds + (left >= self.num_hard)

    @property
    def task_bytes(self) -> int:
        """Memory of the larger kind of task."""
        train = self.per_class or self.num_train // self.num_classes
        test = self._about.num_test // self.num_classes  # or fewer, where classes have unequal sizes
        return tensor_bytes(max(self.num_hard, self.num_easy) * (train + test), self.input_shape)

    def classes(self, index: int, seed: int) -> tuple[int, ...]:
        """Return the classes of a task."""
        pairs = self.num_classes // (self.num_hard + self.num_easy)
        pair, easy = divmod(index, 2)
        turn, place = divmod(pair, pairs) if self.reuse else (0, pair)
        order = generator(self.name, seed, turn).permutation(self.num_classes)
        start = place * (self.num_hard + self.num_easy) + (self.num_hard if easy else 0)
        return tuple(int(label) for label in order[start : start + (self.num_easy if easy else self.num_hard)])

    def task(self, index: int, seed: int) -> Task:
        """Return task ``index``; see :class:`Stream`."""
        last = self.max_tasks
        require(index >= 0 and (last is None or index < last), self, f"there is no task {index} (of {last})")
        found = self.images()
        classes = self.classes(index, seed)
        train = torch.cat([found.of_class(label)[: self.per_class or None] for label in classes])
        test = torch.cat([found.test_of_class(label) for label in classes])
        return Task(
            inputs=self.inputs(found.train_images[train]),
            targets=found.train_labels[train],
            num_epochs=self.easy_epochs if index % 2 else self.hard_epochs,
            batch_size=self.batch_size,
            order_key=(seed, index),
            test_inputs=self.inputs(found.test_images[test]),
            test_targets=found.test_labels[test],
            name=f"{'easy' if index % 2 else 'hard'}: classes {', '.join(map(str, classes))}",
        )
