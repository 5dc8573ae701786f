"""Scaled dot-product attention."""

from __future__ import annotations

from typing import Any

from torch.fx import Node

from pliant.units import axes as ax
from pliant.units.rules.linear import mark_attention
from pliant.units.trace import Trace, arg, rule


@rule("scaled_dot_product_attention")
def attention(trace: Trace, node: Node) -> Any:
    """Queries and keys share their last dimension, keys and values their time, all three the heads."""
    query, key, value = (trace.of(node.args[index]) for index in range(3))
    grouped = bool(node.kwargs.get("enable_gqa", False))
    ax.tie(query[-1], key[-1])
    ax.tie(key[-2], value[-2])
    mark_attention((), [value[-1]], query[-1])
    ax.freeze(query[-2], "time has a fixed order") if arg(node, 5, "is_causal", False) else None
    for back in range(3, len(query) + 1):
        ax.tie(key[-back], value[-back])
        sizes = [sum(map(ax.size_of, axis[-back])) for axis in (query, key)]
        if sizes[0] == sizes[1]:
            ax.tie(query[-back], key[-back])
        elif sizes[1] != 1:
            if not grouped:
                raise AssertionError("attention over different numbers of heads without enable_gqa")
            outer, _ = ax.factor(query[-back], [sizes[1], sizes[0] // sizes[1]])
            ax.tie(outer, key[-back])
        ax.mark(query[-back], "heads")
    mask = arg(node, 3, "attn_mask")
    if mask is not None:
        _tie_mask(trace, mask, query, key)
    return (*query[:-1], value[-1])


def _tie_mask(trace: Trace, mask: Any, query: Any, key: Any) -> None:
    """A mask (or bias) is added to the scores ``[..., heads, query time, key time]``."""
    scores = (*query[:-2], query[-2], key[-2])
    mask_axes = trace.of(mask)
    for back in range(1, len(mask_axes) + 1):
        axis = mask_axes[-back]
        if sum(map(ax.size_of, axis)) == sum(map(ax.size_of, scores[-back])):
            ax.tie(axis, scores[-back])
            trace.role(mask, -back, "incoming")
