"""Readings, and a history of them that stays bounded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

__all__ = ["History", "Reading"]


@dataclass(frozen=True)
class Reading:
    """What the monitor measured at one step.

    Attributes:
        step: Optimizer steps done.
        values: Metric to unit group (or weight matrix, or ``"model"``) to value; NaN where the data is not finite.
            Metrics that were not due are not in it.
        num_samples: Unit group to the number of samples behind its values.
    """

    step: int
    values: Mapping[str, Mapping[str, float]]
    num_samples: Mapping[str, int]


class History(Sequence[Reading]):
    """Readings, oldest first, in bounded memory.

    When there are more than ``limit``, every second reading of the older half is dropped. So the whole run stays
    covered: the first and the latest readings are always there, and the older a part is, the fewer of it are left. A
    reading that holds a metric which is measured rarely is kept in preference to its neighbour.

    Args:
        limit: The largest number of readings.

    Example:
        >>> history = History(4)
        >>> for step in range(1, 8):
        ...     history.append(Reading(step, {}, {}))
        >>> [reading.step for reading in history]
        [1, 5, 6, 7]
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._readings: list[Reading] = []

    def append(self, reading: Reading) -> None:
        """Add the newest reading."""
        self._readings.append(reading)
        if len(self._readings) > self.limit:
            older = max(2, len(self._readings) // 2 + 1)
            self._readings = [*_every_second(self._readings[:older]), *self._readings[older:]][-self.limit :]

    def series(self, metric: str, where: str = "model") -> tuple[list[int], list[float]]:
        """Steps and values of one metric in one place."""
        found = [(item.step, item.values[metric][where]) for item in self if where in item.values.get(metric, ())]
        return [step for step, _ in found], [value for _, value in found]

    @overload
    def __getitem__(self, index: int) -> Reading: ...
    @overload
    def __getitem__(self, index: slice) -> list[Reading]: ...
    def __getitem__(self, index: int | slice) -> Reading | list[Reading]:
        return self._readings[index]

    def __len__(self) -> int:
        return len(self._readings)

    def __iter__(self) -> Iterator[Reading]:
        return iter(self._readings)

    def __repr__(self) -> str:
        return f"History({len(self)} readings)"

    def state_dict(self) -> list[dict[str, Any]]:
        """Plain numbers and strings."""
        return [
            {
                "step": item.step,
                "values": {metric: dict(places) for metric, places in item.values.items()},
                "num_samples": dict(item.num_samples),
            }
            for item in self
        ]

    def load_state_dict(self, state: Sequence[Mapping[str, Any]]) -> None:
        """Go on from :meth:`state_dict`, thinned where this history is a shorter one."""
        self._readings = []
        for item in state:
            self.append(Reading(item["step"], item["values"], item["num_samples"]))


def _every_second(readings: list[Reading]) -> list[Reading]:
    """The first reading, and of each following pair the one that holds more metrics, or else the later one."""
    kept = readings[:1]
    for index in range(1, len(readings), 2):
        kept.append(max(reversed(readings[index : index + 2]), key=lambda item: len(item.values)))
    return kept
