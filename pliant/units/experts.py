"""The hidden units of single experts, where the experts' weights are stacked in one tensor.

The rules find them as units of all experts together: unit ``u`` of every expert, permuted alike. Each expert may be
permuted by itself, too, as long as its rows of the activations go through element-wise operations only between the
products with stacked weights, and all of these weights are chosen by the same router. That is checked here on the
graph, operation by operation; :func:`~pliant.units.verify.verify` proves the outcome by running the model.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch.fx import Node

from pliant.units import axes as ax
from pliant.units.axes import Atom
from pliant.units.export import Exported
from pliant.units.group import UnitGroup
from pliant.units.trace import Trace, arg, flat_axes, op_name

__all__ = ["each_expert", "rows_of_group"]

_ROW_BY_ROW = frozenset({
    "relu", "gelu", "silu", "sigmoid", "tanh", "elu", "selu", "leaky_relu", "softplus", "mish", "hardtanh", "hardswish",
    "relu6", "square", "pow", "exp", "clamp", "clamp_max", "clamp_min", "neg", "abs", "add", "sub", "mul", "div",
    "dropout", "native_dropout", "to", "_to_copy", "clone", "contiguous", "detach", "alias", "_assert_tensor_metadata",
    "chunk", "split", "split_with_sizes", "slice", "getitem", "unsqueeze", "squeeze", "glu", "masked_fill", "where",
})  # fmt: skip
"""Operations that treat every row of ``[rows, units]`` alike and by itself."""


def each_expert(group: UnitGroup, atom: Atom, exported: Exported, trace: Trace) -> list[UnitGroup]:
    """The units of every expert as groups of their own.

    Args:
        group: A group found by the rules.
        atom: Its atom.
        exported: The exported model.
        trace: The trace.

    Returns:
        One group for each expert; the group itself where it is not of stacked experts, or where one of them cannot be
        permuted without the others.
    """
    if any(piece.name not in trace.routed for piece in group.slices):
        return [group]
    routes = {name: trace.routed[name] for name in group.tensors}
    if any(len(found) != 1 for found in routes.values()) or len({rows for f in routes.values() for _, rows in f}) != 1:
        return [group]  # weights that two routers use
    dims = {name: dim for name, found in routes.items() for dim, _ in found}
    counts = {sum(map(ax.size_of, trace.parameter_axes[name][dim])) for name, dim in dims.items()}
    if len(counts) != 1 or any(piece.dim <= dims[piece.name] for piece in group.slices):
        return [group]
    if not _is_row_by_row(atom, exported, trace):
        return [group]
    return [
        replace(
            group,
            name=f"{group.name}.{expert}",
            slices=tuple(replace(piece, at=(dims[piece.name], expert)) for piece in group.slices),
        )
        for expert in range(counts.pop())
    ]


def rows_of_group(group: UnitGroup, trace: Trace) -> Node | None:
    """The node that says which expert each row of a group's activations belongs to; ``None`` for other groups."""
    if group.slices[0].at is None:
        return None
    return next(rows for _, rows in trace.routed[group.slices[0].name])


def _is_row_by_row(atom: Atom, exported: Exported, trace: Trace) -> bool:
    """Whether the activations that carry the units are only made and read by products with experts' weights."""
    top = atom.root()
    for node in exported.nodes:
        if node in trace.views or node.op != "call_function":
            continue
        if not any(top is leaf.root() for axis in flat_axes(trace.values.get(node)) for leaf in ax.leaves(axis)):
            continue
        if not _is_allowed(node, trace):
            return False
        if not all(user in trace.views or _is_allowed(user, trace) for user in node.users):
            return False
    return True


def _is_allowed(node: Node, trace: Trace) -> bool:
    if node in trace.products:
        return True
    if op_name(node) == "index":  # biases, looked up by each row's expert
        return all(
            source in trace.views or not torch.is_floating_point(source.meta["val"]) for source in node.all_input_nodes
        )
    if op_name(node) in ("chunk", "split", "split_with_sizes", "slice"):
        before = trace.shape(node.args[0])  # type: ignore[arg-type]
        dim = int(arg(node, 1 if op_name(node) == "slice" else 2, "dim", 0)) % len(before)
        return dim == len(before) - 1 or (op_name(node) == "slice" and trace.shape(node)[dim] == before[dim])
    if op_name(node) == "select":
        before = trace.shape(node.args[0])  # type: ignore[arg-type]
        return before[int(node.args[1])] == 1  # type: ignore[arg-type]
    return op_name(node) in _ROW_BY_ROW
