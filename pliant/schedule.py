"""When the interventions act on an optimizer: its clock, what is due at a step, and when to listen."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pliant.interventions.base import Clock, Context, Intervention

__all__ = ["Schedule"]


class Schedule:
    """One optimizer's clock and the next steps at which something has to be done.

    Each intervention says at which step it acts next. In between, the hook on the optimizer only counts, and the
    statistics listen for the one step before a sample is due; that is what keeps a protected step cheap.

    Attributes:
        clock: Real steps of the optimizer.
        act_at: The next step at which an intervention acts.
        is_sampled: Whether one of those that act then reads statistics of that step.
        listen_at: The step after which the statistics have to listen, if they do not yet.
        listens: Whether the coming step is sampled.
        in_graph: Whether steps of this optimizer were captured into a graph, which runs no hooks.
    """

    def __init__(self, methods: Sequence[Intervention]) -> None:
        self.clock = Clock()
        self.act_at = self.listen_at = 0
        self.is_sampled = self.listens = self.in_graph = False
        self._methods = tuple(methods)
        self._acts = [type(method).after_step is not Intervention.after_step for method in methods]
        self._next = [0] * len(self._methods)
        self._acted: list[int | Tensor] = [0] * len(self._methods)

    def plan(self, contexts: Sequence[Context]) -> None:
        """After a step: when each intervention acts next, and whether the very next one is sampled."""
        found = [
            method.next_step(ctx) if acts else sys.maxsize
            for method, ctx, acts in zip(self._methods, contexts, self._acts, strict=True)
        ]
        self._next, act = found, min(found, default=sys.maxsize)
        self.act_at = act
        self.is_sampled = any(
            method.samples(act) for method, step in zip(self._methods, found, strict=True) if step == act
        )
        self.listens = self.is_sampled and act == self.clock.step + 1
        self.listen_at = act - 1

    def due(self) -> list[int]:
        """The interventions that act at this step."""
        step = self.clock.step
        return [m for m, at in enumerate(self._next) if at <= step]

    def since(self, m: int) -> int | Tensor:
        """Real steps since an intervention last acted; it acts now."""
        now = self.clock.now()
        elapsed = now - self._acted[m]
        self._acted[m] = now
        return elapsed

    def state_dict(self) -> dict[str, Any]:
        """Counts; the plan follows from them.

        The same kinds of values at all times, so that a fresh handle's state is a template of every saved one.
        """
        return {
            "step": self.clock.step,
            "counts_on_device": self.clock.real is not None,
            "real": torch.as_tensor(self.clock.now()),
            "acted": [torch.as_tensor(step) for step in self._acted],
        }

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Continue from :meth:`state_dict`; call :meth:`plan` afterwards."""
        self.clock.step, self.clock.real = state["step"], None
        self._acted = [int(step) for step in state["acted"]]
        if state["counts_on_device"]:
            self.clock.real = state["real"].clone().to(device)
            self._acted = [step.clone().to(device) for step in state["acted"]]
