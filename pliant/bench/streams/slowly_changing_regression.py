"""Slowly-changing regression: a fixed target network, of whose inputs some bits change once in a while."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np
import torch

from pliant.bench.streams.base import Task, generator, require, tensor_bytes

__all__ = ["SlowlyChangingRegression"]

_BLOCK = 1024
"""Flips are drawn in blocks of this size, so that task k costs k / 1024 draws and not k."""


@final
@dataclass(frozen=True)
class SlowlyChangingRegression:
    """Inputs are bits: some are the same throughout a task, the others random in each example; a fixed network answers.

    The target network has one hidden layer of threshold units: weights and biases are drawn from -1 and 1, unit i is 1
    where ``w_i x + b_i > beta (m + 1) - S_i`` and 0 otherwise, S_i being the number of its weights (bias included) that
    are -1, so that it needs a share ``beta`` of its m + 1 inputs to match. A learner smaller than the target must track
    the slow bits.

    Attributes:
        num_bits: inputs m.
        num_slow: bits that keep their values within a task.
        change: ``one`` of them flips at each task, or ``all`` are drawn anew.
        task_length: examples of a task.
        num_target_units: hidden units of the target network.
        beta: share of matching inputs that a unit needs.
        batch_size: examples per update.
        threshold: ``text`` is the definition above; ``code`` the released code's, whose S_i is half a unit too large
            for a bias of 1 and one and a half too small for -1, so that units with bias -1 fire more rarely.

    Source: Dohare et al. (2024), Nature 632, 768-774, there also called bit flipping: 20 inputs, 15 slow, one flips
        every 10,000 examples, 100 target units, beta 0.7, batch 1, learner 20-5-1, SGD 0.01, 0.003 or 0.001; 3,000,000
        examples (300 tasks), 100 runs. Preset ``redraw``: the variant of its repository's figure, all slow bits drawn
        anew, 1,000,000 examples. Both presets have the released code's thresholds,
        with which the published curves were made. Deviation: seeds are fixed.

    >>> stream = SlowlyChangingRegression(task_length=8)
    >>> now, then = stream.task(4, seed=0).inputs, stream.task(5, seed=0).inputs
    >>> int((now[0, :15] != then[0, :15]).sum())
    1
    """

    name: ClassVar[str] = "slowly_changing_regression"
    title: ClassVar[str] = "Slowly-changing regression"
    loss: ClassVar[str] = "mse"
    score: ClassVar[str] = "mse"
    num_classes: ClassVar[int] = 1

    num_bits: int = 20
    num_slow: int = 15
    change: str = "one"
    task_length: int = 10000
    num_target_units: int = 100
    beta: float = 0.7
    batch_size: int = 1
    threshold: str = "text"

    def __post_init__(self) -> None:
        for option in ("num_bits", "num_slow", "task_length", "num_target_units", "batch_size"):
            require(getattr(self, option) >= 1, self, f"{option} must be at least 1")
        require(self.num_slow <= self.num_bits, self, f"num_slow must be in 1..num_bits ({self.num_bits})")
        require(self.change in ("one", "all"), self, f"change {self.change!r} is neither one nor all")
        require(self.threshold in ("text", "code"), self, f"threshold {self.threshold!r} is neither text nor code")
        require(0 < self.beta < 1, self, f"beta must be in (0, 1), got {self.beta}")

    @property
    def num_inputs(self) -> int:
        """Bits of an example."""
        return self.num_bits

    @property
    def task_bytes(self) -> int:
        """Memory of a task."""
        return tensor_bytes(self.task_length, (self.num_bits,), target_bytes=4)

    def slow_bits(self, index: int, seed: int) -> np.ndarray:
        """Return the slow bits of a task, int64 ``[num_slow]``."""
        if self.change == "all":
            return generator(f"{self.name} all", seed, index).integers(0, 2, self.num_slow)
        bits = generator(f"{self.name} start", seed).integers(0, 2, self.num_slow)
        for first in range(0, index, _BLOCK):
            flips = generator(f"{self.name} flips", seed, first // _BLOCK).integers(0, self.num_slow, _BLOCK)
            bits = bits + np.bincount(flips[: index - first], minlength=self.num_slow)
        return bits % 2

    def answers(self, inputs: np.ndarray, seed: int) -> np.ndarray:
        """Return the target network's outputs, float32 ``[N, 1]``, for bits ``[N, num_bits]``."""
        rng = generator(f"{self.name} target", seed)
        weight_UI, bias_U, out_U, out = (
            2.0 * rng.integers(0, 2, shape) - 1.0
            for shape in ((self.num_target_units, self.num_bits), self.num_target_units, self.num_target_units, ())
        )
        if self.threshold == "text":
            misses = (weight_UI < 0).sum(1) + (bias_U < 0)
        else:
            misses = (self.num_bits - weight_UI.sum(1) + bias_U) / 2
        fires = inputs @ weight_UI.T + bias_U > self.beta * (self.num_bits + 1) - misses
        answers: np.ndarray = (fires @ out_U + out).astype(np.float32)[:, None]
        return answers

    def task(self, index: int, seed: int) -> Task:
        """Return task ``index``; see :class:`Stream`."""
        require(index >= 0, self, f"there is no task {index}")
        inputs = np.empty((self.task_length, self.num_bits), dtype=np.float32)
        inputs[:, : self.num_slow] = self.slow_bits(index, seed)
        fast = generator(self.name, seed, index).integers(0, 2, (self.task_length, self.num_bits - self.num_slow))
        inputs[:, self.num_slow :] = fast
        targets = torch.from_numpy(self.answers(inputs, seed))
        return Task(torch.from_numpy(inputs), targets, 1, self.batch_size, (seed, index))
