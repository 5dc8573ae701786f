"""Linear maps, matrix products, contractions and embeddings."""

from __future__ import annotations

from typing import Any

from torch.fx import Node

from pliant.units import axes as ax
from pliant.units.axes import Axis
from pliant.units.trace import Trace, arg, rule


@rule("linear")
def linear(trace: Trace, node: Node) -> tuple[Axis, ...]:
    """``y = x W.T + b``: columns consume, rows and bias produce."""
    source, weight, bias = node.args[0], node.args[1], arg(node, 2, "bias")
    weight_axes = trace.of(weight)
    trace.learn(source)
    ax.tie(trace.of(source)[-1], weight_axes[-1])
    trace.consume(node, source, weight, -1)
    trace.role(weight, -2, "incoming")
    if bias is not None:
        ax.tie(trace.of(bias)[-1], weight_axes[-2])
        trace.role(bias, -1, "incoming")
    return (*trace.of(source)[:-1], weight_axes[-2])


@rule("addmm")
def addmm(trace: Trace, node: Node) -> tuple[Axis, ...]:
    """``b + x W`` (Conv1D of GPT-2 stores ``W`` as inputs x outputs)."""
    bias, first, second = node.args[:3]
    result = _contract(trace, node, first, second)
    _add_bias(trace, bias, result)
    return result


@rule("baddbmm")
def baddbmm(trace: Trace, node: Node) -> tuple[Axis, ...]:
    """Batched ``b + x W``, as stacked members use it."""
    bias, first, second = node.args[:3]
    result = _contract(trace, node, first, second)
    _add_bias(trace, bias, result)
    return result


@rule("mm", "bmm", "matmul", "mv", "dot")
def matmul(trace: Trace, node: Node) -> tuple[Axis, ...]:
    """Matrix products with or without parameters."""
    return _contract(trace, node, node.args[0], node.args[1])


def _add_bias(trace: Trace, bias: Any, result: tuple[Axis, ...]) -> None:
    bias_axes = trace.of(bias)
    for back in range(1, len(bias_axes) + 1):
        if _length(bias_axes[-back]) == _length(result[-back]):
            ax.tie(bias_axes[-back], result[-back])
            trace.role(bias, -back, "incoming")


def _length(axis: Axis) -> int:
    return sum(ax.size_of(segment) for segment in axis)


def _contract(trace: Trace, node: Node, first: Any, second: Any) -> tuple[Axis, ...]:
    left, right = trace.of(first), trace.of(second)
    inner_right = -2 if len(right) > 1 else -1
    ax.tie(left[-1], right[inner_right])
    first_is, second_is = trace.is_parameter(first), trace.is_parameter(second)
    if second_is:
        trace.consume(node, first, second, inner_right)
        if len(right) > 1:
            trace.role(second, -1, "incoming")
    if first_is:
        trace.consume(node, second, first, -1)
        if len(left) > 1:
            trace.role(first, -2, "incoming")
    trace.multiply(node, first, second)
    outer_left = left[:-1][-1:] if len(left) > 1 else ()
    outer_right = right[-1:] if len(right) > 1 else ()
    batch = _broadcast(trace, first, left[:-2], second, right[:-2])
    if not first_is and not second_is:
        mark_attention(batch, [*outer_left, *outer_right], left[-1])
    return (*batch, *outer_left, *outer_right)


def mark_attention(batch: tuple[Axis, ...], outer: list[Axis], inner: Axis) -> None:
    """A product of two activations: batch dimensions are heads, the others dimensions inside a head."""
    for axis in batch:
        ax.mark(axis, "heads")
    for axis in outer:
        ax.mark(axis, "head_dims")
    ax.mark(inner, "head_dims")
    ax.mark(inner, "mixed")


def _broadcast(
    trace: Trace, first: Any, left: tuple[Axis, ...], second: Any, right: tuple[Axis, ...]
) -> tuple[Axis, ...]:
    count = max(len(left), len(right))
    result: list[Axis] = []
    for back in range(count, 0, -1):
        a = left[-back] if back <= len(left) else None
        b = right[-back] if back <= len(right) else None
        if a is None or b is None:
            result.append(a or b or ax.fresh(1))
        elif _length(a) == _length(b):
            ax.tie(a, b)
            result.append(a)
        else:
            result.append(b if _length(a) == 1 else a)
        for operand in (first, second):  # the leading dimension of a stacked parameter counts as a member axis
            if trace.is_parameter(operand) and back + 2 <= len(trace.of(operand)):
                trace.role(operand, -back - 2, "carried")
                ax.mark(trace.of(operand)[-back - 2], "experts")
    return tuple(result)


@rule("einsum")
def einsum(trace: Trace, node: Node) -> Any:
    """Equal letters are equal axes; contracted letters between activations mix their units."""
    equation, operands = str(node.args[0]).replace(" ", ""), list(node.args[1])  # type: ignore[arg-type]
    if "." in equation or "->" not in equation:
        reason = "einsum with an ellipsis or an implicit output has no rule"
        trace.freeze_inputs(node, reason)
        return trace.opaque(node, reason)
    inputs, output = equation.split("->")
    letters: dict[str, Axis] = {}
    weights = [operand for operand in operands if trace.is_parameter(operand)]
    activations = [operand for operand in operands if not trace.is_parameter(operand)]
    trace.multiply(node, *operands)
    terms = inputs.split(",")
    moving = [term for term, operand in zip(terms, operands, strict=True) if operand in activations]
    for term, operand in zip(terms, operands, strict=True):
        is_stack = any(letter in output and not any(letter in other for other in moving) for letter in term)
        for dim, letter in enumerate(term):
            axis = trace.of(operand)[dim]
            if letter in letters:
                ax.tie(letters[letter], axis)
            letters.setdefault(letter, axis)
            if trace.is_parameter(operand):
                back = dim - len(term)
                if letter in output:
                    is_expert = is_stack and any(letter in other for other in moving)
                    trace.role(operand, back, "carried" if is_expert else "incoming")
                    ax.mark(axis, "experts") if is_expert else None
                elif activations:
                    trace.consume(node, activations[0], operand, back)
    if len(moving) == 2 and not weights:
        both = [letter for letter in moving[0] if letter in moving[1]]
        outer = [letter for letter in output if letter not in both]
        heads = tuple(letters[letter] for letter in both if letter in output)
        for letter in both:
            if letter not in output:
                mark_attention(heads, [letters[letter] for letter in outer], letters[letter])
    for letter, axis in letters.items():
        if letter not in output and not weights:
            ax.mark(axis, "mixed")
    return tuple(letters[letter] for letter in output)


@rule("embedding")
def embedding(trace: Trace, node: Node) -> tuple[Axis, ...]:
    """A table look-up: the rows are indexed by data, the columns are produced."""
    weight, index = node.args[0], node.args[1]
    vocabulary, features = trace.of(weight)
    ax.freeze(vocabulary, "it is indexed by the data (a vocabulary or a position)")
    trace.role(weight, -2, "carried")
    trace.role(weight, -1, "incoming")
    return (*trace.of(index), features)


@rule("embedding_bag", "_embedding_bag", "_embedding_bag_forward_only")
def embedding_bag(trace: Trace, node: Node) -> Any:
    """Look-ups that are summed, averaged or maximised per bag, each column by itself."""
    weight, reason = node.args[0], "it is indexed by the data (a bag of categories)"
    vocabulary, features = trace.of(weight)
    ax.freeze(vocabulary, reason)
    trace.role(weight, -2, "carried")
    trace.role(weight, -1, "incoming")
    result, *others = trace.opaque(node, reason)
    return ((*result[:-1], features), *others)


@rule("bilinear")
def bilinear(trace: Trace, node: Node) -> tuple[Axis, ...]:
    """``y_o = x1 W_o x2 + b_o``: two dimensions of the weight consume, the first produces."""
    first, second, weight, bias = node.args[0], node.args[1], node.args[2], arg(node, 3, "bias")
    outputs, left, right = trace.of(weight)
    for source, axis, back in ((first, left, -2), (second, right, -1)):
        ax.tie(trace.of(source)[-1], axis)
        trace.consume(node, source, weight, back)
    for one, other in zip(trace.of(first)[:-1], trace.of(second)[:-1], strict=True):
        ax.tie(one, other)
    trace.role(weight, -3, "incoming")
    if bias is not None:
        ax.tie(trace.of(bias)[-1], outputs)
        trace.role(bias, -1, "incoming")
    return (*trace.of(first)[:-1], outputs)
