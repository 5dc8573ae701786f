"""Making the lower layers of recurrent networks readable.

A recurrent layer of several layers is one operation, and only its top layer's output is a value of the graph. For
each lower layer, a shorter copy of the operation is added that stops there: nothing uses its result, so the model's
function is what it was, but discovery has a place at which the lower layer's units can be read, by a replay with
the model's own weights.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch.fx import Graph, Node

from pliant.units.trace import op_name

__all__ = ["RECURRENT", "expose_layers"]

RECURRENT = frozenset({"lstm", "gru", "rnn_tanh", "rnn_relu"})
"""Operations that run whole sequences, all layers at once."""


def expose_layers(graph: Graph) -> None:
    """Add, for each recurrent operation of several layers, its lower layers' output sequences to a graph.

    Args:
        graph: An exported graph; its outputs do not change.
    """
    for node in list(graph.nodes):
        if op_name(node) in RECURRENT and "input" in str(node.target) and node.args[4] > 1:
            for count in range(1, node.args[4]):
                _expose(graph, node, count)


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
            start.meta["val"] = state.meta["val"][:rows]
            starts.append(start)
        first = starts if isinstance(given, (list, tuple)) else starts[0]
        arguments = (source, first, kept, has_biases, count, 0.0, False, bidirectional, batch_first)
        lower = graph.call_function(node.target, arguments)  # type: ignore[arg-type]
        values = node.meta["val"]
        lower.meta["val"] = (values[0], *(value[:rows] for value in values[1:]))
        output = graph.call_function(operator.getitem, (lower, 0))
        output.meta["val"] = values[0]
