"""Reductions, softmax and everything that orders entries along a dimension."""

from __future__ import annotations

from typing import Any

from torch.fx import Node

from pliant.units import axes as ax
from pliant.units.axes import Axis
from pliant.units.trace import Trace, arg, rule, shape_of


def _dims(node: Node, rank: int, index: int = 1, name: str = "dim") -> list[int]:
    dims = arg(node, index, name)
    if dims is None or dims == []:
        return list(range(rank))
    return [int(dim) % rank for dim in (dims if isinstance(dims, (list, tuple)) else [dims])]


@rule("mean", "sum", "amax", "amin", "prod", "logsumexp", "var", "std", "any", "all", "linalg_vector_norm", "norm")
def reduce(trace: Trace, node: Node) -> Any:
    """Order-free reductions: the reduced dimension disappears and its units are mixed."""
    source = trace.of(node.args[0])
    at = 2 if "norm" in str(node.target) else 1
    everything = node.meta["val"].ndim == 0
    reduced = list(range(len(source))) if everything else _dims(node, len(source), at)
    for dim in reduced:
        ax.mark(source[dim], "mixed")
    if node.meta["val"].ndim == len(source):
        return tuple(ax.fresh(1) if dim in reduced else axis for dim, axis in enumerate(source))
    return tuple(axis for dim, axis in enumerate(source) if dim not in reduced)


@rule("cosine_similarity")
def similarity(trace: Trace, node: Node) -> tuple[Axis, ...]:
    """The angle between two activations: one dimension is contracted and normalised, the others are tied."""
    first, second = trace.of(node.args[0]), trace.of(node.args[1])
    if len(first) != len(second):
        reason = "the operation 'cosine_similarity' has no rule for tensors of different ranks"
        trace.freeze_inputs(node, reason)
        return trace.opaque(node, reason)  # type: ignore[no-any-return]
    dim = int(arg(node, 2, "dim", 1)) % len(first)
    sizes = [trace.shape(operand) for operand in node.args[:2]]  # type: ignore[arg-type]
    for at, (one, other) in enumerate(zip(first, second, strict=True)):
        if sizes[0][at] == sizes[1][at]:
            ax.tie(one, other)
    trace.learn(node.args[0])
    trace.learn(node.args[1])
    ax.mark(first[dim], "mixed")
    return tuple(
        one if sizes[0][at] >= sizes[1][at] else other
        for at, (one, other) in enumerate(zip(first, second, strict=True))
        if at != dim
    )


@rule("max", "min")
def extreme(trace: Trace, node: Node) -> Any:
    """``max``/``min``: element-wise of two tensors, over everything, or over one dimension (values, indices)."""
    source = trace.of(node.args[0])
    value = node.meta["val"]
    if isinstance(value, (tuple, list)):
        dim = _dims(node, len(source))[0]
        ax.freeze(source[dim], "its entries are ranked (max or min with indices)")
        kept: tuple[Axis, ...]
        if value[0].ndim == len(source):
            kept = tuple(ax.fresh(1) if i == dim else axis for i, axis in enumerate(source))
        else:
            kept = tuple(axis for i, axis in enumerate(source) if i != dim)
        return (kept, kept)
    if value.ndim == 0 and len(node.args) == 1:
        for axis in source:
            ax.mark(axis, "mixed")
        return ()
    from pliant.units.rules.elementwise import broadcast  # a two-tensor max is element-wise

    return broadcast(trace, node)


@rule("softmax", "_softmax", "log_softmax", "_log_softmax", "_safe_softmax", "normalize")
def softmax(trace: Trace, node: Node) -> Any:
    """Normalised along one dimension: equivariant there, but it mixes."""
    source = trace.of(node.args[0])
    ax.mark(source[int(node.args[1])], "mixed")  # type: ignore[arg-type]
    return source


@rule("glu")
def glu(trace: Trace, node: Node) -> Any:
    """The two halves are gate and value of the same units."""
    source = trace.of(node.args[0])
    dim = int(arg(node, 1, "dim", -1)) % len(source)
    size = sum(map(ax.size_of, source[dim]))
    value, gate = ax.split(source[dim], [size // 2, size // 2])
    ax.tie(value, gate)
    return tuple(value if i == dim else axis for i, axis in enumerate(source))


@rule("cumsum", "cumprod", "sort", "argsort", "topk", "argmax", "argmin", "flip", "roll", "cummax", "logcumsumexp")
def ordered(trace: Trace, node: Node) -> Any:
    """Anything that depends on the order along a dimension freezes it."""
    source = trace.of(node.args[0])
    name = str(node.target)
    at = 2 if "topk" in name or "roll" in name else 1  # after the number of entries, or the shifts
    given = arg(node, at, "dim")
    dims = [] if given is None else [given]
    reason = f"its order matters to {name.removeprefix('aten.').split('.')[0]!r}"
    if "topk" in name:
        reason = "its largest entries are chosen by number ('topk'), as a router chooses experts"
    flat = [d for item in dims for d in (item if isinstance(item, (list, tuple)) else [item])]
    chosen = [int(d) % len(source) for d in flat if isinstance(d, int)] or list(range(len(source)))
    if any(word in name for word in ("argmax", "argmin", "roll", "topk")):
        chosen = chosen if dims else ([len(source) - 1] if "topk" in name else list(range(len(source))))
    for dim in chosen:
        ax.freeze(source[dim], reason)

    def result(value: Any) -> tuple[Axis, ...]:
        if value.ndim == len(source):
            return tuple(
                ax.fresh(size, reason) if i in chosen else axis
                for i, (axis, size) in enumerate(zip(source, shape_of(value), strict=True))
            )
        return tuple(axis for i, axis in enumerate(source) if i not in chosen)

    value = node.meta["val"]
    return tuple(result(item) for item in value) if isinstance(value, (tuple, list)) else result(value)
