"""What an environment changes to: sequences of values with random access by the number of the shift and a seed.

A sequence is frozen data. Its value depends on the number of the shift, the seed and a purpose (the name of what
changes) alone, never on what was asked before: so a run can be resumed, and several environments that share a seed
change alike. With one seed, two quantities change independently, because their purposes differ.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, final

import numpy as np

from pliant.bench.streams.base import generator, require

__all__ = ["Choice", "Cycle", "Each", "Listed", "LogUniform", "Permutations", "RandomWalk", "Uniform", "Values"]


@dataclass(frozen=True)
class Values(ABC):
    """Base of the sequences; a subclass is final."""

    @abstractmethod
    def value(self, shift: int, seed: int, purpose: str = "") -> Any:
        """Return the value of one shift: same arguments, same value.

        Args:
            shift: Number of the shift, from 0.
            seed: Names the sequence.
            purpose: What changes; two purposes have independent sequences.
        """

    @property
    def bounds(self) -> tuple[float, float] | None:
        """The lowest and the highest number that can occur; None where values are not numbers."""
        return None

    @property
    def num_values(self) -> int | None:
        """Values until the sequence ends or repeats; None: neither."""
        return None

    @property
    def ends(self) -> bool:
        """Whether nothing comes behind the last value."""
        return False

    @property
    def listed(self) -> tuple[Any, ...]:
        """All values that can occur, if they were given one by one; else none."""
        return ()


def _check_range(values: Values, low: float, high: float) -> None:
    require(math.isfinite(low) and math.isfinite(high), values, f"low={low!r} and high={high!r} must be finite")
    require(low < high, values, f"low={low!r} must be less than high={high!r}; for one value use Listed")


@final
@dataclass(frozen=True)
class Uniform(Values):
    """Independent and uniform between two numbers.

    Attributes:
        low: the lowest value.
        high: the highest.

    >>> sequence = Uniform(5.0, 15.0)
    >>> 5.0 <= sequence.value(3, seed=0) <= 15.0, sequence.value(3, seed=0) == sequence.value(3, seed=0)
    (True, True)
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        """Refuse what is out of range."""
        _check_range(self, self.low, self.high)

    def value(self, shift: int, seed: int, purpose: str = "") -> float:
        """A number in [low, high)."""
        return float(generator(f"shift {purpose}", seed, shift).uniform(self.low, self.high))

    @property
    def bounds(self) -> tuple[float, float]:
        """``low`` and ``high``."""
        return self.low, self.high


@final
@dataclass(frozen=True)
class LogUniform(Values):
    r"""Independent, with a uniform logarithm: :math:`\mathrm{low} \cdot (\mathrm{high}/\mathrm{low})^u`.

    Attributes:
        low: the lowest value, above zero.
        high: the highest.

    Source: the friction of Slippery Ant (Dohare et al., 2024) is log-uniform in [0.02, 2].

    >>> sequence = LogUniform(0.02, 2.0)
    >>> drawn = [sequence.value(shift, seed=0) for shift in range(1000)]
    >>> 0.45 < sum(value < 0.2 for value in drawn) / 1000 < 0.55   # the middle of the logarithms
    True
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        """Refuse what is out of range."""
        _check_range(self, self.low, self.high)
        require(self.low > 0, self, f"low={self.low!r} must be above zero")

    def value(self, shift: int, seed: int, purpose: str = "") -> float:
        """A number in [low, high)."""
        share = generator(f"shift {purpose}", seed, shift).random()
        return float(self.low * (self.high / self.low) ** share)

    @property
    def bounds(self) -> tuple[float, float]:
        """``low`` and ``high``."""
        return self.low, self.high


def _number_bounds(given: Sequence[Any]) -> tuple[float, float] | None:
    if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in given):
        return None
    if not all(math.isfinite(value) for value in given):
        return (-math.inf, math.inf)
    return float(min(given)), float(max(given))


@dataclass(frozen=True)
class _Given(Values):
    """Base of the sequences whose values are given one by one; ``_least`` of them at least."""

    values: tuple[Any, ...]
    _least: ClassVar[int] = 2

    def __post_init__(self) -> None:
        """Refuse what is out of range."""
        given = len(self.values)
        require(given >= self._least, self, f"{given} values are too few: give {self._least} or more")

    @property
    def bounds(self) -> tuple[float, float] | None:
        """Of the values, if they are numbers."""
        return _number_bounds(self.values)

    @property
    def listed(self) -> tuple[Any, ...]:
        """All of them."""
        return self.values


@final
@dataclass(frozen=True)
class Choice(_Given):
    """One of several values, independently, each as likely as any other; never the same twice in a row.

    Attributes:
        values: what is chosen from: at least two.

    >>> sequence = Choice((1.0, 2.0, 3.0))
    >>> drawn = [sequence.value(shift, seed=0) for shift in range(50)]
    >>> all(one != next for one, next in zip(drawn, drawn[1:])), set(drawn) == {1.0, 2.0, 3.0}
    (True, True)
    """

    def value(self, shift: int, seed: int, purpose: str = "") -> Any:
        """One of the values, and another one than that of the shift before."""
        # A walk of steps 1 .. n-1 around a circle of n values: every value but the last is equally likely.
        steps = generator(f"shift {purpose}", seed).integers(1, len(self.values), size=shift + 1)
        steps[0] = generator(f"shift {purpose} first", seed).integers(len(self.values))
        return self.values[int(steps.sum()) % len(self.values)]


@final
@dataclass(frozen=True)
class Cycle(_Given):
    """The same values again and again, in order.

    Attributes:
        values: what is repeated: at least two.

    >>> [Cycle((1.0, 2.0)).value(shift, seed=0) for shift in range(4)]
    [1.0, 2.0, 1.0, 2.0]
    """

    def value(self, shift: int, seed: int, purpose: str = "") -> Any:
        """The value whose turn it is."""
        return self.values[shift % len(self.values)]

    @property
    def num_values(self) -> int:
        """Until the first comes again."""
        return len(self.values)


@final
@dataclass(frozen=True)
class Listed(_Given):
    """Given values, one after the other; behind the last, nothing changes any more.

    Attributes:
        values: in their order: at least one.

    >>> Listed((0.3, 0.05)).value(1, seed=0)
    0.05
    """

    _least: ClassVar[int] = 1

    def value(self, shift: int, seed: int, purpose: str = "") -> Any:
        """The value of that number."""
        return self.values[min(shift, len(self.values) - 1)]

    @property
    def num_values(self) -> int:
        """How many are given."""
        return len(self.values)

    @property
    def ends(self) -> bool:
        """Yes."""
        return True


@final
@dataclass(frozen=True)
class RandomWalk(Values):
    r"""A walk of normal steps between two walls that throw it back.

    :math:`x_k = \mathrm{fold}(\mathrm{start} + \sigma \sum_{i=1}^{k} \epsilon_i)`, where ``fold`` mirrors at ``low``
    and ``high`` as often as it must. With ``log``, it is the logarithm that walks, and ``step_size`` is in its units.

    Attributes:
        low: the lower wall.
        high: the upper wall.
        step_size: standard deviation of one step.
        start: value of shift 0; None: uniformly drawn between the walls (their logarithms).
        log: the logarithm walks.

    >>> walk = RandomWalk(0.0, 1.0, step_size=0.3, start=0.5)
    >>> drawn = [walk.value(shift, seed=0) for shift in range(100)]
    >>> drawn[0], all(0 <= value <= 1 for value in drawn)
    (0.5, True)
    """

    low: float
    high: float
    step_size: float
    start: float | None = None
    log: bool = False

    def __post_init__(self) -> None:
        """Refuse what is out of range."""
        _check_range(self, self.low, self.high)
        require(not self.log or self.low > 0, self, f"low={self.low!r} must be above zero where the logarithm walks")
        require(0 < self.step_size < math.inf, self, f"step_size={self.step_size!r} must be above zero, and finite")
        inside = self.start is None or self.low <= self.start <= self.high
        require(inside, self, f"start={self.start!r} must be between low={self.low!r} and high={self.high!r}")

    def value(self, shift: int, seed: int, purpose: str = "") -> float:
        """Where the walk is after ``shift`` steps; it is walked anew at each call."""
        if shift == 0 and self.start is not None:
            return float(self.start)
        to, back = (math.log, math.exp) if self.log else (float, float)
        low, high = to(self.low), to(self.high)
        begin = generator(f"shift {purpose} first", seed).uniform(low, high) if self.start is None else to(self.start)
        steps = generator(f"shift {purpose}", seed).standard_normal(shift)
        place = (begin - low + self.step_size * math.fsum(steps)) % (2 * (high - low))
        return min(max(back(low + min(place, 2 * (high - low) - place)), self.low), self.high)

    @property
    def bounds(self) -> tuple[float, float]:
        """``low`` and ``high``."""
        return self.low, self.high


@final
@dataclass(frozen=True)
class Each(Values):
    """Several numbers at once, each from a sequence of its own: one for each actuator or body, for example.

    Attributes:
        values: how each number is drawn.
        size: how many there are.

    >>> len(Each(Uniform(0.5, 1.5), 8).value(0, seed=0))
    8
    """

    values: Values
    size: int

    def __post_init__(self) -> None:
        """Refuse what is out of range."""
        require(self.size >= 1, self, f"size={self.size!r} must be 1 or more")
        require(self.values.bounds is not None, self, f"{self.values!r} has no numbers")

    def value(self, shift: int, seed: int, purpose: str = "") -> tuple[float, ...]:
        """``size`` numbers."""
        return tuple(self.values.value(shift, seed, f"{purpose} {entry}") for entry in range(self.size))

    @property
    def bounds(self) -> tuple[float, float] | None:
        """Of every number."""
        return self.values.bounds

    @property
    def num_values(self) -> int | None:
        """As the sequence of each."""
        return self.values.num_values

    @property
    def ends(self) -> bool:
        """As the sequence of each."""
        return self.values.ends


@final
@dataclass(frozen=True)
class Permutations(Values):
    """Independent permutations, each as likely as any other.

    Attributes:
        size: of how many things.

    >>> sorted(Permutations(4).value(7, seed=0))
    [0, 1, 2, 3]
    """

    size: int

    def __post_init__(self) -> None:
        """Refuse what is out of range."""
        require(self.size >= 2, self, f"size={self.size!r} must be 2 or more: there is nothing to permute")

    def value(self, shift: int, seed: int, purpose: str = "") -> tuple[int, ...]:
        """The permuted numbers from 0 to ``size`` - 1."""
        drawn = generator(f"shift {purpose}", seed, shift).permutation(self.size)
        return tuple(int(index) for index in np.asarray(drawn))
