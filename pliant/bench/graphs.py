"""Training steps on CUDA as one captured graph: a step is a replay, and costs no launches from the host."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor, nn

from pliant.bench.batches import Chunk, TaskData
from pliant.bench.cohorts import Cohort
from pliant.bench.training import Autograd

__all__ = ["Captured"]

_WARM_UP = 3
"""Steps that run eagerly before a capture, as CUDA graphs want it; they are training steps like all others."""


@final
class Captured:
    """Captures forward, backward and the optimizers' steps once for each batch shape, and replays them.

    The first steps of each shape run eagerly on a side stream. Interventions listen inside the graph, and act after
    each replay, outside it. What a schedule sets would not reach a captured step, so members with one run eagerly.

    Args:
        model: of all members, on CUDA.
        cohorts: their settings; none adds to the loss or changes batches.
        stacked: whether the model is a stack.
    """

    def __init__(self, model: nn.Module, cohorts: Sequence[Cohort], *, stacked: bool) -> None:
        self.eager = Autograd(model, cohorts, stacked=stacked)
        self.cohorts = cohorts
        self.graphs: dict[tuple[torch.Size, torch.Size], _Graph] = {}
        self.captures = len(cohorts) == 1 and cohorts[0].step_sizes is None

    def begin(self, data: TaskData, weight_S: Tensor | None) -> None:
        """A task begins: graphs of other heads or other living members are dropped."""
        self.eager.begin(data, weight_S)
        self.graphs.clear()

    def run(self, chunk: Chunk) -> Tensor:
        """See :class:`~pliant.bench.training.Steps`."""
        if not self.captures:
            return self.eager.run(chunk)
        key = (chunk.inputs.shape[1:], chunk.constants.shape[1:])
        first = 0
        kept = []
        if key not in self.graphs:
            first = min(_WARM_UP, len(chunk.inputs))
            stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                kept.append(self.eager.run(chunk.part(0, first)))
            torch.cuda.current_stream().wait_stream(stream)
            if first < len(chunk.inputs):
                self.graphs[key] = _Graph(self.eager, self.cohorts[0], chunk.inputs[first], chunk.constants[first])
        for k in range(first, len(chunk.inputs)):
            outputs = self.graphs[key].replay(chunk.inputs[k], chunk.constants[k])
            kept.append(outputs.unsqueeze(0))
        return torch.cat(kept)


@final
class _Graph:
    """One captured step."""

    def __init__(self, eager: Autograd, cohort: Cohort, inputs: Tensor, constant: Tensor) -> None:
        self.cohort = cohort
        self.inputs, self.constant = inputs.clone(), constant.clone()
        self.graph = torch.cuda.CUDAGraph()
        for parameter in eager.parameters:  # the graph's own memory holds the gradients
            parameter.grad = None
        with torch.cuda.graph(self.graph):
            outputs = eager.forward(self.inputs)
            self.outputs = outputs.detach()
            gradient = eager.heads.gradient(self.outputs, self.constant, eager.weight_S)
            outputs.backward(gradient)  # type: ignore[no-untyped-call]
            cohort.optimizer.step()

    def replay(self, inputs: Tensor, constant: Tensor) -> Tensor:
        """One training step; outputs before the update, a copy."""
        self.inputs.copy_(inputs)
        self.constant.copy_(constant)
        self.graph.replay()
        if self.cohort.handle is not None:
            self.cohort.handle.step()
        return self.outputs.clone()
