"""When the interventions act on an optimizer: its clock, what is due at a step, and when to listen."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pliant.interventions.base import Clock, Context, Intervention, Sample

__all__ = ["MAX_SAMPLES", "Schedule"]

MAX_SAMPLES = 64
"""Samples after which the interventions observe, if nobody acts before."""


class Schedule:
    """One optimizer's clock and the next steps at which something has to be done.

    Each intervention says at which step it acts next, and which steps it wants statistics of. In between, the hook on
    the optimizer only counts, and the statistics listen for the one step before a sample is due; samples wait until
    somebody acts, or there are :data:`MAX_SAMPLES` of them. That is what keeps a protected step cheap.

    Attributes:
        clock: Real steps of the optimizer.
        wake: The next step at which one of the following is due.
        act_at: The next step at which an intervention acts.
        sample_at: The next step whose statistics are wanted.
        listens: Whether the coming step is that one.
        samples: The steps that were sampled and not yet observed: number, clock, and ``live`` of each.
        in_graph: Whether steps of this optimizer were captured into a graph, which runs no hooks.
    """

    def __init__(self, methods: Sequence[Intervention]) -> None:
        self.clock = Clock()
        self.wake = self.act_at = self.sample_at = 0
        self.listens = self.in_graph = False
        self.samples: list[tuple[int, int | Tensor, Tensor | None]] = []
        self._methods = tuple(methods)
        # what reads statistics in its penalty only is asked as well: it decides which steps are sampled
        self._acts = [type(item).after_step is not Intervention.after_step or bool(item.needs) for item in methods]
        self.observers = [m for m, item in enumerate(methods) if type(item).observe is not Intervention.observe]
        self._observing = [methods[m] for m in self.observers]
        self._next = [0] * len(self._methods)
        self._sampled_act = sys.maxsize
        self._acted: list[int | Tensor] = [0] * len(self._methods)
        self._observed: list[int | Tensor] = [0] * len(self._methods)

    def plan(self, contexts: Sequence[Context]) -> None:
        """After a step at which somebody acted: when each intervention acts next."""
        found = [
            method.next_step(ctx) if acts else sys.maxsize
            for method, ctx, acts in zip(self._methods, contexts, self._acts, strict=True)
        ]
        self._next, self.act_at = found, min(found, default=sys.maxsize)
        at_once = [
            method.samples(self.act_at) for method, at in zip(self._methods, found, strict=True) if at == self.act_at
        ]
        self._sampled_act = self.act_at if any(at_once) else sys.maxsize
        self.plan_sample()

    def plan_sample(self) -> None:
        """Which step is sampled next."""
        step, sample = self.clock.step, self._sampled_act
        for method in self._observing:
            sample = min(sample, method.next_sample(step))
        self.sample_at, self.listens = sample, sample == step + 1
        self.wake = min(self.act_at, sample if self.listens else sample - 1)

    def due(self) -> list[int]:
        """The interventions that act at this step."""
        step = self.clock.step
        return [m for m, at in enumerate(self._next) if at <= step]

    def samples_of(self, m: int) -> list[Sample]:
        """What an intervention has not yet observed."""
        method, before = self._methods[m], self._observed[m]
        found = []
        for step, now, live in self.samples:
            if method.samples(step):
                found.append(Sample(step, now - before, live))
                before = now
        self._observed[m] = before
        return found

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
            "observed": [torch.as_tensor(step) for step in self._observed],
        }

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Continue from :meth:`state_dict`; call :meth:`plan` afterwards."""
        self.clock.step, self.clock.real = state["step"], None
        self._acted = [int(step) for step in state["acted"]]
        self._observed = [int(step) for step in state["observed"]]
        self.samples = []
        if state["counts_on_device"]:
            self.clock.real = state["real"].clone().to(device)
            self._acted = [step.clone().to(device) for step in state["acted"]]
            self._observed = [step.clone().to(device) for step in state["observed"]]
