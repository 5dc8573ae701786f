"""Task-incremental image streams: every task asks for a few classes that no task before it has shown.

``TransformedDigits`` is made of the digits that are shipped, ``ImageClasses`` of real images. Only the outputs of a
task's classes take part in its loss and score, and the head begins anew with each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np
import torch
from torch import Tensor

from benchmarks.manifolds.augment import CropFlipJitter
from pliant.bench.data.digits import load_digits
from pliant.bench.data.images import IMAGES
from pliant.bench.streams.base import Task, generator, require
from pliant.bench.streams.classes import CLASS_FILES, ClassStream

__all__ = ["NUM_TRANSFORMS", "ImageClasses", "TransformedDigits", "transformed"]

NUM_TRANSFORMS = 16
_SIDE, _DIGITS = 8, 10


def transformed(images: Tensor, which: int) -> Tensor:
    """Images turned by ``which % 4`` quarters, mirrored from 4 on, and with light and dark exchanged from 8 on.

    Args:
        images: ``[..., H, W]`` with pixels in [0, 1].
        which: In ``[0, 16)``.
    """
    turned = torch.rot90(images, which % 4, (-2, -1))
    turned = turned.flip(-1) if which // 4 % 2 else turned
    return 1 - turned if which // 8 else turned


@final
@dataclass(frozen=True)
class TransformedDigits:
    """Five digits seen through one of sixteen transforms: 32 tasks with 160 classes in all, each shown once.

    Every transform keeps neighbouring pixels neighbours, so that convolutions make sense. All classes of a task go
    through the same transform: no task can be solved by telling transforms apart, and none has one digit twice.

    Attributes:
        num_examples: training digits per task, as many of each class.
        num_test: held-out digits per task, as many of each class.
        num_epochs: passes over a task.
        batch_size: examples per update.

    Source: the task-incremental images of Joudaki et al. (2025), arXiv 2510.00304, 40 tasks of five classes of Tiny
        ImageNet. Deviations: digits of 8 x 8 pixels, and classes made by transforms.

    >>> stream = TransformedDigits()
    >>> sorted(set(stream.task(0, 0).targets.tolist())) == list(stream.classes(0, 0))
    True
    """

    name: ClassVar[str] = "transformed_digits"
    title: ClassVar[str] = "Transformed digits"
    num_inputs: ClassVar[int] = _SIDE * _SIDE
    num_classes: ClassVar[int] = NUM_TRANSFORMS * _DIGITS
    max_tasks: ClassVar[int] = 2 * NUM_TRANSFORMS
    input_shape: ClassVar[tuple[int, int, int]] = (1, _SIDE, _SIDE)

    num_examples: int = 160
    num_test: int = 200
    num_epochs: int = 12
    batch_size: int = 32

    def __post_init__(self) -> None:
        require(self.num_examples >= 5 and self.num_examples % 5 == 0, self, "num_examples must be a multiple of 5")
        require(self.num_test >= 5 and self.num_test % 5 == 0, self, "num_test must be a multiple of 5")
        require(self.num_examples + self.num_test <= 5 * 170, self, "there are 174 digits of a class, or a few more")
        require(self.num_epochs >= 1, self, "num_epochs must be at least 1")
        require(self.batch_size >= 1, self, "batch_size must be at least 1")

    def _place(self, index: int, seed: int) -> tuple[int, list[int]]:
        """The transform and the digits of a task."""
        require(0 <= index < self.max_tasks, self, f"there are tasks 0 to {self.max_tasks - 1}, not {index}")
        at = int(generator(self.name, seed).permutation(self.max_tasks)[index])
        digits = generator(f"{self.name} halves", seed, at // 2).permutation(_DIGITS)
        half = digits[:5] if at % 2 else digits[5:]
        return at // 2, sorted(int(digit) for digit in half)

    def classes(self, index: int, seed: int) -> tuple[int, ...]:
        """The classes of a task, in order."""
        which, digits = self._place(index, seed)
        return tuple(which * _DIGITS + digit for digit in digits)

    def task(self, index: int, seed: int) -> Task:
        """Return task ``index``; labels are classes out of all 160; see :class:`pliant.bench.streams.base.Stream`."""
        which, digits = self._place(index, seed)
        draws = generator(f"{self.name} examples", seed, index)
        inputs_NF, labels_N = load_digits()
        train, test = [], []
        for digit in digits:
            rows = torch.nonzero(labels_N == digit).flatten()
            rows = rows[torch.from_numpy(draws.permutation(len(rows)).astype(np.int64))]
            train.append(rows[: self.num_examples // 5])
            test.append(rows[self.num_examples // 5 :][: self.num_test // 5])
        parts = []
        for rows in (torch.cat(train), torch.cat(test)):
            images = transformed(inputs_NF[rows].unflatten(1, (_SIDE, _SIDE)), which)
            parts += [images.unsqueeze(1), labels_N[rows] + which * _DIGITS]
        x, y, test_x, test_y = parts
        return Task(
            x,
            y,
            self.num_epochs,
            self.batch_size,
            (seed, index),
            test_x,
            test_y,
            active_outputs=self.classes(index, seed),
            reset_head=True,
        )


@final
@dataclass(frozen=True)
class ImageClasses(ClassStream):
    """The classes of a set of real images, in an order drawn for each seed, a few for each task.

    Attributes:
        classes_per_task: Classes of a task; those that do not fill a last task are left out.
        num_epochs: passes over a task.
        batch_size: examples per update.
        pad: Training images are mirrored half of the time and shifted by up to so many pixels; 0: neither.
        jitter: How far their brightness, contrast and saturation change besides; see :class:`CropFlipJitter`.

    Source: Joudaki et al. (2025), arXiv 2510.00304: Tiny ImageNet, 40 tasks of five classes, head zeroed, masked
        cross-entropy, shifts of 8 pixels and a jitter of 0.1.
    """

    name: ClassVar[str] = "image_classes"
    title: ClassVar[str] = "Images, class by class"

    classes_per_task: int = 5
    num_epochs: int = 500
    batch_size: int = 128
    pad: int = 0
    jitter: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(1 <= self.classes_per_task <= self.num_all, self, f"classes_per_task must be in 1..{self.num_all}")
        require(self.num_epochs >= 1, self, "num_epochs must be at least 1")
        require(self.batch_size >= 1, self, "batch_size must be at least 1")
        require(self.pad >= 0, self, "pad must not be negative")
        require(0 <= self.jitter < 1, self, "jitter must be in [0, 1)")
        require(
            not self.jitter or (self.pad > 0 and self._shape[0] == 3), self, "jitter needs colours, and pad above 0"
        )
        require(not (self.pad and self.flat), self, "pad needs images: flat=False")

    @property
    def num_classes(self) -> int:
        """Outputs of a model."""
        return self.num_all

    @property
    def max_tasks(self) -> int:
        """Tasks until every class has been shown."""
        return self.num_all // self.classes_per_task

    def classes(self, index: int, seed: int) -> tuple[int, ...]:
        """The classes of a task, in order."""
        require(0 <= index < self.max_tasks, self, f"there are tasks 0 to {self.max_tasks - 1}, not {index}")
        order = generator(self.name, seed).permutation(self.num_all)
        return tuple(sorted(int(c) for c in order[index * self.classes_per_task :][: self.classes_per_task]))

    def task(self, index: int, seed: int) -> Task:
        """Return task ``index``; see :class:`pliant.bench.streams.base.Stream`."""
        classes = self.classes(index, seed)
        inputs, targets, test_inputs, test_targets = self.of_classes(classes, classes)
        return Task(
            inputs,
            targets,
            self.num_epochs,
            self.batch_size,
            (seed, index),
            test_inputs,
            test_targets,
            active_outputs=classes,
            reset_head=True,
            augment=self._augment() if self.pad else None,
        )

    def _augment(self) -> CropFlipJitter:
        if self.scaling == "channel":
            known = IMAGES.get(self.dataset)
            mean, std = (known.mean, known.std) if known is not None else CLASS_FILES[self.dataset][2:]
        else:
            mean, std = ((0.0,), (1.0,)) if self.scaling == "unit" else ((0.5,), (0.5,))
        return CropFlipJitter(self.pad, self.jitter, mean, std)
