"""What streams over changing concepts share: a concept is a permutation of pixels, or a renaming of classes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pliant.bench.streams.base import generator, require, tensor_bytes
from pliant.bench.streams.images import ImageStream, indices

__all__ = ["ConceptStream"]


@dataclass(frozen=True)
class ConceptStream(ImageStream):
    """A stream of images in which a concept, drawn from seed and number, says what inputs or labels mean.

    Attributes:
        change: what a concept is: ``inputs`` (a permutation of all pixels) or ``labels`` (a renaming of classes).
        num_examples: images per task, drawn without replacement.
        num_epochs: passes over a task.
        batch_size: examples per update.
        num_test: test images; 0: none.
    """

    change: str = "inputs"
    num_examples: int = 500
    num_epochs: int = 5
    batch_size: int = 16
    num_test: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_counts(self.num_examples, self.num_epochs, self.batch_size, self.num_test)
        require(self.change in ("inputs", "labels"), self, f"change {self.change!r} is neither inputs nor labels")

    @property
    def task_bytes(self) -> int:
        """Memory of a task."""
        return tensor_bytes(self.num_examples + self.num_test, self.input_shape)

    def draw(self, index: int, seed: int) -> Tensor:
        """Return which training images task ``index`` shows, int64 ``[num_examples]``."""
        drawn = generator(f"{self.name} images", seed, index).permutation(self.num_train)
        return indices(drawn[: self.num_examples])

    def seen_as(self, images: Tensor, labels: Tensor, concept: int, seed: int) -> tuple[Tensor, Tensor]:
        """Return inputs ``[N, *input_shape]`` and targets ``[N]`` of stored images under a concept."""
        rng = generator(self.name, seed, concept)
        inputs = self.inputs(images)
        if self.change == "labels":
            return inputs, indices(rng.permutation(self.num_classes))[labels]
        pixels = indices(rng.permutation(self.num_inputs))
        return torch.reshape(inputs.flatten(1)[:, pixels], inputs.shape), labels
