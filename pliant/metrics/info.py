"""What is known of a metric."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = ["MetricInfo"]


@dataclass(frozen=True)
class MetricInfo:
    """What is known of one metric.

    The three dependences begin with "No" or "Yes" and speak of the default arguments: how the value depends on the
    number of samples, on a constant added to everything that the metric reads, and on a positive factor on it. What
    needs a model is read with cross-entropy, and the constant and the factor are those of its outputs.

    Attributes:
        name: The function's name.
        needs: What it reads. ``"model"``: a model and a batch of the task to come, and several passes through it.
        per: Whether there is one value for each layer or one for the network.
        better: Which direction is the healthy one, if either is.
        depends_on_batch: On the number of samples.
        depends_on_offset: On an offset.
        depends_on_scale: On the scale.
        compatible_with: Published numbers that it reproduces, and with which arguments.
        differs_from: Numbers of the same name that it does not reproduce, and what they are.
        module: Where the function is.

    Example:
        >>> from pliant.metrics import CATALOGUE
        >>> info = CATALOGUE["dead_fraction"]
        >>> info.needs, info.per, info.better
        ('activations', 'layer', 'low')
    """

    name: str
    needs: Literal["activations", "derivatives", "gradients", "weights", "outputs", "model"]
    per: Literal["layer", "network"]
    better: Literal["high", "low"] | None
    depends_on_batch: str
    depends_on_offset: str
    depends_on_scale: str
    compatible_with: Mapping[str, str] = field(default_factory=dict)
    differs_from: Mapping[str, str] = field(default_factory=dict)
    module: str = "pliant.metrics"

    @property
    def function(self) -> Callable[..., Any]:
        """The function; the names of its first parameters say what it takes."""
        found: Callable[..., Any] = getattr(importlib.import_module(self.module), self.name)
        return found
