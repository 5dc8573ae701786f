"""Element-wise operations: they tie equal dimensions and change nothing else."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.fx import Node

from pliant.units import axes as ax
from pliant.units.axes import Axis
from pliant.units.trace import Trace, op_name, rule, shape_of

_COPIES = frozenset(
    ["detach", "clone", "contiguous", "alias", "to", "_to_copy", "type_as", "lift_fresh_copy", "lift_fresh", "identity"]
)
_ZERO_AT_ZERO = frozenset({
    "relu", "relu6", "gelu", "silu", "tanh", "elu", "selu", "celu", "leaky_relu", "mish", "hardtanh", "hardswish",
    "softsign", "hardshrink", "softshrink", "abs", "neg", "expm1", "log1p", "sqrt", "square", "sin", "tan", "atan",
    "erf", "sign", "floor", "ceil", "round", "trunc", "dropout", "native_dropout", "nan_to_num",
})  # fmt: skip


@rule(
    "relu", "relu6", "gelu", "silu", "sigmoid", "tanh", "elu", "selu", "celu", "leaky_relu", "softplus", "mish",
    "hardtanh", "hardswish", "hardsigmoid", "softsign", "logsigmoid", "log_sigmoid", "hardshrink", "softshrink",
    "threshold", "rrelu",
    "abs", "neg", "exp", "expm1", "log", "log1p", "log2", "sqrt", "rsqrt", "square", "sin", "cos", "tan", "atan",
    "erf", "reciprocal", "sign", "floor", "ceil", "round", "trunc", "clamp_max", "clamp_min",
    "isnan", "isinf", "logical_not", "bitwise_not", "nan_to_num",
    "dropout", "native_dropout", "feature_dropout", "alpha_dropout", "bernoulli",
    "detach", "clone", "contiguous", "alias", "to", "_to_copy", "type_as", "lift_fresh_copy", "lift_fresh",
    "zeros_like", "ones_like", "full_like", "rand_like", "randn_like", "empty_like", "fill", "pin_memory",
    "_assert_tensor_metadata", "identity",
)  # fmt: skip
def unary(trace: Trace, node: Node) -> Any:
    """The same axes come out."""
    source = node.args[0]
    axes = trace.of(source)
    trace.derive(node, source)  # a function of a parameter's entries is used where the parameter is
    if trace.is_parameter(node) and op_name(node) not in _COPIES | _ZERO_AT_ZERO:
        trace.shifted.add(node)
    value = node.meta["val"]
    return tuple(axes for _ in value) if isinstance(value, (tuple, list)) else axes


@rule(
    "add", "sub", "rsub", "mul", "div", "true_divide", "floor_divide", "pow", "maximum", "minimum", "fmod", "remainder",
    "where", "addcmul", "addcdiv", "lerp", "masked_fill", "clamp", "clip", "atan2", "prelu", "_prelu_kernel", "copy",
    "eq", "ne", "lt", "le", "gt", "ge", "logical_and", "logical_or", "logical_xor", "bitwise_and", "bitwise_or",
    "__and__", "__or__", "xlogy", "hypot", "polar", "complex",
)  # fmt: skip
def broadcast(trace: Trace, node: Node) -> Any:
    """Equal dimensions are tied after broadcasting; a sum of a tensor and a branch of it is a residual stream."""
    operands = [item for item in node.all_input_nodes if isinstance(item.meta.get("val"), Tensor)]
    name = str(node.target)
    shape = trace.shape(node)
    parts: tuple[Node, ...] = ()
    if node not in trace.moving:  # a weight computed from parameters: what consumes it says how they are used
        parts = _parts(trace, node, operands)
    slope = node.args[1] if "prelu" in name else None
    result = tie_broadcast(trace, operands, shape, parts=parts, slope=slope)
    if ("add" in name or "sub" in name) and "addc" not in name:
        _mark_residual(trace, operands)
    return result


def tie_broadcast(
    trace: Trace, operands: list[Node], shape: tuple[int, ...], *, parts: tuple[Node, ...] = (), slope: Any = None
) -> tuple[Axis, ...]:
    """The axes of operands that are broadcast to ``shape``: equal dimensions are tied, parameters are carried.

    Args:
        trace: The trace.
        operands: The tensors.
        shape: The common shape.
        parts: Parameters that are used where the result is, and not here.
        slope: PReLU's weight, which belongs to dimension 1.
    """
    result: list[Axis | None] = [None] * len(shape)
    for operand in operands:
        axes, sizes = trace.of(operand), shape_of(operand.meta["val"])
        if operand is slope and len(sizes) == 1 and len(shape) > 1:
            axes, sizes = _at_channel(axes, sizes, len(shape))
        for back in range(1, len(sizes) + 1):
            if sizes[-back] != shape[-back] or sizes[-back] == 1:
                continue
            current = result[-back]
            if current is None:
                result[-back] = axes[-back]
            else:
                ax.tie(current, axes[-back])
        if trace.is_parameter(operand) and operand not in parts:
            for back in range(1, len(trace.of(operand)) + 1):
                trace.role(operand, -back, "carried")
    return tuple(axis if axis is not None else ax.fresh(size) for axis, size in zip(result, shape, strict=True))


def _parts(trace: Trace, node: Node, operands: list[Node]) -> tuple[Node, ...]:
    """The operands that are, entry by entry, the weight that is being computed; masks and noise only scale it."""
    whole = [item for item in operands if trace.is_parameter(item) and trace.shape(item) == trace.shape(node)]
    name, first = op_name(node), node.args[0]
    if name in ("mul", "div"):
        whole = [item for item in whole if not _is_buffer(trace, item) and (name == "mul" or item is first)]
        is_shifted = False
    else:
        is_shifted = name not in ("add", "sub") or len(whole) < 2 or any(_is_buffer(trace, item) for item in whole)
    if whole:
        trace.derive(node, *whole)
        trace.shifted.update([node] if is_shifted else [])
    return tuple(whole)


def _is_buffer(trace: Trace, node: Node) -> bool:
    names = {name for keys in trace.views.get(node, ()) for name, _ in keys}
    return bool(names) and names <= trace.buffers


def _at_channel(axes: tuple[Axis, ...], sizes: tuple[int, ...], rank: int) -> tuple[Any, tuple[int, ...]]:
    """PReLU's weight belongs to dimension 1, not to the last."""
    pad = rank - 2
    return (*axes, *(ax.fresh(1) for _ in range(pad))), (*sizes, *([1] * pad))


_LAYOUT = ("view", "reshape", "_unsafe_view", "flatten", "unflatten", "transpose", "permute", "unsqueeze", "squeeze")
_SAME = frozenset([*_LAYOUT, "to", "_to_copy", "clone", "contiguous", "detach", "alias", "dropout", "native_dropout"])


def _stem(node: Node) -> Node:
    """The tensor that a cast, copy or view was made of."""
    while node.op == "call_function" and op_name(node) in _SAME and isinstance(node.args[0], Node):
        node = node.args[0]
    return node


def _mark_residual(trace: Trace, operands: list[Node]) -> None:
    activations = [operand for operand in operands if not trace.is_parameter(operand)]
    if len(activations) != 2:
        return
    for older, newer in (activations, activations[::-1]):
        if trace.branches(newer, _stem(older)):  # not the other way round: a mask is added to every layer's scores
            for axis in trace.of(older):
                ax.mark(axis, "residual")
