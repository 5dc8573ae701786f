"""Views, permutations, joins and cuts: where axes change their shape but not their meaning."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.fx import Node

from pliant.units import axes as ax
from pliant.units.axes import Axis
from pliant.units.trace import Key, Trace, arg, op_name, opaque_like, rule, shape_of


def _length(axis: Axis) -> int:
    return sum(map(ax.size_of, axis))


def _dim(node: Node, index: int, name: str, rank: int, default: int = 0) -> int:
    return int(arg(node, index, name, default)) % rank


_NOTHING: frozenset[Key] = frozenset()


def _view(trace: Trace, node: Node, source: Any, dims: Sequence[int | None]) -> None:
    """Note that ``node`` is a view of a parameter: its dimensions are the given ones of ``source`` (or new)."""
    if source in trace.views:
        keys = trace.views[source]
        trace.views[node] = tuple(_NOTHING if dim is None else keys[dim] for dim in dims)


@rule("view", "reshape", "_unsafe_view", "flatten", "unflatten", "view_as", "reshape_as")
def view(trace: Trace, node: Node) -> Any:
    """Row-major: joined dimensions become a product, split ones its factors."""
    source: Any = node.args[0]
    old, new = trace.shape(source), trace.shape(node)
    if source in trace.views:
        keys, made = trace.views[source], [_NOTHING] * len(new)
        for left, right in ax.blocks(old, new):
            for dim in right:
                made[dim] = _NOTHING.union(*(keys[k] for k in left))
        trace.views[node] = tuple(made)
    return tuple(ax.reshape(trace.of(source), old, new))


def _permuted(trace: Trace, node: Node, order: list[int]) -> tuple[Axis, ...]:
    source = node.args[0]
    axes = trace.of(source)
    _view(trace, node, source, order)
    return tuple(axes[i] for i in order)


@rule("permute")
def permute(trace: Trace, node: Node) -> Any:
    """Dimensions in a new order."""
    rank = len(trace.of(node.args[0]))
    return _permuted(trace, node, [int(dim) % rank for dim in node.args[1]])  # type: ignore[union-attr, arg-type]


@rule("transpose", "swapaxes")
def transpose(trace: Trace, node: Node) -> Any:
    """Two dimensions exchanged."""
    rank = len(trace.of(node.args[0]))
    order = list(range(rank))
    a, b = (int(dim) % rank for dim in node.args[1:3])  # type: ignore[arg-type]
    order[a], order[b] = order[b], order[a]
    return _permuted(trace, node, order)


@rule("t", "numpy_T", "mT", "matrix_H", "adjoint")
def matrix_transpose(trace: Trace, node: Node) -> Any:
    """The last two dimensions exchanged."""
    rank = len(trace.of(node.args[0]))
    order = list(range(rank))
    if rank > 1:
        order[-1], order[-2] = order[-2], order[-1]
    return _permuted(trace, node, order)


@rule("movedim")
def movedim(trace: Trace, node: Node) -> Any:
    """Dimensions moved to new places."""
    rank = len(trace.of(node.args[0]))
    given: list[Any] = list(node.args[1:3])
    sources, targets = (
        [int(d) % rank for d in (item if isinstance(item, (list, tuple)) else [item])] for item in given
    )
    order: list[int | None] = [None] * rank
    for source, target in zip(sources, targets, strict=True):
        order[target] = source
    rest = iter(dim for dim in range(rank) if dim not in sources)
    return _permuted(trace, node, [next(rest) if dim is None else dim for dim in order])


@rule("unsqueeze")
def unsqueeze(trace: Trace, node: Node) -> Any:
    """A new dimension of size one."""
    source = node.args[0]
    axes = list(trace.of(source))
    dim = int(node.args[1]) % (len(axes) + 1)  # type: ignore[arg-type]
    _view(trace, node, source, [*range(dim), None, *range(dim, len(axes))])
    axes.insert(dim, ax.fresh(1))
    return tuple(axes)


@rule("squeeze")
def squeeze(trace: Trace, node: Node) -> Any:
    """Dimensions of size one dropped."""
    source = node.args[0]
    axes, shape = trace.of(source), trace.shape(source)  # type: ignore[arg-type]
    given = arg(node, 1, "dim")
    chosen = range(len(axes)) if given is None else given if isinstance(given, (list, tuple)) else [given]
    drop = {int(dim) % len(axes) for dim in chosen if shape[int(dim)] == 1}
    keep = [dim for dim in range(len(axes)) if dim not in drop]
    return _permuted(trace, node, keep)


@rule("expand", "expand_as", "broadcast_to")
def expand(trace: Trace, node: Node) -> Any:
    """Repeated dimensions are free: a fresh atom, tied to nothing yet (repeated key-value heads need this)."""
    source = node.args[0]
    axes, old, new = trace.of(source), trace.shape(source), trace.shape(node)  # type: ignore[arg-type]
    lead = len(new) - len(old)
    same = [dim - lead if dim >= lead and old[dim - lead] == size else None for dim, size in enumerate(new)]
    _view(trace, node, source, same)
    return tuple(ax.fresh(size) if dim is None else axes[dim] for dim, size in zip(same, new, strict=True))


@rule("repeat", "tile", "repeat_interleave")
def repeat(trace: Trace, node: Node) -> Any:
    """Copies along a dimension: kept where the factor is one, a product of (copy, original) otherwise."""
    source = node.args[0]
    axes, old, new = trace.of(source), trace.shape(source), trace.shape(node)  # type: ignore[arg-type]
    interleaved = "interleave" in str(node.target)
    lead = len(new) - len(old)
    _view(trace, node, source, [dim - lead if dim >= lead else None for dim in range(len(new))])
    result: list[Axis] = []
    for dim, size in enumerate(new):
        if dim < lead:
            result.append(ax.fresh(size))
        elif old[dim - lead] == size:
            result.append(axes[dim - lead])
        else:
            copies = ax.fresh(size // old[dim - lead])
            pair = [axes[dim - lead], copies] if interleaved else [copies, axes[dim - lead]]
            result.append(ax.merge(pair))
    return tuple(result)


@rule("cat", "concat", "concatenate", "hstack", "vstack")
def cat(trace: Trace, node: Node) -> Any:
    """A concatenation along one dimension, tied along the others."""
    items = [item for item in node.args[0] if trace.shape(item) != (0,)]  # type: ignore[union-attr, arg-type]
    rank = len(trace.of(items[0]))
    dim = _dim(node, 1, "dim", rank)
    for item in items[1:]:
        for other in range(rank):
            if other != dim:
                ax.tie(trace.of(items[0])[other], trace.of(item)[other])
    result = list(trace.of(items[0]))
    result[dim] = ax.concat([trace.of(item)[dim] for item in items])
    _join(trace, node, items)
    return tuple(result)


def _join(trace: Trace, node: Node, items: list[Any]) -> None:
    """Joined parameters are derived from all of them; among activations, a parameter produces its entries."""
    if all(item in trace.views for item in items):
        trace.derive(node, *items)
        return
    for item in items:
        trace.learn(item)


@rule("stack")
def stack(trace: Trace, node: Node) -> Any:
    """A new dimension whose entries are the operands, in a fixed order."""
    items = list(node.args[0])  # type: ignore[arg-type]
    axes = list(trace.of(items[0]))
    for item in items[1:]:
        for first, other in zip(axes, trace.of(item), strict=True):
            ax.tie(first, other)
    dim = _dim(node, 1, "dim", len(axes) + 1)
    if all(item in trace.views for item in items):
        trace.derive(node, *items)
        trace.views[node] = (*trace.views[node][:dim], _NOTHING, *trace.views[node][dim:])
    else:
        for item in items:
            trace.learn(item)
    axes.insert(dim, ax.fresh(len(items), "its entries are different tensors, stacked"))
    return tuple(axes)


_SPLITS = ("split", "split_with_sizes", "chunk", "unsafe_chunk", "unsafe_split", "tensor_split")


@rule(*_SPLITS)
def split(trace: Trace, node: Node) -> Any:
    """Cuts along one dimension."""
    source = trace.of(node.args[0])
    dim = _dim(node, 2, "dim", len(source))
    sizes = [shape_of(value)[dim] for value in node.meta["val"]]
    pieces = ax.split(source[dim], sizes)
    _view(trace, node, node.args[0], range(len(source)))  # of every piece alike
    return tuple(tuple(piece if i == dim else axis for i, axis in enumerate(source)) for piece in pieces)


@rule("slice", "narrow")
def cut(trace: Trace, node: Node) -> Any:
    """A contiguous piece of one dimension (steps other than one fix the order)."""
    source_node = node.args[0]
    source = trace.of(source_node)
    dim = _dim(node, 1, "dim", len(source))
    old, new = trace.shape(source_node)[dim], trace.shape(node)[dim]  # type: ignore[arg-type]
    _view(trace, node, source_node, range(len(source)))
    if old == new:
        return source
    start, step = arg(node, 2, "start", 0), arg(node, 4, "step", 1)
    stride = step if isinstance(step, int) else 0
    if stride > 1 and isinstance(start, int) and 0 <= start < stride and new * stride == old:
        units, places = ax.factor(source[dim], [new, stride])  # gate and value, entry by entry in turn
        ax.freeze(places, "single entries of it are selected by index")
        return tuple(units if i == dim else axis for i, axis in enumerate(source))
    if step != 1 or not isinstance(start, (int, type(None))):
        reason = "it is sliced with a step or at a position that depends on the data"
        ax.freeze(source[dim], reason)
        return tuple(ax.fresh(new, reason) if i == dim else axis for i, axis in enumerate(source))
    begin = min((start or 0) % old if (start or 0) < 0 else (start or 0), old)
    piece = _piece(source[dim], begin, new, old)
    return tuple(piece if i == dim else axis for i, axis in enumerate(source))


def _piece(axis: Axis, begin: int, size: int, total: int) -> Axis:
    if size == 0:
        return ax.fresh(0, "empty")
    sizes = [length for length in (begin, size, total - begin - size) if length]
    return ax.split(axis, sizes)[1 if begin else 0]


@rule("select")
def select(trace: Trace, node: Node) -> Any:
    """One entry of a dimension: that dimension's order matters, the others stay."""
    source = trace.of(node.args[0])
    dim = _dim(node, 1, "dim", len(source))
    ax.freeze(source[dim], "single entries of it are selected by index")
    _view(trace, node, node.args[0], [i for i in range(len(source)) if i != dim])
    return tuple(axis for i, axis in enumerate(source) if i != dim)


@rule("unbind")
def unbind(trace: Trace, node: Node) -> Any:
    """All entries of a dimension, one tensor each."""
    source = trace.of(node.args[0])
    dim = _dim(node, 1, "dim", len(source))
    ax.freeze(source[dim], "single entries of it are selected by index")
    _view(trace, node, node.args[0], [i for i in range(len(source)) if i != dim])
    rest = tuple(axis for i, axis in enumerate(source) if i != dim)
    return tuple(rest for _ in node.meta["val"])


@rule("index_add", "index_copy")
def index_add(trace: Trace, node: Node) -> Any:
    """Rows of one tensor are added to rows of another that the data choose; the other dimensions are shared."""
    source, dim, other = trace.of(node.args[0]), int(node.args[1]), trace.of(node.args[3])  # type: ignore[arg-type]
    for at, (axis, added) in enumerate(zip(source, other, strict=True)):
        if at == dim % len(source):
            ax.freeze(axis, "it is indexed by the data")
            ax.freeze(added, "it is indexed by the data")
        else:
            ax.tie(axis, added)
    return source


@rule("index_select", "gather", "index", "scatter", "scatter_add", "index_put", "take_along_dim")
def index(trace: Trace, node: Node) -> Any:
    """Data-dependent look-ups: the indexed dimensions are frozen, untouched trailing ones of ``index`` stay."""
    source_node = node.args[0]
    source, reason = trace.of(source_node), "it is indexed by the data"
    if "index.Tensor" in str(node.target):
        return _looked_up(trace, node, source, list(node.args[1]), reason)  # type: ignore[arg-type]
    if "index_select" in str(node.target):
        dim = _dim(node, 1, "dim", len(source))
        ax.freeze(source[dim], reason)
        return tuple(ax.fresh(trace.shape(node)[i], reason) if i == dim else axis for i, axis in enumerate(source))
    trace.freeze_inputs(node, reason)
    return trace.opaque(node, reason)


def _looked_up(trace: Trace, node: Node, source: tuple[Axis, ...], indices: list[Any], reason: str) -> Any:
    """``x[i, :, j]``: indexed dimensions are frozen, the others stay; those of a table of parameters are produced."""
    given: list[int] = []
    at = 0
    for item in indices:
        covered = 1 if item is None or item.meta["val"].dtype != torch.bool else item.meta["val"].ndim
        given += [] if item is None else range(at, at + covered)
        at += covered
    kept = [index for index in range(len(source)) if index not in given]
    table: Any = node.args[0]
    for index in given:
        ax.freeze(source[index], reason)
        trace.role(table, index, "carried")
    new = trace.shape(node)
    adjacent = given == list(range(given[0], given[-1] + 1))
    at = given[0] if adjacent else 0  # where the dimensions of the indices go
    looked_up = new[at : at + len(new) - len(kept)]
    if len(given) == len(looked_up) == 1:
        trace.route(table, given[0] - len(source), indices[given[0]])
    if table in trace.views and len(kept) > 1 and _is_multiplied(node):  # matrices, one for each row of activations
        keys = trace.views[table]
        trace.views[node] = (
            *(keys[k] for k in kept[:at]),
            *(_NOTHING for _ in looked_up),
            *(keys[k] for k in kept[at:]),
        )
    else:
        for index in kept:
            trace.role(table, index, "incoming")
    result = [source[index] for index in kept]
    return (*result[:at], *(ax.fresh(size, reason) for size in looked_up), *result[at:])


def _is_multiplied(node: Node) -> bool:
    """Whether a tensor is only used in products, as their weight."""
    names = {op_name(user): user for user in node.users}
    return bool(names) and all(
        name in ("bmm", "matmul", "einsum") or (name in ("transpose", "mT", "to", "_to_copy") and _is_multiplied(user))
        for name, user in names.items()
    )


@rule("constant_pad_nd", "pad", "reflection_pad2d", "replication_pad2d", "reflection_pad1d")
def pad(trace: Trace, node: Node) -> Any:
    """Padded dimensions are fixed; the others stay."""
    source_node = node.args[0]
    source = trace.of(source_node)
    old, new = trace.shape(source_node), trace.shape(node)  # type: ignore[arg-type]
    reason = "it is padded, which fixes its positions"
    result = []
    for axis, before, after in zip(source, old, new, strict=True):
        if before == after:
            result.append(axis)
        else:
            ax.freeze(axis, reason)
            result.append(ax.fresh(after, reason))
    return tuple(result)


@rule("tril", "triu", "diagonal", "unfold", "im2col", "nonzero", "masked_select")
def fixed(trace: Trace, node: Node) -> Any:
    """Operations whose result depends on the order of every dimension they touch."""
    reason = f"its order matters to {str(node.target).removeprefix('aten.').split('.')[0]!r}"
    trace.freeze_inputs(node, reason)
    return trace.opaque(node, reason)


@rule("zeros", "ones", "full", "empty", "scalar_tensor", "new_zeros", "new_ones", "new_full", "new_empty")
def uniform(trace: Trace, node: Node) -> Any:
    """All entries are equal (writing into a part of it cuts or freezes that dimension), so their order is free."""
    return tuple(ax.fresh(size) for size in trace.shape(node))


@rule("arange", "rand", "randn", "eye", "linspace", "randint", "randperm")
def constant(trace: Trace, node: Node) -> Any:
    """Tensors with an order of their own: their dimensions are data."""
    return opaque_like(
        node.meta["val"], "it is tied to a tensor made inside the forward pass (positions, a mask, noise)"
    )


_CONSTANT = frozenset({"zeros", "ones", "full", "new_zeros", "new_ones", "new_full", "zeros_like", "ones_like"})
VIEWS = frozenset({"expand", "unsqueeze", "squeeze", "view", "reshape", "slice", "select", "alias"})
COPIES = frozenset({"to", "_to_copy", "contiguous", "clone", "repeat", "detach"})


def is_uniform(state: Node) -> bool:
    """Whether all entries of a tensor are equal, as those of a zero initial state: every order of them is the same."""
    node: Any = state
    while op_name(node) in VIEWS | COPIES:
        node = node.args[0]
    return node.op == "call_function" and op_name(node) in _CONSTANT and not _is_written(node)


def _is_written(node: Node) -> bool:
    """Whether an operation writes into a tensor or a view of it."""
    for user in node.users:
        schema = getattr(user.target, "_schema", None)
        if schema is None or schema.is_mutable:
            return True
        if op_name(user) in VIEWS | {"to", "contiguous", "detach"} and _is_written(user):
            return True
    return False


@rule("getitem")
def getitem(trace: Trace, node: Node) -> Any:
    """One of several results."""
    trace.derive(node, node.args[0])
    values = trace.values.get(node.args[0])  # type: ignore[arg-type]
    return values[int(node.args[1])] if values is not None else None  # type: ignore[arg-type]
