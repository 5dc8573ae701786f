"""Warm starts and growing data: the same problem with more examples, from weights that were trained on fewer."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, final

from pliant.bench.streams.base import Task, generator, require, tensor_bytes
from pliant.bench.streams.images import ImageStream, indices

__all__ = ["DataGrowth"]


@final
@dataclass(frozen=True)
class DataGrowth(ImageStream):
    """Task k trains on the first ``fractions[k]`` of the training images, in a random order of the seed.

    What a network loses by having been trained on fewer images before is its distance to one that is trained from
    scratch: add a run of ``fresh_start``.

    Attributes:
        fractions: share of all training images by the end of each task, increasing.
        access: ``full`` (a task has all images so far) or ``limited`` (only those that have come with it).
        num_epochs: passes over each task; a single number is for all.
        batch_size: examples per update.
        num_test: test images, the same for all tasks; 0: none.

    Source: preset ``paper``: warm start of Ash & Adams (2020), arXiv:1910.08475, in the form of Han et al. (2026),
        FIRE, arXiv:2602.08040: 10 % and then all of CIFAR-10, 1,000 and 100 passes (as many steps), ResNet-18, Adam
            1e-3,
        batch 256. Preset ``growth``: ten chunks of 10 %, all earlier ones kept, 100 passes each. Preset ``half``: 50 %
        and then all, as in the first figure of Ash & Adams. Deviations: fixed numbers of passes where Ash & Adams train
        to 99 % on the training images and hold a third of them out; the optimizer is not made anew between tasks (add
        ``optimizer_reset``), gradients are not clipped, and step sizes are warmed up over a tenth of each task.
    """

    name: ClassVar[str] = "data_growth"
    title: ClassVar[str] = "Warm start and data growth"

    fractions: tuple[float, ...] = (0.1, 1.0)
    access: str = "full"
    num_epochs: tuple[int, ...] = (100, 10)
    batch_size: int = 32
    num_test: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_counts(1, min(self.num_epochs, default=0), self.batch_size, self.num_test)
        require(self.access in ("full", "limited"), self, f"access {self.access!r} is neither full nor limited")
        bounds = self._bounds
        rising = all(first < second for first, second in pairwise(bounds))
        sensible = bool(self.fractions) and all(0 < fraction <= 1 for fraction in self.fractions)
        require(sensible and rising, self, f"fractions must increase within (0, 1], got {self.fractions}")
        require(
            len(self.num_epochs) in (1, len(self.fractions)),
            self,
            "num_epochs must have one number, or one per fraction",
        )

    @property
    def _bounds(self) -> list[int]:
        return [0, *(round(fraction * self.num_train) for fraction in self.fractions)]

    @property
    def measures_past(self) -> bool:
        """All tasks share one test set, so this is what the test score says anyway."""
        return False

    @property
    def max_tasks(self) -> int:
        """Tasks that there are."""
        return len(self.fractions)

    @property
    def task_bytes(self) -> int:
        """Memory of the largest task."""
        bounds = self._bounds
        most = bounds[-1] if self.access == "full" else max(b - a for a, b in pairwise(bounds))
        return tensor_bytes(most + self.num_test, self.input_shape)

    def task(self, index: int, seed: int) -> Task:
        """Return task ``index``; see :class:`Stream`."""
        require(0 <= index < self.max_tasks, self, f"there is no task {index} (of {self.max_tasks})")
        found = self.images()
        bounds = self._bounds
        order = indices(generator(self.name, seed).permutation(len(found.train_labels)))
        chosen = order[bounds[index] if self.access == "limited" else 0 : bounds[index + 1]]
        test, test_targets = self.test_images(self.num_test)
        return Task(
            inputs=self.inputs(found.train_images[chosen]),
            targets=found.train_labels[chosen],
            num_epochs=self.num_epochs[index % len(self.num_epochs)],
            batch_size=self.batch_size,
            order_key=(seed, index),
            test_inputs=None if test is None else self.inputs(test),
            test_targets=test_targets,
            name=f"{len(chosen)} images",
        )
