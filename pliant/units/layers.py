"""Recurrent layers before discovery: packed sequences are refused, lower layers made readable.

A recurrent layer of several layers is one operation, and only its top layer's output is a value of the graph. For
each lower layer, a shorter copy of the operation is added that stops there: nothing uses its result, so the model's
function is what it was, but discovery has a place at which the lower layer's units can be read, by a replay with
the model's own weights.
"""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.fx import Graph, Node
from torch.nn.utils.rnn import PackedSequence

from pliant.errors import UnsupportedOp
from pliant.units.trace import op_name

__all__ = ["CELLS", "RECURRENT", "expose_layers", "refusing_packed"]

RECURRENT = frozenset({"lstm", "gru", "rnn_tanh", "rnn_relu"})
"""Operations that run whole sequences, all layers at once."""
CELLS = frozenset({"lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell"})
"""Operations that run one step."""


@contextlib.contextmanager
def refusing_packed(model: nn.Module) -> Iterator[None]:
    """While the model runs: refuse packed sequences, whose sizes depend on the data, before export fails on them.

    Raises:
        UnsupportedOp: Naming the layer, and the way that works.
    """
    found: list[str] = []

    def look(name: str) -> Any:
        return lambda _, inputs: found.append(name) if inputs and isinstance(inputs[0], PackedSequence) else None

    layers = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.RNNBase)]
    handles = [module.register_forward_pre_hook(look(name)) for name, module in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
    if found:
        raise UnsupportedOp(
            f"the recurrent layer {found[0]!r} runs on a packed sequence, which torch.export cannot follow. Find the "
            "units on padded inputs instead, with a forward pass that does not pack them (for example without their "
            "lengths): the units are the same, and attach(..., units=units) then trains on packed sequences."
        )


def expose_layers(graph: Graph) -> None:
    """Add, for each recurrent operation of several layers, its lower layers' output sequences to a graph.

    Args:
        graph: An exported graph; its outputs do not change.
    """
    for node in list(graph.nodes):
        if op_name(node) in RECURRENT and "input" in str(node.target):
            for count in range(1, node.args[4]):
                _expose(graph, node, count)
            for user in node.users:  # kept where the model reads the last state only
                user.meta["read"] = user.target is operator.getitem and user.args[1] == 0


def _expose(graph: Graph, node: Node, count: int) -> None:
    """The first ``count`` layers of a recurrent operation, without dropout between them."""
    source, given, weights, has_biases, num_layers, _, _, bidirectional, batch_first = node.args
    states: Any = given if isinstance(given, (list, tuple)) else [given]
    rows = count * (2 if bidirectional else 1)
    kept = weights[: len(weights) * count // num_layers]  # type: ignore[index, arg-type, operator]
    with graph.inserting_before(node):
        starts = []
        for state in states:
            start = graph.call_function(torch.ops.aten.slice.Tensor, (state, 0, 0, rows))
            start.meta.update(val=state.meta["val"][:rows], start=True)
            starts.append(start)
        first = starts if isinstance(given, (list, tuple)) else starts[0]
        arguments = (source, first, kept, has_biases, count, 0.0, False, bidirectional, batch_first)
        lower = graph.call_function(node.target, arguments)  # type: ignore[arg-type]
        values = node.meta["val"]
        lower.meta["val"] = (values[0], *(value[:rows] for value in values[1:]))
        output = graph.call_function(operator.getitem, (lower, 0))
        output.meta.update(val=values[0], read=True)
