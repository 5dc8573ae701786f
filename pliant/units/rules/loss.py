"""Losses that are computed inside the forward pass, as language models do when they are given labels."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.fx import Node

from pliant.units import axes as ax
from pliant.units.trace import Trace, rule


@rule("cross_entropy_loss", "nll_loss", "nll_loss_nd", "nll_loss2d", "nll_loss_forward")
def classification(trace: Trace, node: Node) -> Any:
    """``(input [N, C, ...] or [C], target)``: classes are compared with labels, examples are averaged or kept."""
    scores = trace.of(node.args[0])
    reason = "its entries are classes, which labels name"
    classes = 1 if len(scores) > 1 else 0
    for operand in node.all_input_nodes[1:]:  # targets and class weights
        for axis in trace.of(operand):
            if len(trace.of(operand)) == 1 and _size(axis) == _size(scores[classes]):
                ax.freeze(axis, reason)
    ax.freeze(scores[classes], reason)
    rest = tuple(axis for dim, axis in enumerate(scores) if dim != classes)
    return _reduced(node.meta["val"], rest)


@rule(
    "mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss", "binary_cross_entropy", "binary_cross_entropy_with_logits",
    "kl_div", "soft_margin_loss", "poisson_nll_loss",
)  # fmt: skip
def elementwise_loss(trace: Trace, node: Node) -> Any:
    """Input and target are compared entry by entry, then averaged or kept."""
    operands = [item for item in node.all_input_nodes if isinstance(item.meta.get("val"), Tensor)]
    first = trace.of(operands[0])
    for operand in operands[1:]:
        axes = trace.of(operand)
        for back in range(1, min(len(first), len(axes)) + 1):
            if _size(first[-back]) == _size(axes[-back]):
                ax.tie(first[-back], axes[-back])
    for axis in first:
        ax.mark(axis, "mixed")
    return _reduced(node.meta["val"], first)


def _reduced(value: Any, axes: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return tuple(_reduced(item, axes) for item in value)
    return axes if value.ndim == len(axes) else tuple(ax.fresh(int(size)) for size in value.shape)


def _size(axis: ax.Axis) -> int:
    return sum(map(ax.size_of, axis))
