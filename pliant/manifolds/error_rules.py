r"""How an error of weights and activations passes through single operations, as a bound on its Euclidean norm.

Every activation is a *centre*, its value :math:`\hat h` in the network whose weights :math:`\hat W` are on the
manifold, and bounds on the norm of the difference to the network that is off it; for each example, where the first
dimension still is that of examples. The difference has two parts: its mean over each block, and deviations inside
blocks. Of weights that are off the manifold by a normal :math:`E`, activations that are equal in blocks make deviations
only, and deviations make means only through :math:`E` again,

.. math:: \delta_{mean}' \le \lVert\hat W_{BC}\rVert\,\delta_{mean} + \lVert E_{out}\rVert\,\delta_{dev}, \qquad
          \delta_{dev}' \le \lVert\hat W - \hat W_{BC}\rVert\,\delta_{dev} + \lVert E_{in}\rVert\,\delta_{mean}
          + \lVert E_{in}\hat h\rVert ,

with the parts of :math:`E` that break incoming and outgoing sums. Smooth functions of single entries mix the two in
second order. So what reaches the outputs, where there are no blocks, is of second order in the distance, as the
true change is. Where an operation has no such rule (attention, the largest of a window), both parts are bounded by
their sum.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pliant.manifolds.structure import TensorBlocks

__all__ = [
    *("RULES", "SOFTMAX", "Bounded", "Known", "NoBound", "Rule"),
    *("actual_of", "bounded_of", "centre_of", "each", "fitted", "keeps_examples"),
    *("mapped", "per_example", "rule", "run", "split", "summed", "weight_of"),
]


class NoBound(Exception):
    """An operation has no rule."""


@dataclass(frozen=True)
class Known:
    """A tensor that is known in both networks: weights and what is made of them, or nothing that differs."""

    centre: Any
    actual: Any
    blocks: TensorBlocks | None = None
    """The blocks of the parameter that it is; ``None`` of what is made of parameters."""


@dataclass(frozen=True)
class Bounded:
    """An activation: its value on the manifold, and bounds on how far the other one is, ``[B]`` or one number each.

    Attributes:
        centre: The value on the manifold.
        error: Norm of the difference.
        mean: Norm of its mean over blocks; ``None`` where no more is known than ``error``.
        dev: Norm of the deviations from that.
        axis: Along which dimension the blocks of these parts lie: the ``"last"``, the second (``"channels"``), or,
            empty, not known, and then neither part is.
        source: A part of the difference that is known, entry by entry; ``rest`` bounds what is left.
        rest: The norm of the difference without ``source``.
    """

    centre: Tensor
    error: Tensor
    mean: Tensor | None = None
    dev: Tensor | None = None
    axis: str = ""
    source: Tensor | None = None
    rest: Tensor | None = None

    @property
    def parts(self) -> tuple[Tensor, Tensor]:
        """Bounds of the mean over blocks and of the deviations."""
        if self.mean is None or self.dev is None or not self.axis:
            return self.error, self.error
        return self.mean, self.dev

    def scaled(self, centre: Tensor, factor: float, *, by_example: bool) -> Bounded:
        """Another value whose error is that of this one, times a factor, in both of its parts."""
        mean, dev, error = (
            error * factor if by_example else error.norm().reshape(1) * factor for error in (*self.parts, self.error)
        )
        return split(centre, mean, dev, error, self.axis_of(centre))

    def axis_of(self, centre: Tensor) -> str:
        """Where the units are in a value whose entries lie in the same order, or that lost other dimensions."""
        if self.axis == "last" and centre.ndim and centre.shape[-1] == self.centre.shape[-1]:
            return "last"
        if self.axis == "channels" and centre.ndim == 2 and len(centre) == len(self.centre):
            return "last"
        is_kept = self.axis == "channels" and centre.ndim > 2 and centre.shape[:2] == self.centre.shape[:2]
        return "channels" if is_kept else ""


def split(centre: Tensor, mean: Tensor, dev: Tensor, most: Tensor, axis: str) -> Bounded:
    """A value from the bounds of both parts of its error, and of all of it."""
    if not axis:
        return Bounded(centre, most)
    error = torch.minimum((mean.square() + dev.square()).sqrt(), most)
    return Bounded(centre, error, torch.minimum(mean, error), torch.minimum(dev, error), axis)


Rule = Callable[[str, Callable[..., Any], list[Any], dict[str, Any]], Any]
"""Takes the name of an operation, the operation, its positional and its keyword arguments."""
RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a rule for operations by name."""

    def add(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return add


def per_example(difference: Tensor, like: Tensor) -> Tensor:
    """Norms of a difference, one for each example where ``like`` counts them, else one of all."""
    rows = len(like) if like.ndim and difference.numel() and len(difference) == len(like) else 1
    norms: Tensor = torch.linalg.vector_norm(difference.flatten().view(rows, difference.numel() // rows), dim=1)
    return norms


def centre_of(item: Any) -> Any:
    """The value on the manifold."""
    return item.centre if isinstance(item, (Known, Bounded)) else item


def actual_of(item: Any) -> Any:
    """Of weights the other network's; of activations those on the manifold."""
    return item.actual if isinstance(item, Known) else centre_of(item)


def run(op: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any], of: Callable[[Any], Any]) -> Any:
    """An operation on plain tensors."""
    return op(*mapped(list(args), of), **{key: mapped(item, of) for key, item in kwargs.items()})


def mapped(item: Any, of: Callable[[Any], Any]) -> Any:
    """Applied inside lists."""
    return [mapped(one, of) for one in item] if isinstance(item, (list, tuple)) else of(item)


def keeps_examples(x: Bounded, centre: Tensor) -> bool:
    """Whether errors by example still are that of another value."""
    return bool(centre.ndim and x.centre.ndim and len(centre) == len(x.centre) == len(x.error))


def fitted(error: Tensor, centre: Tensor, before: Tensor) -> Tensor:
    """Errors by example, as long as the first dimension still is that of examples."""
    keeps = centre.ndim and before.ndim and len(centre) == len(before) == len(error)
    return error if keeps else error.norm().reshape(1)


def summed(centre: Tensor, errors: list[Tensor]) -> Bounded:
    """A value whose error is at most a sum of others: by example where all of them are."""
    if not centre.ndim or any(len(error) != len(centre) for error in errors):
        errors = [error.norm().reshape(1) for error in errors]
    return Bounded(centre, torch.stack(errors).sum(0))


Gain = Callable[[Tensor], float]
"""The largest factor by which an operation with these weights makes a norm larger."""


def _linear(
    op: Callable[..., Any], args: list[Any], kwargs: dict[str, Any], x: Bounded, weight: Known, gain: Gain, axis: str
) -> Bounded:
    """An operation that is affine in one activation, with weights that differ, along an axis."""
    if x.centre.ndim == 2 and x.axis and axis:  # the second dimension is the last one
        axis, x = "last", replace(x, axis="last")
    if x.axis != axis:  # blocks along another dimension: of those along this one nothing is known
        x = replace(x, axis="")
    centre = run(op, args, kwargs, centre_of)
    source = run(op, args, kwargs, actual_of) - centre
    made = [*(error if keeps_examples(x, centre) else error.norm().reshape(1) for error in (*x.parts, x.error))]
    known = per_example(source, centre)
    if len(known) != len(made[0]):
        made, known = [error.norm().reshape(1) for error in made], known.norm().reshape(1)
    mean, dev, error = made
    most = error * gain(weight.actual) + known
    if weight.blocks is None or weight.blocks.has("shared") or not all(_has_blocks(item) for item in args[:3]):
        return Bounded(centre, most)
    on, off = weight.centre, weight.actual - weight.centre
    equal = weight.blocks.mean(on, "receiving", "sending")
    out, into = weight.blocks.mean(off, "receiving"), weight.blocks.mean(off, "sending")
    among = gain(on - equal) + gain(off - out - into)
    new_mean = gain(equal) * mean + gain(out) * dev
    left = gain(into) * mean + among * dev
    result = split(centre, new_mean, left + known, most, axis)
    return replace(result, source=source, rest=new_mean + left) if axis else result


def _has_blocks(item: Any) -> bool:
    """Whether a weight is a parameter as it is (or not there at all), so that its blocks are known."""
    return not isinstance(item, Known) or item.blocks is not None or item.centre is item.actual


def _spectral(matrix: Tensor) -> float:
    """The largest singular value; of large matrices a bound of it."""
    if matrix.numel() == 0:
        return 0.0
    if matrix.numel() > 4_000_000:
        return float((matrix.abs().sum(0).max() * matrix.abs().sum(1).max()).sqrt())
    return float(torch.linalg.matrix_norm(matrix, 2)) * (1 + 1e-9)


@rule("linear")
def _(name: str, op: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
    return _linear(op, args, kwargs, bounded_of(args[0]), weight_of(args[1]), _spectral, "last")


@rule("addmm")
def _(name: str, op: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
    if kwargs:
        raise NoBound("addmm with factors")
    return _linear(op, args, kwargs, bounded_of(args[1]), weight_of(args[2]), _spectral, "last")


@rule("mm", "matmul", "bmm")
def _(name: str, op: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
    one, two = args[0], args[1]
    if not isinstance(one, Known) and not isinstance(two, Known):
        return _product(op, bounded_of(one), bounded_of(two))
    weight, x = (one, bounded_of(two)) if isinstance(one, Known) else (two, bounded_of(one))
    if weight.centre.ndim > 2 and weight.centre.shape[:-2] != x.centre.shape[:-2]:
        raise NoBound("a product that repeats one of its factors")
    return _linear(op, args, kwargs, x, weight_of(weight), _spectral_of_all, "last" if weight is two else "")


def _spectral_of_all(matrices: Tensor) -> float:
    if matrices.ndim < 2:
        return float(matrices.norm())
    return max((_spectral(matrix) for matrix in matrices.reshape(-1, *matrices.shape[-2:])), default=0.0)


def _product(op: Any, one: Bounded, two: Bounded) -> Bounded:
    """A product of two activations, matrix by matrix."""
    if one.centre.shape[:-2] != two.centre.shape[:-2]:
        raise NoBound("a product that repeats one of its factors")
    centre = op(one.centre, two.centre)
    a, b = fitted(one.error, centre, one.centre), fitted(two.error, centre, two.centre)
    a, b = (a, b) if len(a) == len(b) else (a.norm().reshape(1), b.norm().reshape(1))
    return Bounded(centre, a * _spectral_of_all(two.centre) + b * _spectral_of_all(one.centre) + a * b)


def weight_of(item: Any) -> Known:
    """A weight; nothing that depends on the input."""
    if not isinstance(item, Known):
        raise NoBound("a weight that depends on the input")
    return item


def bounded_of(item: Any) -> Bounded:
    """An activation; nothing else will do."""
    if isinstance(item, Bounded):
        return item
    raise NoBound("an operation that has no activation where one is expected")


@rule("conv1d", "conv2d", "conv3d")
def _(name: str, op: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
    if kwargs or any(isinstance(item, str) for item in args):
        raise NoBound("a convolution with padding by name")
    weight = weight_of(args[1])
    space = weight.actual.ndim - 2
    stride, dilation = (each(args[i], space) if len(args) > i else [1] * space for i in (3, 5))
    groups = int(args[6]) if len(args) > 6 else 1
    steps = [s if d == 1 else 1 for s, d in zip(stride, dilation, strict=True)]

    def gain(kernel: Tensor) -> float:
        """The least of two bounds: offset by offset, and of the matrix that patches are multiplied by."""
        overlap = math.prod(math.ceil(k / s) for k, s in zip(kernel.shape[2:], steps, strict=True))
        found = [
            min(sum(_spectral(o) for o in p.flatten(2).unbind(-1)), math.sqrt(overlap) * _spectral(p.flatten(1)))
            for p in kernel.chunk(groups)
        ]
        return max(found)

    return _linear(op, args, kwargs, bounded_of(args[0]), weight, gain, "channels")


def each(value: Any, count: int) -> list[int]:
    """One number for each dimension of space."""
    values = [int(item) for item in value] if isinstance(value, (list, tuple)) else [int(value)]
    return values * count if len(values) == 1 else values


@rule("embedding")
def _(name: str, op: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
    table = args[0]
    if not isinstance(table, Known) or isinstance(args[1], Bounded):
        raise NoBound("an embedding of activations")
    centre = run(op, args, kwargs, centre_of)
    error = per_example(run(op, args, kwargs, actual_of) - centre, centre)
    is_deviation = table.blocks is not None and not table.blocks.has("shared")
    return split(centre, torch.zeros_like(error), error, error, "last") if is_deviation else Bounded(centre, error)


@rule("scaled_dot_product_attention")
def _(name: str, op: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
    query, key, value = (bounded_of(item) for item in args[:3])
    options = dict(zip(("attn_mask", "dropout_p", "is_causal"), args[3:], strict=False)) | kwargs
    mask = centre_of(options.get("attn_mask"))
    if options.get("enable_gqa") or isinstance(options.get("attn_mask"), Bounded):
        raise NoBound("attention with shared keys or a computed mask")
    scale = options.get("scale")
    scale = query.centre.shape[-1] ** -0.5 if scale is None else float(scale)
    scores = query.centre @ key.centre.mT * scale
    if options.get("is_causal"):
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask
    weights = scores.softmax(-1)
    product = _product(torch.matmul, query, Bounded(key.centre.mT, key.error))
    error = product.error * abs(scale) * SOFTMAX
    return _product(torch.matmul, Bounded(weights, error), value)


SOFTMAX = 0.5  # the largest eigenvalue of diag(p) - p p' over all distributions
