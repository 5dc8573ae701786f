"""Images whose pixels are permuted anew for each task: example by example, or in batches over a fixed set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from pliant.bench.streams.base import Task, generator, require, tensor_bytes
from pliant.bench.streams.images import ImageStream, indices

__all__ = ["InputPermuted"]


@final
@dataclass(frozen=True)
class InputPermuted(ImageStream):
    """Each task permutes all pixels in its own way; labels are the true ones.

    With colours the permutation moves values between channels, too. Accuracy is online: each example is predicted
    before the network learns from it.

    Attributes:
        num_examples: images per task, drawn without replacement.
        same_images: all tasks of a seed show the same images.
        num_epochs: passes over a task.
        batch_size: examples per update.
        num_test: test images, permuted like the task's; 0: none.

    Source: preset ``paper``: input-permuted MNIST of UPGD, Elsayed & Mahmood (2024), arXiv:2404.00781: a new
        permutation every 5,000 examples, batch 1, 1,000,000 examples, pixels (x - 0.5) / 0.5, network 784-300-150-10.
        Preset ``kumar``: permuted MNIST of Kumar et al. (2023), arXiv:2308.11958: 10,000 fixed images, batch 16, 625
        steps per task, 500 tasks, network 784-100-100-10. Deviations: seeds are fixed; Kumar's code starts a new pass
        as soon as fewer than two batches are left, here every pass shows every image.
    """

    name: ClassVar[str] = "input_permuted"
    title: ClassVar[str] = "Input-permuted images"

    num_examples: int = 1000
    same_images: bool = False
    num_epochs: int = 1
    batch_size: int = 1
    num_test: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_counts(self.num_examples, self.num_epochs, self.batch_size, self.num_test)

    @property
    def measures_past(self) -> bool:
        """Earlier permutations can still be known."""
        return self.num_test > 0

    @property
    def task_bytes(self) -> int:
        """Memory of a task."""
        return tensor_bytes(self.num_examples + self.num_test, self.input_shape)

    def task(self, index: int, seed: int) -> Task:
        """Return task ``index``; see :class:`Stream`."""
        require(index >= 0, self, f"there is no task {index}")
        rng = generator(self.name, seed, index)
        pixels = indices(rng.permutation(self.num_inputs))
        drawing = generator(f"{self.name} images", seed) if self.same_images else rng
        found = self.images()
        chosen = indices(drawing.permutation(len(found.train_labels))[: self.num_examples])
        test, test_targets = self.test_images(self.num_test)

        def permuted(images: Tensor) -> Tensor:
            return torch.reshape(self.inputs(images).flatten(1)[:, pixels], (-1, *self.input_shape))

        return Task(
            inputs=permuted(found.train_images[chosen]),
            targets=found.train_labels[chosen],
            num_epochs=self.num_epochs,
            batch_size=self.batch_size,
            order_key=(seed, index),
            test_inputs=None if test is None else permuted(test),
            test_targets=test_targets,
        )
