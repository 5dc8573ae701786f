"""Which modules normalise activations, and which of their parameters are gains and offsets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor, nn

__all__ = ["Affine", "affine_parameters", "is_norm"]

_KINDS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.LocalResponseNorm)


class Affine(NamedTuple):
    """The names of a norm's gain and of its offset; ``None`` where it has none."""

    gain: str | None
    offset: str | None


def is_norm(module: nn.Module) -> bool:
    """Whether a module normalises its input: PyTorch's own, or one whose class is called so (``LlamaRMSNorm``).

    Example:
        >>> is_norm(nn.LayerNorm(3)), is_norm(nn.Linear(3, 3))
        (True, False)
    """
    return isinstance(module, _KINDS) or type(module).__name__.endswith(("Norm", "Norm1d", "Norm2d", "Norm3d"))


def affine_parameters(modules: Mapping[str, nn.Module], tensors: Mapping[str, Tensor]) -> tuple[Affine, ...]:
    """The gains and offsets of every norm that has any.

    Args:
        modules: Modules by name.
        tensors: Parameters by name; others are not looked for.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3))
        >>> affine_parameters(dict(model.named_modules()), dict(model.named_parameters()))
        (Affine(gain='1.weight', offset='1.bias'),)
    """
    found = []
    for path, module in modules.items():
        if is_norm(module):
            start = f"{path}." if path else ""
            gain, offset = (start + leaf if start + leaf in tensors else None for leaf in ("weight", "bias"))
            if gain is not None or offset is not None:
                found.append(Affine(gain, offset))
    return tuple(found)
