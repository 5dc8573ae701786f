"""Random draws: what policies do with their last layer."""

from __future__ import annotations

from typing import Any

from torch.fx import Node

from pliant.units import axes as ax
from pliant.units.rules.elementwise import tie_broadcast
from pliant.units.trace import Trace, opaque_like, rule, shape_of

_CATEGORY = "samples are drawn from it: its order says what they mean"


@rule("broadcast_tensors")
def broadcast_tensors(trace: Trace, node: Node) -> Any:
    """Several tensors of one shape: equal dimensions are tied, as if they were added."""
    operands = list(node.args[0])  # type: ignore[arg-type]
    done = tie_broadcast(trace, operands, shape_of(node.meta["val"][0]))
    return tuple(done for _ in operands)


@rule("multinomial")
def multinomial(trace: Trace, node: Node) -> Any:
    """Draws of categories: the categories are fixed, the rows stay."""
    source = trace.of(node.args[0])
    ax.freeze(source[-1], _CATEGORY)
    return (*source[:-1], ax.fresh(trace.shape(node)[-1], _CATEGORY))


@rule("normal", "poisson", "exponential", "uniform", "geometric", "log_normal", "cauchy", "random")
def draw(trace: Trace, node: Node) -> Any:
    """One draw per entry: entries keep their places, because the generator fills them in order."""
    reason = "random numbers are drawn for it, entry by entry"
    trace.freeze_inputs(node, reason)
    return trace.opaque(node, reason)


@rule("one_hot")
def one_hot(trace: Trace, node: Node) -> Any:
    """A new last dimension whose order is that of the categories."""
    new = opaque_like(node.meta["val"], "its entries are the categories of the data")
    return (*trace.of(node.args[0]), new[-1])
