"""Mixtures of experts: each row of the activations meets its own expert of a stacked weight tensor."""

from __future__ import annotations

from typing import Any

from torch.fx import Node

from pliant.units import axes as ax
from pliant.units.axes import Axis
from pliant.units.trace import Trace, arg, op_name, rule

_EXPERTS = "its entries are experts, which the router's choice numbers and sorts"
_COUNTED = frozenset({"cumsum", "histc", "bincount", "to", "_to_copy", "clone", "clamp", "detach"})


@rule("transformers.grouped_mm_fallback", "_grouped_mm", "grouped_mm")
def grouped_mm(trace: Trace, node: Node) -> tuple[Axis, ...]:
    """``x [S, I], w [E, I, O], offsets [E] -> [S, O]``: consecutive rows go to consecutive experts.

    One dimension of a stacked weight holds the hidden units of every expert. Here they are units of all experts
    together; :mod:`pliant.units.experts` makes them those of each expert where nothing mixes the experts' rows.
    """
    source, weight = node.args[0], node.args[1]
    source_axes, weight_axes = trace.of(source), trace.of(weight)
    if len(source_axes) != 2 or len(weight_axes) != 3:
        reason = "grouped products of other than tokens by experts have no rule"
        trace.freeze_inputs(node, reason)
        return trace.opaque(node, reason)  # type: ignore[no-any-return]
    ax.freeze(weight_axes[-3], _EXPERTS)
    trace.role(weight, -3, "carried")
    rows = rows_of(arg(node, 2, "offs"))
    trace.route(weight, -3, rows)
    trace.products.add(node)
    ax.tie(source_axes[-1], weight_axes[-2])
    trace.consume(node, source, weight, -2)
    trace.role(weight, -1, "incoming")
    bias = arg(node, 3, "bias")
    if bias is not None:
        ax.tie(trace.of(bias)[-1], weight_axes[-1])
        trace.role(bias, -1, "incoming")
        trace.route(bias, -2, rows)
    return (source_axes[0], weight_axes[-1])


def rows_of(offsets: Any) -> Any:
    """The number of each row's expert, from which the offsets between experts were counted."""
    node = offsets
    while isinstance(node, Node) and op_name(node) in _COUNTED:
        node = node.args[0]
    return node


@rule("histc", "bincount")
def counts(trace: Trace, node: Node) -> Any:
    """Numbers of tokens per expert: the bins have an order."""
    reason = "it is counted in bins"
    trace.freeze_inputs(node, reason)
    return trace.opaque(node, reason)
