"""The derivative of a unit's activation function, read off the graph that autograd keeps of a forward pass."""

from __future__ import annotations

import heapq
import re
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge

__all__ = ["activation_derivative"]

_LINEAR = frozenset(["Add", "Sub", "Neg", "Rsub", "Clone", "ToCopy", "Alias", "NativeDropout", "MaskedFill", "Copy"])
_NONLINEAR = frozenset(
    [
        *("Relu", "LeakyRelu", "Gelu", "Silu", "Mish", "Elu", "Celu", "Selu", "Softplus", "Hardswish", "Hardsigmoid"),
        *("Hardtanh", "Threshold", "LogSigmoid", "RreluWithNoise", "PreluKernel", "Softshrink", "Hardshrink", "Sign"),
        *(
            "Tanh",
            "Sigmoid",
            "Sin",
            "Cos",
            "Tan",
            "Sinc",
            "Erf",
            "Erfc",
            "Exp",
            "Exp2",
            "Expm1",
            "Log",
            "Log1P",
            "Log2",
        ),
        *("Atan", "Asinh", "Sinh", "Cosh", "Abs", "Sqrt", "Rsqrt", "Pow", "Square", "Reciprocal", "Clamp", "ClampMin"),
        *("ClampMax", "Xlogy", "Logaddexp", "Logaddexp2", "NanToNum", "Lerp", "Addcmul", "Addcdiv", "Polar", "Round"),
    ]
)
_GATES = frozenset(["Mul", "Div", "Maximum", "Minimum", "Where", "Atan2"])  # nonlinear where both sides have a graph
_LAYOUT = frozenset(
    [
        *("View", "UnsafeView", "ReshapeAlias", "Transpose", "Permute", "T", "Expand", "Squeeze", "Unsqueeze", "Slice"),
        *("Select", "Cat", "Stack", "Split", "SplitWithSizes", "UnsafeSplit", "UnsafeSplitWithSizes", "Unbind"),
        *("Index", "IndexSelect", "Gather", "AsStrided", "Roll", "Flip", "Repeat", "ConstantPadNd", "Mean", "Unfold"),
        *("PixelShuffle", "PixelUnshuffle", "ChannelShuffle", "NativeChannelShuffle", "MaskedSelect"),
    ]
)
_POOL = re.compile(r"(Adaptive)?(Max|Avg)Pool\dD.*|MkldnnMaxPool.*|MeanBackward.*")
_MAP = re.compile(
    r"Addmm|Mm|Bmm|Baddbmm|Addbmm|Addmv|Mv|Dot|Linear|.*Conv.*|Embedding.*|.*Norm.*|ScaledDotProduct.*|.*Attention.*|"
    r"Softmax|LogSoftmax|Sum|Var|VarMean|Std|Amax|Amin|Cumsum|Logsumexp|TopK|Sort|Scatter.*"
)
_MAX_NODES = 200


def activation_derivative(act: Tensor, edge: GradientEdge | None = None) -> Tensor | str:
    r"""The derivative :math:`f'(z)` of the activation function that made a tensor, entry by entry.

    The graph is walked from the tensor down through operations that act on each entry alone, to the first that does
    not (a matrix product, a convolution, a norm): what reaches the first of them is :math:`z`. So it is exact for
    every activation function, module or functional, and for those that are written out (GPT-2's GELU is eight
    operations). Where two branches are multiplied (GLU, SwiGLU), each has a derivative, that of the product; the
    larger of the two in absolute value is returned, since a unit learns as long as one of them does. Between the
    activation and the tensor there may be views and pooling; then each entry has the derivative at the input that was
    pooled. Without any activation function the derivative is 1.

    Nothing is changed, and no gradient of the loss is needed.

    Args:
        act: Activations with their graph, of any shape.
        edge: Their place in the graph, where ``act`` may have been changed in place since.

    Returns:
        A tensor of the same shape and type, or in words why there is none: no graph, an operation that is not known
        (a fused recurrent layer, an ``autograd.Function``), or a recurrence that mixes units at many time steps.

    Example:
        >>> x = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
        >>> weight = torch.randn(4, 3, dtype=torch.float64)
        >>> z = x @ weight.T
        >>> assert torch.equal(activation_derivative(torch.relu(z)), (z > 0).double())
        >>> assert torch.allclose(activation_derivative(torch.tanh(z)), 1 - torch.tanh(z) ** 2)
        >>> activation_derivative(torch.randn(3))
        'it was computed without gradients'
    """
    if edge is None:
        if act.grad_fn is None:
            return "it was computed without gradients"
        edge = get_gradient_edge(act)
    try:
        branches = _branches(act, edge)
    except RuntimeError as error:  # a node that has freed what it kept, or has no second derivative
        return f"its graph cannot be followed ({str(error).splitlines()[0]})"
    if isinstance(branches, str):
        return branches
    branches = [branch for branch in branches if branch.shape == act.shape]
    if not branches:
        return "its activation function changes the shape"
    result = branches[0]
    for other in branches[1:]:
        result = torch.where(other.abs() > result.abs(), other, result)
    return result.detach()


def _branches(act: Tensor, edge: GradientEdge) -> list[Tensor] | str:
    """The derivative along each branch."""
    found = _walk(edge, torch.ones_like(act, requires_grad=False))
    if isinstance(found, str):
        return found
    branches, moved = found
    if not moved:
        return branches
    # views or pooling: the derivative in the layout of the activations is the transposed walk's
    vector = torch.zeros_like(act).requires_grad_()
    with torch.enable_grad():
        again = _walk(edge, vector)
        assert not isinstance(again, str)
        return [_transposed(branch, vector) for branch in again[0]]


def _transposed(branch: Tensor, vector: Tensor) -> Tensor:
    """What the linear map from ``vector`` to ``branch``, transposed, makes of ones."""
    if not branch.requires_grad:
        return torch.zeros_like(vector)
    (result,) = torch.autograd.grad(branch, vector, torch.ones_like(branch), retain_graph=True)
    return result


class _Front:
    """Nodes that were reached and not yet gone through, the latest made first, with what has come to each output."""

    def __init__(self) -> None:
        self.heap: list[tuple[int, int]] = []
        self.nodes: dict[int, Node] = {}
        self.grads: dict[int, dict[int, Tensor]] = {}
        self.bent: dict[int, bool] = {}

    def push(self, node: Node, slot: int, grad: Tensor, bent: bool) -> None:
        key = id(node)
        if key not in self.nodes:
            self.nodes[key] = node
            heapq.heappush(self.heap, (-node._sequence_nr(), key))
        slots = self.grads.setdefault(key, {})
        slots[slot] = slots[slot] + grad if slot in slots else grad
        self.bent[key] = self.bent.get(key, False) or bent

    def pop(self) -> tuple[Node, dict[int, Tensor], bool]:
        _, key = heapq.heappop(self.heap)
        return self.nodes[key], self.grads[key], self.bent[key]


def _walk(edge: GradientEdge, vector: Tensor) -> tuple[list[Tensor], bool] | str:
    """``vector`` sent back to the inputs of the activation function, and whether views or pooling lay between.

    The first point behind the nonlinear operations through which everything passes is the input; where there is none,
    each branch has one.
    """
    front, ends = _Front(), list[Tensor]()
    cut: Tensor | None = None
    front.push(edge.node, edge.output_nr, vector, False)
    any_bent = moved = curved = False
    for _ in range(_MAX_NODES):
        if not front.heap:
            break
        node, grads, bent = front.pop()
        name = re.sub(r"Backward\d*$", "", node.name())
        if curved and not front.heap and not ends and len(grads) == 1:
            cut, curved = next(iter(grads.values())), False
        kind = _kind(node, name, bent)
        if kind is None:
            return f"{node.name()} is not known as an activation function"
        if kind == "end":
            ends.extend(grads.values())
            continue
        if kind == "glu":
            (both,) = _back(node, grads)
            ends.extend(both.chunk(2, _dim(node)))
            any_bent = True
            continue
        moved |= kind == "layout"
        bent |= kind == "nonlinear"
        curved |= kind == "nonlinear"
        any_bent |= bent
        for (source, slot), grad in zip(node.next_functions, _back(node, grads), strict=True):
            if source is not None and grad is not None and not _is_leaf(source):
                front.push(source, slot, grad, bent)
    else:
        return "it is part of a recurrence over many time steps"
    if not any_bent:
        return [torch.ones_like(vector) + 0 * vector], False
    return ([cut] if cut is not None else ends), moved


def _kind(node: Node, name: str, bent: bool) -> str | None:
    """How a node is walked through: ``"linear"``, ``"nonlinear"``, ``"layout"``, ``"glu"``, or not: ``"end"``."""
    if name == "Glu":
        return "glu"
    if name in _NONLINEAR:
        return "nonlinear"
    if name in _GATES:
        return "nonlinear" if sum(_has_graph(source) for source, _ in node.next_functions) > 1 else "linear"
    if name in _LINEAR:
        return "linear"
    if name in _LAYOUT or _POOL.fullmatch(name):
        return "end" if bent else "layout"
    if _MAP.fullmatch(name) or _is_leaf(node):
        return "end"
    return None


def _dim(node: Node) -> int:
    dim: int = node._saved_dim  # type: ignore[attr-defined]
    return dim - 2**64 if dim >= 2**63 else dim  # kept as an unsigned number


def _has_graph(node: Node | None) -> bool:
    return node is not None and not _is_leaf(node)


def _is_leaf(node: Node) -> bool:
    return node.name() == "torch::autograd::AccumulateGrad"


def _back(node: Node, grads: dict[int, Tensor]) -> tuple[Any, ...]:
    """What one node makes of the gradients of its outputs; its own function is called, and no other."""
    given = [grads.get(slot) for slot in range(max(grads) + 1)]
    result = node(*given)  # type: ignore[operator]
    return result if isinstance(result, tuple) else (result,)
