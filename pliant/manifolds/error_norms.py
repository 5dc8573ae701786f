"""How an error passes through norms: affine maps of each unit, and statistics over units."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pliant.manifolds.error_rules import (
    Bounded,
    Known,
    NoBound,
    actual_of,
    bounded_of,
    centre_of,
    per_example,
    rule,
    split,
    summed,
    weight_of,
)
from pliant.manifolds.structure import TensorBlocks

__all__: list[str] = []


def _affine(
    centre: Tensor, x: tuple[Tensor, Tensor, Tensor], slopes: tuple[Tensor, Tensor], shifts: tuple[Tensor, Tensor],
    normed: Tensor, blocks: TensorBlocks | None, axis: str,
) -> Bounded:  # fmt: skip
    """A factor and an offset for each unit, in both networks, of a value whose error is bounded.

    Args:
        centre: The result on the manifold.
        x: Bounds of the mean over blocks, of the deviations and of all of the error.
        slopes: Factors on and off the manifold, broadcast.
        shifts: Offsets on and off the manifold, broadcast.
        normed: What is multiplied.
        blocks: Of the factors, where they are known; they are along one dimension.
        axis: Which one; empty where the units of the value are not along it.
    """
    (slope, real_slope), (shift, real_shift) = slopes, shifts
    most = summed(
        centre,
        [x[2] * float(real_slope.abs().max()), per_example(normed * (real_slope - slope) + real_shift - shift, centre)],
    )
    if blocks is None or not axis or slope.numel() != max(slope.shape) or len(most.error) != len(x[0]):
        return most

    def mean(values: Tensor) -> Tensor:
        return blocks.mean(values.flatten(), "shared", "receiving", "sending").view(slope.shape)

    even, even_shift = mean(real_slope), mean(real_shift.expand_as(real_slope))
    lean, lean_shift = real_slope - even, real_shift - even_shift
    largest, uneven = float(even.abs().max()), float(lean.abs().max())
    new_mean = largest * x[0] + uneven * x[1] + per_example(normed * (even - slope) + even_shift - shift, centre)
    new_dev = largest * x[1] + uneven * (x[0] + x[1]) + per_example(normed * lean + lean_shift, centre)
    return split(centre, new_mean, new_dev, most.error, axis)


def _blocks_of(*items: Any) -> TensorBlocks | None:
    """Of the first that is there, if all are parameters as they are."""
    found = [item for item in items if isinstance(item, Known)]
    return found[0].blocks if found and all(item.blocks is not None for item in found) else None


@rule("batch_norm")
def _(name: str, op: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
    """In evaluation mode: an affine map of each channel."""
    x, given = bounded_of(args[0]), args[1:5]
    eps = float(args[7])
    if given[2] is None or given[3] is None:
        raise NoBound("batch norm without running statistics")
    shape = [1, -1] + [1] * (x.centre.ndim - 2)

    def affine(of: Callable[[Any], Any]) -> tuple[Tensor, Tensor]:
        weight, bias, mean, var = (of(item) for item in given)
        slope = (var + eps).rsqrt() * (1 if weight is None else weight)
        return slope.view(shape), ((0 if bias is None else bias) - mean * slope).view(shape)

    (slope, shift), (real_slope, real_shift) = affine(centre_of), affine(actual_of)
    centre = x.centre * slope + shift
    errors = (*x.parts, x.error)
    axis = x.axis if x.axis == "channels" or x.centre.ndim == 2 else ""
    return _affine(centre, errors, (slope, real_slope), (shift, real_shift), x.centre, _blocks_of(*given), axis)


def _normalised(x: Bounded, rows: Tensor, eps: float) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    """Rows of mean square one, and the bounds of their error: of means, of deviations, of all.

    The Lipschitz constant of ``u / root``, with ``root = sqrt(mean(u^2) + eps)``, is at most two over the root at the
    centre, and at most one over the smallest root within the error. Deviations are normal to what is equal in blocks,
    so that they change the root in second order.
    """
    count = rows.shape[-1]
    root = (rows.square().mean(-1) + eps).sqrt()
    result = rows / root.unsqueeze(-1)
    flat = root.reshape(len(x.error), -1) if len(x.error) == len(x.centre) else root.reshape(1, -1)
    size = ((flat.square() - eps).clamp(min=0) * count).sqrt()
    least = ((size - x.error.unsqueeze(-1)).clamp(min=0).square() / count + eps).sqrt()
    slope = torch.minimum(2 / flat, 1 / least).amax(-1)
    mean, dev = x.parts
    error, smallest = x.error * slope, least.amin(-1)
    new_mean = torch.minimum(mean * slope + dev.square() / (2 * math.sqrt(count) * smallest.square()), error)
    return result, (new_mean, torch.minimum(dev / smallest, error), error)


def _are_inside(blocks: TensorBlocks, num_groups: int) -> bool:
    """Whether there are blocks, and each is normalised as a whole: only then deviations are normal to what is equal."""
    classes = blocks.classes("shared", "receiving", "sending")
    if len(blocks.shape) != 1 or not classes:
        return False
    size = blocks.shape[0] // num_groups
    own = classes[-1] // size
    return size > 1 and bool((own == torch.arange(blocks.shape[0]) // size).all())


@rule("layer_norm", "rms_norm", "group_norm")
def _(name: str, op: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
    x = bounded_of(args[0])
    is_rms = name == "rms_norm"
    weight, bias, given = ([*args[2:], None, None, None])[:3]
    bias, given = (None, bias) if is_rms else (bias, given)
    eps = float(given) if given is not None else torch.finfo(x.centre.dtype).eps if is_rms else 1e-5
    if name == "group_norm":
        rows = x.centre.reshape(len(x.centre), int(args[1]), -1)
        shape = [1, -1] + [1] * (x.centre.ndim - 2)
    else:
        rows = x.centre.flatten(x.centre.ndim - len(args[1]))
        shape = [1] * (x.centre.ndim - len(args[1])) + list(args[1])
    if not is_rms:
        rows = rows - rows.mean(-1, keepdim=True)
    normed, errors = _normalised(x, rows, eps)
    normed = normed.reshape(x.centre.shape)
    if weight is None and bias is None:
        return Bounded(normed, errors[2])

    def both(item: Any, otherwise: float) -> tuple[Tensor, Tensor]:
        if item is None:
            plain = torch.full(shape, otherwise, dtype=normed.dtype, device=normed.device)
            return plain, plain
        return weight_of(item).centre.view(shape), weight_of(item).actual.view(shape)

    slopes, shifts = both(weight, 1.0), both(bias, 0.0)
    blocks = _blocks_of(weight, bias)
    own = "channels" if name == "group_norm" and x.centre.ndim > 2 else "last"
    axis = own if x.axis == own or (x.axis and x.centre.ndim == 2) else ""
    if blocks is None or not axis or not _are_inside(blocks, rows.shape[1] if name == "group_norm" else 1):
        errors, axis = (errors[2],) * 3, ""
    return _affine(normed * slopes[0] + shifts[0], errors, slopes, shifts, normed, blocks, axis)
