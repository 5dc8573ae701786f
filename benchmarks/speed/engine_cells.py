"""The networks that the engine's speed is measured on."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["CELLS", "Cell"]


@dataclass(frozen=True)
class Cell:
    """One network on one kind of stream, with continual backprop.

    Attributes:
        name: as on the command line and in the results.
        widths: of the network, from inputs to outputs.
        stream: class in ``engine_streams``.
        loss: the stream's.
        batch: examples per update.
        seeds: how many the engine stacks.
        lr: step size of SGD.
        rate: replacement rate.
        at_least: seed-steps per second over the published learner's that are aimed at.
    """

    name: str
    widths: tuple[int, ...]
    stream: str
    loss: str
    batch: int
    seeds: int
    lr: float
    rate: float
    at_least: float


CELLS = [
    Cell("mlp-3x100", (784, 100, 100, 100, 10), "Pictures", "cross_entropy", 1, 30, 0.003, 1e-4, 30),
    Cell("regression", (20, 5, 1), "Bits", "mse", 1, 100, 0.01, 1e-4, 250),
    Cell("mlp-3x2000", (784, 2000, 2000, 2000, 10), "Pictures", "cross_entropy", 1, 1, 0.003, 1e-6, 8),
    Cell("random-labels", (64, 100, 100, 100, 10), "Digits", "cross_entropy", 8, 10, 0.03, 1e-4, 8),
]
