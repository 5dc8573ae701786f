"""Label noise that fades: early tasks teach partly wrong labels, later ones more and more of the truth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import torch

from pliant.bench.streams.augment import FlipCropRotate
from pliant.bench.streams.base import Task, generator, require, tensor_bytes
from pliant.bench.streams.images import ImageStream, indices

__all__ = ["LabelNoise"]


@final
@dataclass(frozen=True)
class LabelNoise(ImageStream):
    """Task k has the images of the first k + 1 chunks, and wrong labels for a share ``noise[k]`` of them.

    Which images are mislabelled, and how, is drawn anew for each task over all of its images; a wrong label is any of
    the others, alike. Test labels are true.

    Attributes:
        noise: share of wrong labels in each task; as many tasks as numbers, and as many chunks of equal size.
        access: ``full`` (a task has all images so far) or ``limited`` (only its own chunk).
        num_epochs: passes over a task.
        batch_size: examples per update.
        num_test: test images; 0: none.
        augment: mirror and shift (4 pixels of zeros around) training images.

    Source: Lee et al. (2024), Slow and steady wins the race (Hare & Tortoise), arXiv:2406.02596, continual CIFAR-10:
        ten chunks of 10 % with noise 0.5, 0.4, 0.4, 0.3, 0.3, 0.2, 0.2, 0.1, 0.1 and 0, earlier chunks kept, 100 passes
        of batch 256 per task, ResNet-18, AdamW 1e-3 with weight decay 1e-3, mirrored and shifted. Deviations: gradients
        are not clipped, and the optimizer is not made anew at each task (add ``optimizer_reset``). A first task with
        random labels only (Lyle et al. 2023) is ``noise = (0.9, 0, ...)`` for ten classes.
    """

    name: ClassVar[str] = "label_noise"
    title: ClassVar[str] = "Fading label noise"

    noise: tuple[float, ...] = (0.5, 0.4, 0.4, 0.3, 0.3, 0.2, 0.2, 0.1, 0.1, 0.0)
    access: str = "full"
    num_epochs: int = 20
    batch_size: int = 32
    num_test: int = 0
    augment: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_counts(1, self.num_epochs, self.batch_size, self.num_test)
        sensible = bool(self.noise) and all(0 <= share <= 1 for share in self.noise)
        require(sensible, self, f"noise must be shares in [0, 1], got {self.noise}")
        require(
            len(self.noise) <= self.num_train, self, f"there are {self.num_train} images for {len(self.noise)} tasks"
        )
        require(self.access in ("full", "limited"), self, f"access {self.access!r} is neither full nor limited")
        require(not (self.augment and self.flat), self, "augment needs images: flat=False")

    @property
    def max_tasks(self) -> int:
        """Tasks that there are."""
        return len(self.noise)

    @property
    def task_bytes(self) -> int:
        """Memory of the largest task."""
        chunk = self.num_train // len(self.noise)
        return tensor_bytes(
            (chunk * len(self.noise) if self.access == "full" else chunk) + self.num_test, self.input_shape
        )

    def task(self, index: int, seed: int) -> Task:
        """Return task ``index``; see :class:`Stream`."""
        require(0 <= index < self.max_tasks, self, f"there is no task {index} (of {self.max_tasks})")
        found = self.images()
        chunk = self.num_train // len(self.noise)
        order = indices(generator(f"{self.name} images", seed).permutation(len(found.train_labels)))
        chosen = order[index * chunk if self.access == "limited" else 0 : (index + 1) * chunk]
        labels = found.train_labels[chosen]
        rng = generator(self.name, seed, index)
        wrong = indices(rng.permutation(len(chosen))[: int(self.noise[index] * len(chosen))])
        # 1 to C - 1 further than the true one: every other label is equally likely.
        shift = torch.from_numpy(rng.integers(1, self.num_classes, len(wrong), dtype="int64"))
        labels[wrong] = (labels[wrong] + shift) % self.num_classes
        test, test_targets = self.test_images(self.num_test)
        return Task(
            inputs=self.inputs(found.train_images[chosen]),
            targets=labels,
            num_epochs=self.num_epochs,
            batch_size=self.batch_size,
            order_key=(seed, index),
            test_inputs=None if test is None else self.inputs(test),
            test_targets=test_targets,
            augment=FlipCropRotate(mode="constant", degrees=0.0) if self.augment else None,
            name=f"{len(chosen)} images, {self.noise[index]:.0%} wrong labels",
        )
