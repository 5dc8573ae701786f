"""Fixed images whose labels are shuffled for each task: fresh memorisation problems over the same inputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from pliant.bench.streams.base import Task, generator, require, tensor_bytes
from pliant.bench.streams.images import ImageStream, indices

__all__ = ["RandomLabelImages"]


@final
@dataclass(frozen=True)
class RandomLabelImages(ImageStream):
    """The same images in all tasks of a seed; each task deals their labels out anew, and they are learnt by heart.

    The labels are the true ones in a random order, so that classes keep their sizes. There is nothing to generalise
    to, hence no test set.

    Attributes:
        num_examples: images, drawn without replacement.
        num_epochs: passes over a task.
        batch_size: examples per update.

    Source: Kumar et al. (2023), arXiv:2308.11958: 1,200 images of MNIST or CIFAR-10, batch 16, 30,000 steps (400
        passes) per task, 50 tasks, average online accuracy of a task; a network of 2 hidden layers of 100 units, for
        CIFAR with two convolutions of 16 channels before it. Deviation: their code starts a new pass as soon as fewer
        than two batches are left, here every pass shows every image.
    """

    name: ClassVar[str] = "random_label_images"
    title: ClassVar[str] = "Random-label images"

    num_examples: int = 1200
    num_epochs: int = 400
    batch_size: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_counts(self.num_examples, self.num_epochs, self.batch_size)

    @property
    def task_bytes(self) -> int:
        """Memory of a task."""
        return tensor_bytes(self.num_examples, self.input_shape)

    def task(self, index: int, seed: int) -> Task:
        """Return task ``index``; see :class:`Stream`."""
        require(index >= 0, self, f"there is no task {index}")
        found = self.images()
        chosen = indices(generator(f"{self.name} images", seed).permutation(len(found.train_labels)))
        chosen = chosen[: self.num_examples]
        dealt = indices(generator(self.name, seed, index).permutation(self.num_examples))
        targets = found.train_labels[chosen][dealt]
        return Task(self.inputs(found.train_images[chosen]), targets, self.num_epochs, self.batch_size, (seed, index))
