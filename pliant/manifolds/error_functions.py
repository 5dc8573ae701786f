"""How an error passes through functions of single entries, sums, and whatever moves entries about."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pliant.manifolds.error_rules import (
    SOFTMAX,
    Bounded,
    Known,
    NoBound,
    actual_of,
    bounded_of,
    centre_of,
    each,
    fitted,
    keeps_examples,
    mapped,
    per_example,
    rule,
    run,
    split,
    summed,
)

__all__: list[str] = []


@rule("softmax", "_softmax")
def _(name: str, op: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
    return _lipschitz(op, args, kwargs, SOFTMAX)


@rule("pow")
def _(name: str, op: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
    x, power = bounded_of(args[0]), args[1]
    if not isinstance(power, (int, float)) or power != int(power) or power < 1:
        raise NoBound(f"a power of {power}")
    largest = float(x.centre.abs().max()) + float(x.error.max())
    bend = power * (power - 1) * largest ** (power - 2) if power > 1 else 0.0
    return _of_entries(op(x.centre, power), x, power * largest ** (power - 1), 0.5 * bend * x.error.square())


_SLOPES: dict[str, tuple[float, float | None]] = {
    "tanh": (1.0, 0.77), "sigmoid": (0.25, 0.0963), "gelu": (1.13, 0.81), "silu": (1.1, 0.501), "softplus": (1.0, None),
    "sin": (1.0, 1.0), "cos": (1.0, 1.0), "neg": (1.0, 0.0), "relu6": (1.0, None), "abs": (1.0, None),
    "hardtanh": (1.0, None), "hardsigmoid": (1 / 6, None), "hardswish": (1.5, None), "mish": (1.1, None),
    "selu": (1.76, None), "softsign": (1.0, None), "clamp": (1.0, None), "log_sigmoid": (1.0, 0.25),
}  # fmt: skip
"""The largest slope of functions of single entries and the largest slope of that (rounded up); ``None``: has jumps."""


@rule(*_SLOPES)
def _(name: str, op: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
    slope, bend = _SLOPES[name]
    return _lipschitz(op, args, kwargs, slope, bend)


@rule("dropout", "feature_dropout", "alpha_dropout")
def _(name: str, op: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
    return bounded_of(args[0])


@rule("relu", "leaky_relu")
def _(name: str, op: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
    """Linear, as long as no entry changes its sign: what does is beyond its distance from zero."""
    x = bounded_of(args[0])
    below = 0.0 if name == "relu" else float(args[1]) if len(args) > 1 else float(kwargs.get("negative_slope", 0.01))
    source, rest = (x.source, x.rest) if x.source is not None and x.rest is not None else (0.0, x.error)
    margin = x.centre.abs() - abs(source) if isinstance(source, Tensor) else x.centre.abs()
    by_example = len(rest) == len(margin) and margin.ndim > 1
    rows = margin.flatten(1) if by_example else margin.reshape(1, -1)
    bent = rows.clamp(max=0).norm(dim=1) + (rest - rows.clamp(min=0).amin(1)).clamp(min=0)
    return _of_entries(op(x.centre, *args[1:], **kwargs), x, max(1.0, abs(below)), abs(1 - below) * bent)


@rule("elu")
def _(name: str, op: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
    numbers = [abs(float(item)) for item in (*args[1:], *kwargs.values()) if isinstance(item, (int, float))]
    slope = math.prod(max(1.0, number) for number in numbers)
    return _lipschitz(op, args, kwargs, slope, 1.0 if all(number == 1 for number in numbers) else None)


def _lipschitz(op: Any, args: list[Any], kwargs: dict[str, Any], slope: float, bend: float | None = None) -> Bounded:
    """A function with a largest slope; of single entries, if it has a largest bend, too."""
    x = bounded_of(args[0])
    if any(isinstance(item, (Known, Bounded)) for item in args[1:]):
        raise NoBound("a function with weights of its own")
    centre = op(x.centre, *args[1:], **kwargs)
    if bend is None:
        return Bounded(centre, fitted(x.error, centre, x.centre) * slope)
    return _of_entries(centre, x, slope, 0.5 * bend * x.error.square())


def _of_entries(centre: Tensor, x: Bounded, slope: float, bent: Tensor) -> Bounded:
    """A function of single entries that is linear up to an error of norm ``bent``."""
    most = x.error * slope
    mean, dev = (torch.minimum(part * slope + bent, most) for part in x.parts)
    return split(centre, mean, dev, most, x.axis)


@rule("add", "sub")
def _(name: str, op: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
    factor = abs(float(kwargs.get("alpha", 1)))
    centre = run(op, args, kwargs, centre_of)
    moved = per_example(run(op, args, kwargs, actual_of) - centre, centre)  # of weights among them
    terms = [_spread(item, centre) for item in args[:2] if isinstance(item, Bounded)]
    factors = [1.0 if place == 0 else factor for place, item in enumerate(args[:2]) if isinstance(item, Bounded)]
    weights = [item for item in args[:2] if isinstance(item, Known)]
    is_deviation = all(item.blocks is not None and not item.blocks.has("sending") for item in weights)
    nothing = torch.zeros_like(moved)

    def total(which: int, more: Tensor) -> Tensor:
        return summed(centre, [*(term[which] * f for term, f in zip(terms, factors, strict=True)), more]).error

    mean = total(0, nothing if is_deviation else moved)
    return split(centre, mean, total(1, moved), total(2, moved), _common(centre, args[:2]))


def _common(centre: Tensor, items: Sequence[Any]) -> str:
    """Where the units of several activations are, if that is the same dimension."""
    axes = {item.axis_of(centre) for item in items if isinstance(item, Bounded)}
    return axes.pop() if len(axes) == 1 else ""


def _spread(item: Any, centre: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The errors of one term, which may be broadcast: of means, of deviations, of all."""
    if not isinstance(item, Bounded):
        zero = centre.new_zeros(len(centre) if centre.ndim else 1)
        return zero, zero, zero
    copies = math.sqrt(centre.numel() / max(item.centre.numel(), 1))
    by_example = item.centre.shape == centre.shape or (
        item.centre.ndim == centre.ndim and len(item.centre) == len(centre)
    )
    found = [error * copies if by_example else error.norm().reshape(1) * copies for error in (*item.parts, item.error)]
    return found[0], found[1], found[2]


@rule("mul", "div")
def _(name: str, op: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
    one, two = args[0], args[1]
    is_division = name == "div"
    centre = run(op, args, kwargs, centre_of)
    if isinstance(one, Bounded) and isinstance(two, Bounded):
        if is_division:
            raise NoBound("a quotient of activations")
        a, b = _spread(one, centre), _spread(two, centre)
        if len(a[0]) != len(b[0]):
            a, b = (tuple(error.norm().reshape(1) for error in errors) for errors in (a, b))
        sizes = float(two.centre.abs().max()), float(one.centre.abs().max())
        mean, dev, error = (x * sizes[0] + y * sizes[1] + a[2] * b[2] for x, y in zip(a, b, strict=True))
        return split(centre, mean, dev, error, _common(centre, args[:2]))
    x, other = (one, two) if isinstance(one, Bounded) else (two, one)
    if is_division and x is two:
        raise NoBound("a quotient of activations")
    factor = actual_of(other)
    largest = float(torch.as_tensor(1 / factor if is_division else factor).abs().max())
    moved = run(op, args, kwargs, actual_of) - centre
    mean, dev, error = _spread(x, centre)
    if not bool(moved.any()) and torch.as_tensor(factor).numel() == 1:
        return split(centre, mean * largest, dev * largest, error * largest, x.axis_of(centre))
    return summed(centre, [error * largest, per_example(moved, centre)])


_ARRANGED = (
    "view", "reshape", "_unsafe_view", "flatten", "unflatten", "permute", "transpose", "t", "movedim", "unsqueeze",
    "squeeze", "contiguous", "clone", "detach", "alias", "slice", "narrow", "select", "unbind", "split", "chunk",
    "split_with_sizes", "to", "_to_copy", "constant_pad_nd", "pad", "tensor_split", "flip", "roll", "lift_fresh_copy",
    "type_as", "expand",
)  # fmt: skip
"""What moves entries, or leaves some out."""


@rule(*_ARRANGED)
def _(name: str, op: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
    x = bounded_of(args[0])
    if any(isinstance(item, Bounded) for item in args[1:]):
        raise NoBound("an index that is computed")
    if name in ("pad", "constant_pad_nd") and any(isinstance(item, str) and item != "constant" for item in args):
        raise NoBound("padding by reflection")
    result = op(x.centre, *[mapped(item, centre_of) for item in args[1:]], **kwargs)
    tensors = result if isinstance(result, (list, tuple)) else [result]
    ordered = name in ("view", "reshape", "_unsafe_view", "flatten", "unflatten", "contiguous", "clone", "detach")
    ordered = ordered or (name in ("permute", "transpose") and _keeps_first(name, args, x.centre.ndim))
    ordered = ordered or (name in ("slice", "select", "split", "chunk") and _dim(name, args) % x.centre.ndim != 0)
    keeps_units = name in _IN_ORDER or (name in ("slice", "select") and _dim(name, args) % x.centre.ndim != _place(x))
    found = []
    for item in tensors:
        copies = math.sqrt(item.numel() / max(x.centre.numel(), 1)) if name == "expand" else 1.0
        result_of = x.scaled(item, copies, by_example=ordered and keeps_examples(x, item))
        found.append(result_of if keeps_units else replace(result_of, axis=""))
    return tuple(found) if isinstance(result, (list, tuple)) else found[0]


_IN_ORDER = (
    "view", "reshape", "_unsafe_view", "flatten", "unflatten", "contiguous", "clone", "detach", "alias", "expand", "to",
    "_to_copy", "lift_fresh_copy", "type_as",
)  # fmt: skip


def _place(x: Bounded) -> int:
    """The dimension of the units."""
    return 1 if x.axis == "channels" else x.centre.ndim - 1


def _keeps_first(name: str, args: list[Any], ndim: int) -> bool:
    if name == "permute":
        order: Sequence[int] = args[1]
        return bool(order[0] % ndim == 0)
    return bool(args[1] % ndim != 0 and args[2] % ndim != 0)


def _dim(name: str, args: list[Any]) -> int:
    place = 1 if name in ("slice", "select") else 2
    return int(args[place]) if len(args) > place else 0


@rule("cat", "stack")
def _(name: str, op: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
    items = list(args[0])
    dim = int(args[1]) if len(args) > 1 else 0
    centre = run(op, args, kwargs, centre_of)
    moved = per_example(run(op, args, kwargs, actual_of) - centre, centre)
    acts = [item for item in items if isinstance(item, Bounded)]
    rows = all(len(item.error) == len(centre) for item in acts) and dim % centre.ndim != 0
    errors = []
    for which in range(3):
        squares = [(*item.parts, item.error)[which].square() for item in acts]
        total = torch.stack(squares).sum(0) if rows else torch.stack([square.sum() for square in squares]).sum()
        errors.append(summed(centre, [total.sqrt().reshape(-1), moved]).error)
    return split(centre, errors[0], errors[1], errors[2], _common(centre, items) if dim % centre.ndim == 1 else "")


@rule("mean", "sum")
def _(name: str, op: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
    x = bounded_of(args[0])
    centre = op(x.centre, *args[1:], **kwargs)
    count = x.centre.numel() / max(centre.numel(), 1)
    is_mean = name == "mean"
    factor = 1 / math.sqrt(count) if is_mean else math.sqrt(count)
    dims = args[1] if len(args) > 1 and args[1] else []
    keeps = bool(dims) and all(dim % x.centre.ndim for dim in ([dims] if isinstance(dims, int) else dims))
    result = x.scaled(centre, factor, by_example=keeps and keeps_examples(x, centre))
    gone = {dim % x.centre.ndim for dim in ([dims] if isinstance(dims, int) else dims)}
    return result if dims and _place(x) not in gone else replace(result, axis="")


@rule("max_pool1d", "max_pool2d", "max_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d")
def _(name: str, op: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
    x = bounded_of(args[0])
    space = int(name[-2])
    kernel = each(args[1], space)
    stride = each(args[2], space) if len(args) > 2 and args[2] else kernel
    if len(args) > 4 and any(each(args[4], space)) and "max_pool" in name and each(args[4], space) != [1] * space:
        raise NoBound("a dilated pool")
    overlap = math.prod(math.ceil(k / s) for k, s in zip(kernel, stride, strict=True))
    gain = math.sqrt(overlap / (1 if "max_pool" in name else math.prod(kernel)))
    if "avg_pool" in name and len(args) > 5 and args[5] is False:
        gain = math.sqrt(overlap)  # windows at the border have fewer entries
    centre = op(x.centre, *args[1:], **kwargs)
    if "max_pool" in name:
        return Bounded(centre, fitted(x.error, centre, x.centre) * gain)
    result = x.scaled(centre, gain, by_example=keeps_examples(x, centre))
    return result if x.axis == "channels" else replace(result, axis="")


@rule("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d")
def _(name: str, op: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
    x = bounded_of(args[0])
    centre = op(x.centre, *args[1:], **kwargs)
    space = int(name[-2])
    before, after = x.centre.shape[-space:], centre.shape[-space:]
    if any(b % a for b, a in zip(before, after, strict=True)):
        raise NoBound("an adaptive pool whose windows overlap")
    gain = math.sqrt(math.prod(after) / math.prod(before))
    result = x.scaled(centre, gain, by_example=keeps_examples(x, centre))
    return result if x.axis == "channels" else replace(result, axis="")
