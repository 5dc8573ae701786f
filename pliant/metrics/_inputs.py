"""What all metrics ask of their inputs, in one place."""

from __future__ import annotations

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
