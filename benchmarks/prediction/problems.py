"""The streams of the study, as continual learning problems with a network, an optimizer and budgets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pliant.bench.models.mlp import MLP
from pliant.bench.streams import STREAMS
from pliant.bench.streams.base import generator

__all__ = ["MILDER", "PLAIN", "PROBLEMS", "BitFlips", "Problem"]


@dataclass(frozen=True)
class BitFlips:
    """Slowly-changing regression: some input bits are constant within a task, and one of them flips between tasks.

    The target is a fixed random network of threshold units, drawn once per seed; inputs are bits and a constant 1.

    Attributes:
        num_examples: Examples per task.
        num_bits: Bits of an input, m.
        num_slow: Bits that stay the same within a task, f.
        num_units: Hidden units of the target network.
        beta: Their thresholds are beta times the number of weights, minus the number of negative ones.

    Source: Dohare et al. (2024), Nature 632, the slowly-changing regression problem. Deviations: tasks are much shorter
        and seen in batches, and targets are divided by the square root of the number of target units.
    """

    num_examples: int
    num_bits: int = 20
    num_slow: int = 15
    num_units: int = 100
    beta: float = 0.7

    def task(self, index: int, seed: int) -> tuple[Tensor, Tensor]:
        """Inputs ``[N, m + 1]`` and targets ``[N, 1]`` of task ``index``, whatever was asked for before."""
        fixed = generator("bit_flips target", seed)
        weight_UI = fixed.choice([-1.0, 1.0], (self.num_units, self.num_bits + 1))
        threshold_U = self.beta * (self.num_bits + 1) - (weight_UI < 0).sum(1)
        head_U = fixed.choice([-1.0, 1.0], self.num_units)
        slow = generator("bit_flips start", seed).integers(0, 2, self.num_slow)
        flips = generator("bit_flips flips", seed).integers(0, self.num_slow, 10_000)[:index]
        for flip in flips:
            slow[flip] ^= 1
        draws = generator("bit_flips inputs", seed, index)
        fast = draws.integers(0, 2, (self.num_examples, self.num_bits - self.num_slow))
        inputs_NI = np.concatenate(
            [np.tile(slow, (self.num_examples, 1)), fast, np.ones((self.num_examples, 1))], axis=1
        ).astype(np.float64)
        targets_N = ((inputs_NI @ weight_UI.T > threshold_U) @ head_U) / self.num_units**0.5
        return torch.tensor(inputs_NI, dtype=torch.float32), torch.tensor(targets_N, dtype=torch.float32)[:, None]


@dataclass(frozen=True)
class Problem:
    """One stream of the study.

    Attributes:
        title: Its name on paper.
        task: Inputs and targets of a task, by index and seed.
        loss: From outputs and targets.
        model: A fresh network.
        optimizer: For parameters.
        settings: All numbers of it, for the records: what changes them changes the study.
        num_tasks: Tasks of a run.
        steps: Optimizer steps per task.
        probe_steps: Optimizer steps of the probe.
        batch_size: Examples per step.
        init: How twins are initialised, where that is not the default of the layers.
    """

    title: str
    task: Callable[[int, int], tuple[Tensor, Tensor]]
    loss: Callable[[Tensor, Tensor], Tensor]
    model: Callable[[], nn.Module]
    optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer]
    settings: Mapping[str, Any]
    num_tasks: int
    steps: int
    probe_steps: int
    batch_size: int
    init: str | None = None


def _optimizer(name: str, **options: float) -> Callable[[list[nn.Parameter]], torch.optim.Optimizer]:
    make: Any = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[name]
    return lambda parameters: make(parameters, **options)


def _digits(
    name: str,
    title: str,
    optimizer: tuple[str, dict[str, float]],
    num_tasks: int,
    steps: int,
    probe_steps: int,
    **options: int,
) -> Problem:
    stream = STREAMS[name](**options)

    def task(index: int, seed: int) -> tuple[Tensor, Tensor]:
        found = stream.task(index, seed)
        return found.inputs, found.targets

    hidden = (100, 100, 100)
    return Problem(
        title,
        task,
        F.cross_entropy,
        lambda: MLP(64, 10, hidden),
        _optimizer(optimizer[0], **optimizer[1]),
        {"stream": name, **options, "hidden": list(hidden), "activation": "relu", "optimizer": optimizer[0],
         **optimizer[1]},
        num_tasks,
        steps,
        probe_steps,
        16,
        MLP.init,
    )  # fmt: skip


def _bit_flips(
    optimizer: tuple[str, dict[str, float]], num_tasks: int, steps: int, probe_steps: int, width: int
) -> Problem:
    stream = BitFlips(num_examples=8 * steps)

    def model() -> nn.Module:
        return nn.Sequential(nn.Linear(21, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1))

    return Problem(
        "Bit-flipping regression",
        stream.task,
        F.mse_loss,
        model,
        _optimizer(optimizer[0], **optimizer[1]),
        {"stream": "bit_flips", "num_examples": 8 * steps, "hidden": [width, width], "activation": "relu",
         "optimizer": optimizer[0], **optimizer[1]},
        num_tasks,
        steps,
        probe_steps,
        8,
    )  # fmt: skip


def _random_labels(name: str, **options: float) -> Problem:
    return _digits("random_label_digits", "Random labels", (name, options), 34, 320, 160, num_examples=128)


def _permuted(name: str, **options: float) -> Problem:
    return _digits("permuted_digits", "Permuted inputs", (name, options), 30, 160, 80, num_examples=512)


PLAIN: Mapping[str, Problem] = {
    "random_label_digits": _random_labels("sgd", lr=0.1),
    "permuted_digits": _permuted("adam", lr=0.01),
    "bit_flips": _bit_flips(("adam", {"lr": 0.02}), 30, 300, 150, 20),
}

MILDER: Mapping[str, Problem] = {
    "random_label_digits_milder": _random_labels("sgd", lr=0.1, weight_decay=0.002),
    "permuted_digits_milder": _permuted("sgd", lr=0.1),
    "bit_flips_milder": _bit_flips(("adam", {"lr": 0.005}), 30, 300, 150, 20),
}
"""The same tasks for networks that grow as old and lose less: with weight decay, with SGD in the place of Adam, with a
quarter of the step size."""

PROBLEMS: Mapping[str, Problem] = {**PLAIN, **MILDER}
