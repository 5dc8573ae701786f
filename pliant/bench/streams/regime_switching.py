"""A multivariate series to be forecast, whose dynamics switch between regimes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np
import torch
from torch import Tensor

from pliant.bench.streams.base import Task, generator, require, tensor_bytes

__all__ = ["RegimeSwitching"]

_BLOCK = 1024
_WARM_UP = 64
"""Steps that are simulated and forgotten before a stretch begins."""
_REFERENCE = 512
"""Steps of a regime from which its mean and deviation are taken."""


@final
@dataclass(frozen=True)
class RegimeSwitching:
    """Each task is a stretch of a series under one regime; after it the regime stays, or another takes over.

    A regime draws matrices A and B, a level and a seasonal pattern: ``x(t+1) = A tanh(B x(t)) + s(t) + noise e(t)``, e
    standard normal, s with period ``season``; A has spectral norm 0.9, entries of B are normal with variance
    ``2.25 / num_channels``. Series are standardised by mean and deviation of the regime, which a network then cannot be
    told by. An input is a window of the series, its target the values ``horizon`` steps after it. The test stretch
    follows the training stretch, without overlap. Windows are shown in random order within a task.

    Attributes:
        num_channels: variables of the series.
        window: steps that are seen.
        horizon: how many steps ahead is forecast.
        num_regimes: regimes that come back; 0: every switch brings a new one.
        stay: probability that the regime of a task is that of the one before.
        noise: deviation of the noise.
        season: period of the seasonal pattern, in steps.
        num_examples: windows per task.
        num_epochs: passes over a task.
        batch_size: examples per update.
        num_test: test windows; 0: none.
        flat: windows are vectors, for networks of linear layers; otherwise ``[window, num_channels]``.

    Source: Hamilton (1989), A new approach to the economic analysis of nonstationary time series and the business
        cycle, DOI 10.2307/1912559, for regimes that follow a Markov chain; here with non-linear vector autoregressions,
        generated. There is no published setting.
    """

    name: ClassVar[str] = "regime_switching"
    title: ClassVar[str] = "Regime-switching series"
    loss: ClassVar[str] = "mse"
    score: ClassVar[str] = "mse"

    num_channels: int = 6
    window: int = 8
    horizon: int = 1
    num_regimes: int = 6
    stay: float = 0.25
    noise: float = 0.3
    season: int = 24
    num_examples: int = 512
    num_epochs: int = 4
    batch_size: int = 16
    num_test: int = 0
    flat: bool = False

    def __post_init__(self) -> None:
        for option in ("num_channels", "window", "horizon", "season", "num_examples", "num_epochs", "batch_size"):
            require(getattr(self, option) >= 1, self, f"{option} must be at least 1")
        require(
            self.num_regimes >= 0 and self.num_regimes != 1, self, "num_regimes must be 0 (always new) or at least 2"
        )
        require(0 <= self.stay < 1, self, f"stay must be in [0, 1), got {self.stay}")
        require(self.noise >= 0, self, f"noise must not be negative, got {self.noise}")
        require(self.num_test >= 0, self, "num_test must not be negative")

    @property
    def num_inputs(self) -> int:
        """Numbers in a window."""
        return self.window * self.num_channels

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Steps and variables, or their product."""
        return (self.num_inputs,) if self.flat else (self.window, self.num_channels)

    @property
    def num_classes(self) -> int:
        """Outputs of a model: a value for each variable."""
        return self.num_channels

    @property
    def measures_past(self) -> bool:
        """Earlier regimes can still be known."""
        return self.num_test > 0

    @property
    def task_bytes(self) -> int:
        """Memory of a task."""
        return tensor_bytes(self.num_examples + self.num_test, self.input_shape, target_bytes=4 * self.num_channels)

    def regime(self, index: int, seed: int) -> int:
        """Return the regime of a task."""
        moves = 0
        for first in range(0, index, _BLOCK):
            rng = generator(f"{self.name} chain", seed, first // _BLOCK)
            leaves = rng.random(_BLOCK) >= self.stay
            # Steps of 1 to K - 1 round a circle: any other regime, each alike.
            steps = rng.integers(1, self.num_regimes, _BLOCK) if self.num_regimes else np.ones(_BLOCK, dtype=np.int64)
            moves += int((leaves * steps)[: index - first].sum())
        return moves % self.num_regimes if self.num_regimes else moves

    def _simulate(self, regime: int, seed: int, start: int, num_steps: int, rng: np.random.Generator) -> np.ndarray:
        """The regime's series from time ``start`` on, ``[num_steps, num_channels]``, not standardised."""
        drawn = generator(f"{self.name} regime", seed, regime)
        size = self.num_channels
        a = drawn.standard_normal((size, size))
        a *= 0.9 / np.linalg.norm(a, 2)
        b = drawn.standard_normal((size, size)) * (1.5 / size**0.5)
        level, swing, phase = drawn.standard_normal(size), drawn.standard_normal(size), drawn.random(size)
        time = np.arange(start - _WARM_UP, start + num_steps)[:, None]
        push = 0.5 * level + 0.5 * swing * np.sin(2 * np.pi * (time / self.season + phase))
        push = push + self.noise * rng.standard_normal((len(time), size))
        series = np.empty((len(time), size))
        state = np.zeros(size)
        for t in range(len(time)):
            state = a @ np.tanh(b @ state) + push[t]
            series[t] = state
        return series[_WARM_UP:]

    def task(self, index: int, seed: int) -> Task:
        """Return task ``index``; see :class:`Stream`."""
        require(index >= 0, self, f"there is no task {index}")
        regime = self.regime(index, seed)
        reference = self._simulate(regime, seed, 0, _REFERENCE, generator(f"{self.name} reference", seed, regime))
        more = self.window + self.horizon - 1
        lengths = [num + more for num in (self.num_examples, self.num_test) if num]
        start = index * (self.num_examples + self.num_test)
        series = self._simulate(regime, seed, start, sum(lengths), generator(self.name, seed, index))
        series = ((series - reference.mean(0)) / np.maximum(reference.std(0), 1e-6)).astype(np.float32)
        inputs, targets = self._windows(series[: lengths[0]])
        held_out = self._windows(series[lengths[0] :]) if self.num_test else (None, None)
        return Task(
            inputs,
            targets,
            self.num_epochs,
            self.batch_size,
            (seed, index),
            test_inputs=held_out[0],
            test_targets=held_out[1],
            name=f"regime {regime}",
        )

    def _windows(self, series: np.ndarray) -> tuple[Tensor, Tensor]:
        num = len(series) - self.window - self.horizon + 1
        windows = np.lib.stride_tricks.sliding_window_view(series, self.window, axis=0)[:num].transpose(0, 2, 1)
        later = series[self.window + self.horizon - 1 :]
        inputs = torch.from_numpy(windows.copy())
        return inputs.flatten(1) if self.flat else inputs, torch.from_numpy(later.copy())
