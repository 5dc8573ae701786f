"""What all metrics ask of their inputs, in one place."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


def floating(tensor: Tensor, *, axes: int, what: str) -> Tensor:
    """The tensor, without its gradient, in the precision that is measured in.

    Args:
        tensor: Any real tensor, shape ``[..., *axes]``.
        axes: How many trailing axes are not ensemble members; each of them must hold at least one entry.
        what: The argument as the caller knows it, for the message.

    Returns:
        ``float64`` if the input is, ``float32`` otherwise, on the input's device.

    Raises:
        ValueError: If the input is no tensor, complex, has too few axes, or is empty.
    """
    check_shape(tensor, axes=axes, what=what)
    if tensor.is_complex():
        raise ValueError(f"{what} is complex ({tensor.dtype}); pass its real measure, for instance .abs()")
    return tensor.detach().to(torch.float64 if tensor.dtype == torch.float64 else torch.float32)


def check_shape(tensor: Tensor, *, axes: int, what: str) -> None:
    """Refuse what has too few axes or no entries; the value of nothing is not defined.

    Raises:
        ValueError: If the input is no tensor, has fewer than ``axes`` axes, or is empty.
    """
    if not isinstance(tensor, Tensor):
        raise ValueError(f"{what} must be a tensor, not {type(tensor).__name__}")
    if tensor.ndim < axes:
        raise ValueError(f"{what} needs at least {axes} axes, but has shape {tuple(tensor.shape)}")
    if tensor.numel() == 0:
        raise ValueError(f"{what} is empty (shape {tuple(tensor.shape)}): nothing can be measured on it")


def all_finite(tensor: Tensor, *, axes: int) -> Tensor:
    """Per member, whether every entry over the last ``axes`` axes is finite: bool ``[...]``."""
    return torch.isfinite(tensor).flatten(-axes).all(-1)


def nan_where_broken(value: Tensor, finite: Tensor) -> Tensor:
    """``value`` where ``finite``, NaN elsewhere; both of shape ``[...]``."""
    return value.masked_fill(~finite, float("nan"))


def on_share_of_samples(condition_NU: Tensor, share: float) -> Tensor:
    """Where a condition holds on more than this share of the samples, or on all of them: bool ``[..., U]``.

    Raises:
        ValueError: If ``share`` is not in ``[0, 1]``.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share must be in [0, 1], not {share}")
    everywhere = condition_NU.all(-2)
    # Counted as whole numbers, so that the share of a large batch is not rounded.
    return everywhere if share == 1 else (condition_NU.sum(-2) > share * condition_NU.shape[-2]) | everywhere


def same_members(tensors: Iterable[Tensor], *, members: bool, what: str) -> list[Tensor]:
    """A collection of tensors as rows, one per member: ``[S, n]`` each, S = 1 without members.

    Raises:
        ValueError: If nothing is given, or a bare tensor, one is no tensor or empty, or leading axes differ.
    """
    if isinstance(tensors, Tensor):
        raise ValueError(f"{what} must be a collection of tensors; wrap a single one in a list")
    rows = [floating(tensor, axes=int(members), what=f"{what}[{i}]") for i, tensor in enumerate(tensors)]
    if not rows:
        raise ValueError(f"{what} holds no tensors: a measure of nothing is not defined")
    if members and len({len(row) for row in rows}) > 1:
        raise ValueError(f"{what} disagree on the number of members: {[len(row) for row in rows]}")
    return [row.reshape(len(row) if members else 1, -1) for row in rows]


def norm_of_rows(rows: list[Tensor]) -> Tensor:
    """Euclidean norm over all entries of each member, ``[S]``; NaN where an entry is not finite.

    Squares are taken relative to the largest entry, so that they stay in range whatever the scale.
    """
    largest = rows[0].abs().amax(-1)
    for row in rows[1:]:
        largest = torch.maximum(largest, row.abs().amax(-1))
    divisor = torch.where(largest == 0, torch.ones_like(largest), largest)
    total = torch.zeros_like(largest)
    for row in rows:
        total = total + (row / divisor.unsqueeze(-1)).square().sum(-1)
    norm = total.sqrt() * divisor
    return norm.masked_fill(~torch.isfinite(norm), float("nan"))


def centre_columns(matrix: Tensor, precision: torch.dtype) -> Tensor:
    """Every column minus its mean; exactly 0 where a column is constant up to the rounding of its first precision.

    Args:
        matrix: Finite, shape ``[..., N, U]``.
        precision: The type that the data came in: what it rounded away is no variation.
    """
    shifted = matrix - matrix[..., :1, :]
    eps = torch.finfo(precision).eps if precision.is_floating_point else 0.0
    spread = matrix.amax(-2, keepdim=True) - matrix.amin(-2, keepdim=True)
    constant = spread <= 4 * eps * matrix.abs().amax(-2, keepdim=True)
    return (shifted - shifted.mean(-2, keepdim=True)).masked_fill(constant, 0.0)


def prepared_matrix(matrix: Tensor, centred: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The matrices with a largest entry of 1, what they were divided by ``[..., 1]``, and which are finite ``[...]``.

    Members that are not finite become zero, because a decomposition may raise on NaN.
    """
    precision = matrix.dtype if isinstance(matrix, Tensor) else torch.float32
    matrix = floating(matrix, axes=2, what="matrix")
    if centred and matrix.shape[-2] == 1:
        raise ValueError("one sample minus its mean is nothing; pass two samples or more, or centred=False")
    finite = all_finite(matrix, axes=2)
    matrix = matrix.masked_fill(~finite[..., None, None], 0.0)
    if centred:
        matrix = centre_columns(matrix, precision)
    largest = matrix.abs().amax((-2, -1), keepdim=True)
    scale = torch.where(largest == 0, torch.ones_like(largest), largest)
    return matrix / scale, scale.squeeze(-1), finite
