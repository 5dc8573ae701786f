"""What a freshly initialised twin shows on a batch: the reference for alarms that needs no past."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pliant import metrics
from pliant.fresh import fresh_twin
from pliant.monitor.samples import Padding, Rows, taken, thinned
from pliant.monitor.watched import WATCHED
from pliant.stats.listener import Listeners
from pliant.units.export import as_call
from pliant.units.init import InitSpec
from pliant.units.several import Several, joined

__all__ = ["Twin", "no_twin", "twin_of"]


class Twin:
    """The values of metrics in a freshly initialised twin.

    They are computed when they are first asked for, on as many samples as the reading has that they are compared with:
    ranks and fractions of dead units depend on that number.

    Args:
        rows: Unit group to its activations in the twin, ``[N, U]``.
        derivatives: Unit group to the derivatives of its activation function there, ``[N, U]``.
        growth: Weight matrix to its magnitude in the twin over that at the beginning of the monitored run.
        why_not: Why there is nothing, if there is nothing.
    """

    def __init__(
        self,
        rows: Mapping[str, Tensor],
        derivatives: Mapping[str, Tensor],
        growth: Mapping[str, float],
        why_not: str = "",
    ) -> None:
        self.why_not = why_not
        self._rows, self._derivatives = dict(rows), dict(derivatives)
        self._values: dict[tuple[str, str], tuple[float, int]] = {
            ("weight_growth", name): (value, 0) for name, value in growth.items()
        }

    def value(self, metric: str, where: str, num_samples: int) -> float | None:
        """The twin's value of a metric; ``None`` where it is not known, or was read from twice as many samples.

        Args:
            metric: The metric.
            where: The place.
            num_samples: The samples of the reading that it is to be compared with.
        """
        key = metric, where
        if key not in self._values:
            function = WATCHED[metric].function
            kept = self._derivatives if WATCHED[metric].of == "derivatives" else self._rows
            if where not in kept or function is None or not num_samples:
                return None
            rows = thinned(kept[where], num_samples)
            self._values[key] = float(function(rows)), rows.shape[0]
        value, count = self._values[key]
        return value if count <= 2 * num_samples or not count else None

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers, strings and tensors."""
        return {
            "why_not": self.why_not,
            "rows": dict(self._rows),
            "derivatives": dict(self._derivatives),
            "values": [[metric, where, value, n] for (metric, where), (value, n) in self._values.items()],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        self.why_not, self._rows = state["why_not"], dict(state["rows"])
        self._derivatives = dict(state["derivatives"])
        self._values = {(metric, where): (value, n) for metric, where, value, n in state["values"]}


def no_twin(why_not: str) -> Twin:
    """None, and why."""
    return Twin({}, {}, {}, why_not)


def twin_of(
    model: nn.Module,
    inputs: Any,
    make_sinks: Callable[[nn.Module], tuple[Mapping[str, Rows], Mapping[str, Padding]]],
    initial: Mapping[str, float],
    *,
    seed: int,
    init: InitSpec,
    process_group: Any,
) -> Twin:
    """Draw a twin and run it once, in training mode; nothing about the model or the random state changes.

    Args:
        model: The model.
        inputs: A batch as the loop passes it.
        make_sinks: Makes what listens to the twin.
        initial: Weight matrix to its mean absolute value in the model.
        seed: Seed of the twin's weights.
        init: As in :func:`pliant.fresh.fresh_twin`.
        process_group: The processes that share what they see.
    """
    twin = fresh_twin(model, seed=seed, init=init)
    rows, padding = make_sinks(twin)
    listeners = Listeners(twin, rows.values())
    parts = dict(twin.named_children()) if isinstance(twin, Several) else twin
    module, call = joined(parts, inputs)
    args, kwargs = as_call(call)
    module.train()
    devices = {tensor.device for tensor in model.parameters() if tensor.device.type != "cpu"}
    kind = next(iter(devices)).type if devices else "cuda"
    try:
        with torch.random.fork_rng(devices, device_type=kind), torch.enable_grad():
            module(*args, **kwargs)
    finally:
        listeners.remove()
        for item in padding.values():
            item.remove()
    matrices = dict(twin.named_parameters())
    growth = {
        name: float(metrics.weight_magnitude([matrices[name]])) / first for name, first in initial.items() if first
    }
    return Twin(*taken(rows, process_group), growth)
