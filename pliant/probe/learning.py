"""One network learns the batches of a task, and its curve is kept."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.optim import Optimizer

from pliant.errors import IllegalConfiguration
from pliant.handle import Handle
from pliant.probe.objective import Measured, Objective, accuracy_of

__all__ = ["Network", "Run", "evaluated", "learn", "one_step"]

Network = Literal["aged", "fresh"]


@dataclass(frozen=True)
class Run:
    """The curve of one network on the task of one seed.

    Attributes:
        network: ``"aged"`` or ``"fresh"``.
        seed: Seed of the task and its order.
        twin: Which of the fresh twins of this seed; ``None`` for the aged network.
        steps: Optimizer steps done at each point.
        loss: Mean loss at each point; infinite from where the run diverged.
        accuracy: Share of right predictions at each point; ``None`` where there is no such thing.
    """

    network: Network
    seed: int
    twin: int | None
    steps: tuple[int, ...]
    loss: tuple[float, ...]
    accuracy: tuple[float, ...] | None

    @property
    def diverged(self) -> bool:
        """Whether the loss left the finite numbers during the run."""
        return math.isinf(self.loss[-1])


def one_step(
    net: nn.Module,
    optimizers: Sequence[Optimizer],
    objective: Objective,
    batch: Any,
    handle: Handle | None = None,
) -> Measured:
    """One training step; returns what was measured before it, without its graph."""
    for optimizer in optimizers:
        optimizer.zero_grad(set_to_none=True)
    if handle is None:
        measured = objective(net, batch)
        total = measured.loss
    else:
        measured = objective(net, handle.batch(batch))
        total = measured.loss + handle.penalty(loss=measured.loss)
    if total.ndim or not total.requires_grad:
        raise IllegalConfiguration(
            f"the loss of a batch has shape {tuple(total.shape)} and "
            + ("a graph" if total.requires_grad else "no graph: nothing that the task reaches is trained")
            + "; needed is one number with its graph, as for loss.backward()."
        )
    total.backward()  # type: ignore[no-untyped-call]
    for optimizer in optimizers:
        optimizer.step()
    return measured._replace(loss=measured.loss.detach())


def learn(
    net: nn.Module,
    optimizers: Sequence[Optimizer],
    objective: Objective,
    batches: Sequence[Any],
    *,
    every: int,
    evaluation: Sequence[Any] | None = None,
    handle: Handle | None = None,
    name: str = "the network",
) -> tuple[list[int], list[float], list[float] | None]:
    """Train a network on all batches, one step each.

    Args:
        net: The network, in the modes that it trains in.
        optimizers: Its optimizers.
        objective: The loss.
        batches: One per step.
        every: Steps per point of the curve.
        evaluation: What the curve is measured on, in evaluation mode, before the first step too; ``None``: on the
            batches themselves, each before its step, averaged over the steps of a point.
        handle: Methods that are attached to the network.
        name: For messages.

    Returns:
        Steps, losses and accuracies of the curve.

    Raises:
        IllegalConfiguration: If the loss is no scalar with a graph, or is not finite before the first step.
    """
    points: list[tuple[float, float | None]] = [] if evaluation is None else [evaluated(net, objective, evaluation)]
    ends = [*range(every, len(batches), every), len(batches)]
    start = 0
    for end in ends:
        window = []
        for batch in batches[start:end]:
            window.append(one_step(net, optimizers, objective, batch, handle))
            if start == 0 and len(window) == 1 and not bool(torch.isfinite(window[0].loss)):
                raise IllegalConfiguration(
                    f"the loss of {name} is not finite at its first step ({float(window[0].loss)}): there is nothing "
                    "to learn from. Look for NaN or infinite values in weights, inputs or targets."
                )
        start = end
        point = _summary(window)
        if not math.isfinite(point[0]):
            break
        points.append(point if evaluation is None else evaluated(net, objective, evaluation))
        if not math.isfinite(points[-1][0]):
            points.pop()
            break
    steps = ends if evaluation is None else [0, *ends]
    losses = [loss for loss, _ in points] + [math.inf] * (len(steps) - len(points))
    accuracies = [accuracy for _, accuracy in points if accuracy is not None]
    if len(accuracies) < len(points):
        return steps, losses, None
    return steps, losses, accuracies + [math.nan] * (len(steps) - len(points))


def evaluated(net: nn.Module, objective: Objective, batches: Sequence[Any]) -> tuple[float, float | None]:
    """Mean loss and accuracy over batches, in evaluation mode and without gradients; modes are put back."""
    flags = [(module, module.training) for module in net.modules()]
    net.eval()
    try:
        with torch.no_grad():
            return _summary([objective(net, batch) for batch in batches])
    finally:
        for module, flag in flags:
            module.training = flag


def _summary(window: Sequence[Measured]) -> tuple[float, float | None]:
    """Mean loss and accuracy of some steps: the only place where the host waits for the device."""
    return float(torch.stack([measured.loss.float() for measured in window]).mean()), accuracy_of(window)
