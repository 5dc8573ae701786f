"""Streams and models for tests that are reached by ``stream_zoo:Class``, as a user's own would be."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from pliant.bench.streams.base import Task, generator


@dataclass(frozen=True)
class Tiny:
    """Small random tasks; options make one seed explode, die or raise in one task, or every task slow.

    With ``die_once``, the path of a file, it dies only while that is not there, and leaves it.
    """

    name: ClassVar[str] = "tiny"
    num_inputs: ClassVar[int] = 6
    num_classes: ClassVar[int] = 3
    not_identity: ClassVar[frozenset[str]] = frozenset({"seconds", "die_once"})

    num_examples: int = 22
    explode: tuple[int, int] = (-1, -1)
    die: tuple[int, int] = (-1, -1)
    fail: tuple[int, int] = (-1, -1)
    seconds: float = 0.0
    die_once: str = ""

    def task(self, index: int, seed: int) -> Task:
        if self.seconds:
            time.sleep(self.seconds)
        if (seed, index) == self.die and not (self.die_once and os.path.exists(self.die_once)):
            if self.die_once:
                open(self.die_once, "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
        if (seed, index) == self.fail:
            raise RuntimeError("no such luck")
        rng = generator("tiny", seed, index)
        inputs = torch.from_numpy(rng.random((self.num_examples, 6), dtype="float32"))
        if (seed, index) == self.explode:
            inputs *= 1e30
        targets = torch.from_numpy(rng.integers(0, 3, self.num_examples))
        return Task(inputs, targets, 2, 8, (seed, index), inputs[:5], targets[:5])


class Normed(nn.Module):
    """A model that cannot be stacked: it has batch normalisation, dropout, and mixes members when flattened."""

    def __init__(self, num_inputs: int, num_outputs: int, width: int = 8) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(num_inputs, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(0.2))
        self.head = nn.Linear(width, num_outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x))
