"""The same things seen by day and by night, in fog, rain and snow: drift of inputs while labels keep their meaning."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np
from torch import Tensor

from pliant.bench.streams.base import Task, generator, require, tensor_bytes
from pliant.bench.streams.corruptions import WEATHER, darken
from pliant.bench.streams.images import ImageStream, indices

__all__ = ["DayAndWeather"]


@final
@dataclass(frozen=True)
class DayAndWeather(ImageStream):
    """Light runs through days of ``day_length`` tasks; each day has its weather, which comes and goes with the day.

    In task ``d * day_length + h`` the light is ``(1 + cos(2 pi h / day_length)) / 2``: 1 at noon, with which a day
    begins, 0 at midnight. The weather of a day is drawn from its kinds; how bad it is follows ``sin(pi (h + 1/2) /
    day_length)``. Test images are seen in the same light and weather.

    Attributes:
        day_length: tasks from noon to noon.
        weather: kinds of weather, one of which is drawn for each day: ``clear``, ``fog``, ``rain``, ``snow``, ``blur``.
        severity: how bad the weather gets, in 0..1.
        num_examples: images per task, drawn without replacement.
        num_epochs: passes over a task.
        batch_size: examples per update.
        num_test: test images; 0: none.

    Source: the kinds of weather are those of Hendrycks & Dietterich (2019), arXiv:1903.12261, generated and put in an
        order; covariate shift from day to night is a standard problem of autonomous driving. There is no published
        setting.
    """

    name: ClassVar[str] = "day_and_weather"
    title: ClassVar[str] = "Day, night and weather"

    day_length: int = 8
    weather: tuple[str, ...] = ("clear", "fog", "rain", "snow", "blur")
    severity: float = 1.0
    num_examples: int = 500
    num_epochs: int = 3
    batch_size: int = 16
    num_test: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_counts(self.num_examples, self.num_epochs, self.batch_size, self.num_test)
        require(self.day_length >= 1, self, "day_length must be at least 1")
        require(0 <= self.severity <= 1, self, f"severity must be in [0, 1], got {self.severity}")
        known = bool(self.weather) and set(self.weather) <= set(WEATHER)
        require(known, self, f"weather must be of {', '.join(WEATHER)}; got {', '.join(self.weather) or 'none'}")

    @property
    def measures_past(self) -> bool:
        """What was seen by day is still there at night."""
        return self.num_test > 0

    @property
    def task_bytes(self) -> int:
        """Memory of a task."""
        return tensor_bytes(self.num_examples + self.num_test, self.input_shape)

    def conditions(self, index: int, seed: int) -> tuple[float, str, float]:
        """Return the light in 0..1, the kind of weather, and how bad it is in 0..1."""
        day, hour = divmod(index, self.day_length)
        kind = self.weather[int(generator(f"{self.name} weather", seed, day).integers(len(self.weather)))]
        light = (1 + math.cos(2 * math.pi * hour / self.day_length)) / 2
        return light, kind, self.severity * math.sin(math.pi * (hour + 0.5) / self.day_length)

    def task(self, index: int, seed: int) -> Task:
        """Return task ``index``; see :class:`Stream`."""
        require(index >= 0, self, f"there is no task {index}")
        light, kind, badness = self.conditions(index, seed)
        rng = generator(self.name, seed, index)
        found = self.images()
        chosen = indices(rng.permutation(len(found.train_labels))[: self.num_examples])
        test, test_targets = self.test_images(self.num_test)

        def seen(images: Tensor, rng: np.random.Generator) -> Tensor:
            values = images.float() / self._about.largest
            values = darken(WEATHER[kind](values, badness, rng), light, rng)
            return self.inputs((values * self._about.largest).round().byte())

        return Task(
            inputs=seen(found.train_images[chosen], rng),
            targets=found.train_labels[chosen],
            num_epochs=self.num_epochs,
            batch_size=self.batch_size,
            order_key=(seed, index),
            test_inputs=None if test is None else seen(test, generator(f"{self.name} test", seed, index)),
            test_targets=test_targets,
            name=f"light {light:.2f}, {kind} {badness:.2f}",
        )
