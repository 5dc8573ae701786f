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

    The newest half of ``limit`` is kept as it is. What is older is thinned: of every ``stride`` readings one is kept,
    the one that holds most metrics (some are measured rarely), and when these fill the other half, every second one
    is dropped and the stride doubles. So the whole run stays covered evenly, and its first reading is always there.

    Args:
        limit: The largest number of readings.

    Attributes:
        stride: Of how many old readings one is kept.

    Example:
        >>> history = History(8)
        >>> for step in range(1, 31):
        ...     history.append(Reading(step, {}, {}))
        >>> [reading.step for reading in history], history.stride
        ([1, 9, 17, 25, 27, 28, 29, 30], 8)
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.stride = limit, 1
        self._newest: list[Reading] = []
        self._old: list[Reading] = []
        self._seen = 0  # old readings of the current stride, of which the last entry of ``_old`` is the one kept

    def append(self, reading: Reading) -> None:
        """Add the newest reading."""
        self._newest.append(reading)
        if len(self._newest) > max(1, self.limit // 2):
            self._age(self._newest.pop(0))

    def _age(self, reading: Reading) -> None:
        room = self.limit - max(1, self.limit // 2)
        if not room:
            return
        if self._seen % self.stride:
            if len(self._old) > 1 and len(reading.values) > len(self._old[-1].values):
                self._old[-1] = reading
        else:
            if len(self._old) == room:
                self._old = self._old[::2]
                self.stride *= 2
                if self._seen % self.stride:  # it falls between two of those that are left
                    self._seen += 1
                    return
            self._old.append(reading)
        self._seen += 1

    def series(self, metric: str, where: str = "model") -> tuple[list[int], list[float]]:
        """Steps and values of one metric in one place."""
        found = [(item.step, item.values[metric][where]) for item in self if where in item.values.get(metric, ())]
        return [step for step, _ in found], [value for _, value in found]

    @overload
    def __getitem__(self, index: int) -> Reading: ...
    @overload
    def __getitem__(self, index: slice) -> list[Reading]: ...
    def __getitem__(self, index: int | slice) -> Reading | list[Reading]:
        return [*self._old, *self._newest][index] if isinstance(index, slice) else self._at(index)

    def _at(self, index: int) -> Reading:
        if index < 0:
            return self._newest[index] if -index <= len(self._newest) else self._old[index + len(self._newest)]
        return self._old[index] if index < len(self._old) else self._newest[index - len(self._old)]

    def __len__(self) -> int:
        return len(self._old) + len(self._newest)

    def __iter__(self) -> Iterator[Reading]:
        yield from self._old
        yield from self._newest

    def __repr__(self) -> str:
        return f"History({len(self)} readings)"

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers and strings."""
        return {
            "limit": self.limit,
            "stride": self.stride,
            "seen": self._seen,
            "old": [_as_dict(item) for item in self._old],
            "newest": [_as_dict(item) for item in self._newest],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state_dict`, thinned anew where this history has another limit."""
        old, newest = ([Reading(**item) for item in state[part]] for part in ("old", "newest"))
        if state["limit"] == self.limit:
            self._old, self._newest, self.stride, self._seen = old, newest, state["stride"], state["seen"]
            return
        self._old, self._newest, self.stride, self._seen = [], [], 1, 0
        for item in (*old, *newest):
            self.append(item)


def _as_dict(reading: Reading) -> dict[str, Any]:
    return {
        "step": reading.step,
        "values": {metric: dict(places) for metric, places in reading.values.items()},
        "num_samples": dict(reading.num_samples),
    }
