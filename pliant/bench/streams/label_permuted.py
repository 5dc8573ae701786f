"""Images whose classes change names at each task: what the network sees stays, what it must answer does not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from pliant.bench.streams.base import Task, generator, require, tensor_bytes
from pliant.bench.streams.images import ImageStream, indices

__all__ = ["LabelPermuted"]


@final
@dataclass(frozen=True)
class LabelPermuted(ImageStream):
    """Each task renames the classes by a permutation; what was learnt about the images stays useful.

    Attributes:
        num_examples: images per task, drawn without replacement.
        num_epochs: passes over a task.
        batch_size: examples per update.
        num_test: test images, renamed like the task's; 0: none.

    Source: label-permuted EMNIST and CIFAR-10 of UPGD, Elsayed & Mahmood (2024), arXiv:2404.00781: new names every
        2,500 examples, batch 1, 1,000,000 examples, pixels (x - 0.5) / 0.5. Deviations: seeds are fixed, and every
        permutation is drawn afresh where the released code renames the renamed classes; both are uniformly random.
        Their network for CIFAR-10 has no ReLU behind its convolutions, the preset's has. Their third stream,
        mini-ImageNet, has features of a trained network as inputs: give it as a stream of your own.
    """

    name: ClassVar[str] = "label_permuted"
    title: ClassVar[str] = "Label-permuted images"

    num_examples: int = 1000
    num_epochs: int = 1
    batch_size: int = 1
    num_test: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_counts(self.num_examples, self.num_epochs, self.batch_size, self.num_test)

    @property
    def task_bytes(self) -> int:
        """Memory of a task."""
        return tensor_bytes(self.num_examples + self.num_test, self.input_shape)

    def task(self, index: int, seed: int) -> Task:
        """Return task ``index``; see :class:`Stream`."""
        require(index >= 0, self, f"there is no task {index}")
        rng = generator(self.name, seed, index)
        renamed = indices(rng.permutation(self.num_classes))
        found = self.images()
        chosen = indices(rng.permutation(len(found.train_labels))[: self.num_examples])
        test, test_labels = self.test_images(self.num_test)
        return Task(
            inputs=self.inputs(found.train_images[chosen]),
            targets=renamed[found.train_labels[chosen]],
            num_epochs=self.num_epochs,
            batch_size=self.batch_size,
            order_key=(seed, index),
            test_inputs=None if test is None else self.inputs(test),
            test_targets=None if test_labels is None else renamed[test_labels],
        )
