"""A limit on what one edit may change: what tensors were before it, so that it can be taken back bit by bit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from pliant.write import Writer

__all__ = ["Before", "Limit"]

_MAX_TRIES = 16


class Before:
    """Tensors, their gradients and their optimizers' state, and the generators, as they are now.

    Args:
        names: The tensors that will be written.
        tensors: Name to tensor.
        owners: Parameter name to its optimizer.
        writer: What writes.
        averages: Tensors by name of copies that average over training, which an edit writes as well.
    """

    def __init__(
        self,
        names: Sequence[str],
        tensors: Mapping[str, Tensor],
        owners: Mapping[str, Optimizer],
        writer: Writer,
        averages: Sequence[Mapping[str, Tensor]] = (),
    ) -> None:
        self._writer = writer
        self._random = writer.random_state()
        self._values: list[tuple[Tensor, Tensor]] = []
        self._states: list[tuple[dict[str, Any], dict[str, Any]]] = []
        with torch.no_grad():
            for name in dict.fromkeys(names):
                tensor = tensors[name]
                self._values.append((tensor, _copy(tensor)))
                self._values += [(average[name], _copy(average[name])) for average in averages if name in average]
                if tensor.grad is not None:
                    self._values.append((tensor.grad, _copy(tensor.grad)))
                state: dict[str, Any] = owners[name].state.get(tensor, {}) if name in owners else {}
                self._states.append((state, dict(state)))
                self._values += [(value, _copy(value)) for value in state.values() if isinstance(value, Tensor)]

    def restore(self) -> None:
        """Put everything back: the same tensors, with the bits that they had."""
        with torch.no_grad():
            for state, before in self._states:
                state.clear()
                state.update(before)
            for tensor, value in self._values:
                if tensor.is_sparse:
                    tensor._values().copy_(value)
                else:
                    self._writer.assign(tensor, value, None)
        self._writer.load_random_state(self._random)


def _copy(tensor: Tensor) -> Tensor:
    if tensor.is_sparse:
        return tensor._values().clone()
    return tensor.detach().clone()


@dataclass(frozen=True)
class Limit:
    """How much of its outputs a model may change by one edit.

    Attributes:
        max_change: The largest relative change of any output.
    """

    max_change: float

    def allows(self, change: Tensor) -> bool:
        """Whether a change is within the limit; one that is not finite is not. It waits for an accelerator."""
        return bool(change <= self.max_change)

    def fitting(
        self,
        chosen: Tensor,
        make: Callable[[Tensor], None],
        measure: Callable[[], Tensor],
        before: Callable[[], Before],
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Make an edit of units, or of as many of them as are within the limit together.

        What is too much is taken back and tried again in two halves, and so on; after 16 tries the rest is left alone.

        Args:
            chosen: Places of the units in the list of those that are to be edited, ``[n]``.
            make: Makes the edit for some of them.
            measure: The change of the outputs since the beginning.
            before: Remembers everything that an edit can write.

        Returns:
            The places that were edited; the change of the outputs with them; and the smallest change that was too
            much, if any was.
        """
        waiting, done, refused = [chosen], chosen[:0], None
        change: Tensor | None = None
        for _ in range(_MAX_TRIES):
            if not waiting:
                break
            part = waiting.pop(0)
            kept = before()
            make(part)
            found = measure()
            if self.allows(found):
                done, change = torch.cat([done, part]), found
                continue
            kept.restore()
            refused = found if refused is None else torch.minimum(refused, found)
            if len(part) > 1:
                waiting[:0] = list(part.tensor_split(2))
        return done, change, refused
