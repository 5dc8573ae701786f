"""What a method says of its own hyper-parameters to those who search for good ones: which, and from where to where.

A method, an optimizer or a model declares them once, in its class; ``pliant tune`` reads them there::

    search: ClassVar[Mapping[str, Domain]] = {"tau": Range(1e-3, 0.5, log=True), "utility": Choice(("l1", "l2"))}
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, TypeAlias, final

from pliant.errors import IllegalConfiguration

__all__ = ["Choice", "Domain", "Range"]


@final
@dataclass(frozen=True)
class Range:
    """Numbers from ``low`` to ``high``.

    Args:
        low: The smallest.
        high: The largest.
        log: Searched on a logarithmic scale; ``low`` must be positive then.
        integer: Whole numbers only.
        unit: ``"task"``: the bounds are in tasks; a value is that times the steps of a task, rounded, at least 1.
            Periods are searched so, since a task may have a hundred steps or a hundred thousand.

    Raises:
        IllegalConfiguration: bounds that are not finite, not in order, or not positive on a logarithmic scale.

    >>> Range(1e-6, 1e-2, log=True)
    Range(low=1e-06, high=0.01, log=True, integer=False, unit='')
    """

    low: float
    high: float
    log: bool = False
    integer: bool = False
    unit: str = ""

    def __post_init__(self) -> None:
        """Refuse bounds that cannot be."""
        finite = math.isfinite(self.low) and math.isfinite(self.high)
        if not finite or not self.low < self.high or (self.log and not self.low > 0) or self.unit not in ("", "task"):
            raise IllegalConfiguration(
                f"{self}: the bounds must be finite and rise, be positive where log is true, and unit '' or 'task'"
            )
        if self.integer and (self.low != int(self.low) or self.high != int(self.high)):
            raise IllegalConfiguration(f"{self}: the bounds of whole numbers must be whole numbers")


@final
@dataclass(frozen=True)
class Choice:
    """One of several values.

    Args:
        values: At least two different ones: numbers, texts, truth values or None.

    Raises:
        IllegalConfiguration: fewer.

    >>> Choice(("layer", "batch")).values
    ('layer', 'batch')
    """

    values: tuple[Any, ...]

    def __post_init__(self) -> None:
        """Refuse what leaves nothing to choose."""
        if len(self.values) < 2 or len({repr(value) for value in self.values}) < len(self.values):
            raise IllegalConfiguration(f"{self}: give at least two values, each once")


Domain: TypeAlias = Range | Choice
