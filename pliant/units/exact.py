"""Running a model in full precision and without chance, for checks that compare two runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pliant.errors import IllegalConfiguration

__all__ = ["MOST_OPERATIONS", "FullPrecision", "NoNoise"]

MOST_OPERATIONS = 1_000_000

_SHORT = (torch.float32, torch.float16, torch.bfloat16)


class FullPrecision(TorchFunctionMode):
    """Float64 wherever the model itself asks for a shorter floating-point type.

    Models cast their inputs (``images.float()``), normalise in float32, or make tensors of the default type; the
    permutation check needs all of it in float64 to tell a forgotten member from rounding.

    Example:
        >>> with FullPrecision():
        ...     torch.arange(3).float().dtype, torch.zeros(2).dtype, torch.ones(2, dtype=torch.float16).dtype
        (torch.float64, torch.float64, torch.float64)
    """

    def __enter__(self) -> FullPrecision:
        """Make float64 the default, too."""
        self._before = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        """Restore the default."""
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        torch.set_default_dtype(self._before)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Replace the type in the arguments of one call."""
        if func in _CASTS:
            return args[0].to(torch.float64)
        args = tuple(torch.float64 if item in _SHORT else item for item in args) if _has_dtype(args) else args
        kwargs = {key: torch.float64 if _is_short(item) else item for key, item in (kwargs or {}).items()}
        return func(*args, **kwargs)


_CASTS = (Tensor.float, Tensor.half, Tensor.bfloat16)


def _is_short(item: Any) -> bool:
    return isinstance(item, torch.dtype) and item in _SHORT


def _has_dtype(args: Any) -> bool:
    return any(_is_short(item) for item in args)


class NoNoise(TorchFunctionMode):
    """Noise that is drawn entry by entry becomes one constant, the same for every unit.

    Noise does not prefer one unit to another, so a network with noise on its units has the symmetry in law; two runs
    can only be compared when the noise is permuted with the units, and a constant is. Samples from categories
    (``multinomial``) stay as they are: the checks use the same seed for every run. A run that does not end, because a
    loop waits for values that random parameters never give, is stopped.

    Raises:
        IllegalConfiguration: After a million operations.

    Example:
        >>> with NoNoise():
        ...     torch.randn_like(torch.zeros(2)).tolist(), torch.bernoulli(torch.tensor([0.25, 0.75])).tolist()
        ([0.5, 0.5], [0.0, 1.0])
    """

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Replace one call that draws."""
        self.count += 1
        if self.count > MOST_OPERATIONS:
            raise IllegalConfiguration(
                f"the model did not end within {MOST_OPERATIONS} operations on random parameters: a loop waits for "
                "values that they never give. pliant.declare_units checks near the model's own parameters instead."
            )
        kwargs = kwargs or {}
        constant = _CONSTANTS.get(func)
        result = func(*args, **kwargs)
        return result if constant is None else constant(result, *args, **kwargs)


def _half(result: Tensor, *_: Any, **__: Any) -> Tensor:
    return torch.full_like(result, 0.5)


def _half_(result: Tensor, *_: Any, **__: Any) -> Tensor:
    return result.fill_(0.5)


def _ones_(result: Tensor, *_: Any, **__: Any) -> Tensor:
    return result.fill_(1)


def _likelier(result: Tensor, input: Any, *_: Any, **__: Any) -> Tensor:
    """The likelier outcome of each entry; all kept where every entry has the same probability (a dropout mask)."""
    probability = input
    if not isinstance(probability, Tensor) or probability.shape != result.shape:
        return torch.ones_like(result)
    if bool((probability == probability.flatten()[:1]).all()):
        return torch.ones_like(result)
    return (probability > 0.5).to(result.dtype)


def _shifted(result: Tensor, mean: Any = 0.0, std: Any = 1.0, *_: Any, **__: Any) -> Tensor:
    return torch.zeros_like(result).add(mean).add(0.5 * std)


_CONSTANTS: dict[Any, Callable[..., Tensor]] = {
    torch.randn_like: _half,
    torch.rand_like: _half,
    torch.randn: _half,
    torch.rand: _half,
    torch.bernoulli: _likelier,
    Tensor.bernoulli_: _ones_,
    Tensor.uniform_: _half_,
    Tensor.normal_: _half_,
    torch.normal: _shifted,
}
