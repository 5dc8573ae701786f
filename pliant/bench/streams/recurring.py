"""A few concepts that come back again and again: does a network still learn, and does it remember?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from pliant.bench.streams.base import Task, generator, require
from pliant.bench.streams.concepts import ConceptStream

__all__ = ["Recurring"]


@final
@dataclass(frozen=True)
class Recurring(ConceptStream):
    """Each task has one of a few concepts; other images each time, so that nothing can be learnt by heart.

    Attributes:
        num_concepts: different concepts of a seed.
        order: ``cycle`` (one after another, in turns) or ``random`` (drawn for each task, any but the last one).

    Source: recurring banks of permutations as in the code of rigorous-plasticity (2026,
        github.com/Felix-Zhenghao/rigorous-plasticity); recurring concepts are a class of drift of their own in
        Gama et al. (2014), A survey on concept drift adaptation, DOI 10.1145/2523813. There is no published setting.
    """

    name: ClassVar[str] = "recurring"
    title: ClassVar[str] = "Recurring tasks"

    num_concepts: int = 5
    order: str = "cycle"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.num_concepts >= 2, self, "num_concepts must be at least 2")
        require(self.order in ("cycle", "random"), self, f"order {self.order!r} is neither cycle nor random")

    @property
    def measures_past(self) -> bool:
        """Earlier concepts come back."""
        return self.num_test > 0

    def concept(self, index: int, seed: int) -> int:
        """Return the concept of a task, in ``[0, num_concepts)``."""
        if self.order == "cycle":
            return index % self.num_concepts
        # Steps of 1 to K - 1 round a circle: never the same twice, and each of the others alike.
        block = 1024
        total = 0
        for first in range(0, index + 1, block):
            steps = generator(f"{self.name} order", seed, first // block).integers(1, self.num_concepts, block)
            total += int(steps[: index + 1 - first].sum())
        return total % self.num_concepts

    def task(self, index: int, seed: int) -> Task:
        """Return task ``index``; see :class:`Stream`."""
        require(index >= 0, self, f"there is no task {index}")
        found = self.images()
        chosen = self.draw(index, seed)
        concept = self.concept(index, seed)
        inputs, targets = self.seen_as(found.train_images[chosen], found.train_labels[chosen], concept, seed)
        test, labels = self.test_images(self.num_test)
        held_out = (None, None) if test is None or labels is None else self.seen_as(test, labels, concept, seed)
        return Task(
            inputs,
            targets,
            self.num_epochs,
            self.batch_size,
            (seed, index),
            test_inputs=held_out[0],
            test_targets=held_out[1],
            name=f"concept {concept}",
        )
