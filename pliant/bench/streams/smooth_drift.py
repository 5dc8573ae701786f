"""A concept that turns slowly into the next one, so that there is no boundary to speak of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from pliant.bench.streams.base import Task, generator, require
from pliant.bench.streams.concepts import ConceptStream

__all__ = ["SmoothDrift"]


@final
@dataclass(frozen=True)
class SmoothDrift(ConceptStream):
    """Within ``period`` tasks, concept c gives way to concept c + 1: a growing share of examples has the new one.

    In task ``c * period + r`` each example has concept c + 1 with probability ``r / period`` and concept c otherwise,
    the test images likewise. With a period of 1 every task is a new concept: the same change, without a bridge.

    Attributes:
        period: tasks from one concept to the next.

    Source: linear mixtures of an old and a new distribution, as in the code of rigorous-plasticity (2026,
        github.com/Felix-Zhenghao/rigorous-plasticity); "gradual drift" in Gama et al. (2014), A survey on concept drift
        adaptation, DOI 10.1145/2523813. There is no published setting.
    """

    name: ClassVar[str] = "smooth_drift"
    title: ClassVar[str] = "Smoothly drifting tasks"

    period: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.period >= 1, self, "period must be at least 1")

    @property
    def measures_past(self) -> bool:
        """The concepts of earlier tasks can still be known."""
        return self.num_test > 0

    def task(self, index: int, seed: int) -> Task:
        """Return task ``index``; see :class:`Stream`."""
        require(index >= 0, self, f"there is no task {index}")
        concept, phase = divmod(index, self.period)
        found = self.images()
        chosen = self.draw(index, seed)
        rng = generator(f"{self.name} mixture", seed, index)

        def mixed(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
            is_new = torch.from_numpy(rng.random(len(labels)) < phase / self.period)
            inputs, targets = self.seen_as(images, labels, concept, seed)
            later_inputs, later_targets = self.seen_as(images[is_new], labels[is_new], concept + 1, seed)
            targets = targets.clone()
            inputs[is_new], targets[is_new] = later_inputs, later_targets
            return inputs, targets

        inputs, targets = mixed(found.train_images[chosen], found.train_labels[chosen])
        test, labels = self.test_images(self.num_test)
        held_out = (None, None) if test is None or labels is None else mixed(test, labels)
        return Task(
            inputs,
            targets,
            self.num_epochs,
            self.batch_size,
            (seed, index),
            test_inputs=held_out[0],
            test_targets=held_out[1],
            name=f"concept {concept}, {phase / self.period:.0%} of {concept + 1}",
        )
