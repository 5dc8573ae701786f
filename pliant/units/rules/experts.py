"""Mixtures of experts: tokens sorted by expert meet one stacked weight tensor ``[experts, inputs, outputs]``."""

from __future__ import annotations

from typing import Any

from torch.fx import Node

from pliant.units import axes as ax
from pliant.units.axes import Axis
from pliant.units.trace import Trace, arg, rule

_EXPERTS = "its entries are experts, which the router's choice numbers and sorts"


@rule("transformers.grouped_mm_fallback", "_grouped_mm", "grouped_mm")
def grouped_mm(trace: Trace, node: Node) -> tuple[Axis, ...]:
    """``x [S, I], w [E, I, O], offsets [E] -> [S, O]``: consecutive rows go to consecutive experts.

    One dimension of a stacked weight holds the hidden units of every expert, so unit ``u`` of the group is unit
    ``u`` of *all* experts together: the permutations that move the units of all experts alike are a symmetry, and
    the only one that positions along a single dimension can express. (Each expert could also be permuted by itself.)
    A reset of unit ``u`` redraws it in every expert; its statistics are those of the tokens of all experts.
    """
    source, weight = node.args[0], node.args[1]
    source_axes, weight_axes = trace.of(source), trace.of(weight)
    if len(source_axes) != 2 or len(weight_axes) != 3:
        reason = "grouped products of other than tokens by experts have no rule"
        trace.freeze_inputs(node, reason)
        return trace.opaque(node, reason)  # type: ignore[no-any-return]
    ax.freeze(weight_axes[-3], _EXPERTS)
    trace.role(weight, -3, "carried")
    ax.tie(source_axes[-1], weight_axes[-2])
    trace.consume(node, source, weight, -2)
    trace.role(weight, -1, "incoming")
    bias = arg(node, 3, "bias")
    if bias is not None:
        ax.tie(trace.of(bias)[-1], weight_axes[-1])
        trace.role(bias, -1, "incoming")
    return (source_axes[0], weight_axes[-1])


@rule("histc", "bincount")
def counts(trace: Trace, node: Node) -> Any:
    """Numbers of tokens per expert: the bins have an order."""
    reason = "it is counted in bins"
    trace.freeze_inputs(node, reason)
    return trace.opaque(node, reason)
