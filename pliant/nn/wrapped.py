"""Layers with something behind or before them, as insertion puts them into a model."""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor, nn

__all__ = ["Dropped", "Normalized"]


class _Round(nn.Module):
    """What is put round a layer has the layer's attributes, such as a kernel's stride, for code that asks for them.

    Its weights it has not: code that computes with them by itself would pass by what was put in.
    """

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            layer = self.__dict__.get("_modules", {}).get("layer")
            if layer is None or name.startswith("_") or name in layer._parameters or name in layer._buffers:
                raise
            return getattr(layer, name)


@final
class Normalized(_Round):
    r"""A layer and a norm behind it, :math:`x \mapsto \operatorname{norm}(\operatorname{layer}(x))`, perhaps gated.

    With a gate :math:`g` the output is :math:`h + g\,(\operatorname{norm}(h) - h)` with :math:`h` the layer's: at
    :math:`g = 0` exactly the layer, at 1 exactly the norm of it.

    Args:
        layer: The layer.
        norm: The norm.
        gate: ``None`` for no gate; ``"trained"``: a parameter that starts at 0; ``"fixed"``: a buffer that starts at 0.

    Example:
        >>> layer = nn.Linear(3, 4)
        >>> x = torch.randn(2, 3)
        >>> bool(torch.equal(Normalized(layer, nn.LayerNorm(4), gate="trained")(x), layer(x)))
        True
    """

    gate: Tensor | None

    def __init__(self, layer: nn.Module, norm: nn.Module, gate: str | None = None) -> None:
        super().__init__()
        self.layer, self.norm = layer, norm
        if gate == "fixed":
            self.register_buffer("gate", torch.zeros(()))
        else:
            self.register_parameter("gate", None if gate is None else nn.Parameter(torch.zeros(())))

    def forward(self, x: Tensor) -> Tensor:
        """Apply both."""
        h = self.layer(x)
        if self.gate is None:
            return self.norm(h)  # type: ignore[no-any-return]
        return torch.lerp(h, self.norm(h), self.gate)


@final
class Dropped(_Round):
    """A layer and dropout of its input.

    Args:
        layer: The layer.
        p: Probability of each entry to be zeroed in training; in evaluation the layer is unchanged.

    Example:
        >>> layer = nn.Linear(3, 4)
        >>> x = torch.randn(2, 3)
        >>> bool(torch.equal(Dropped(layer, 0.5).eval()(x), layer(x)))
        True
    """

    def __init__(self, layer: nn.Module, p: float) -> None:
        super().__init__()
        self.dropout, self.layer = nn.Dropout(p), layer

    def forward(self, x: Tensor) -> Tensor:
        """Apply both."""
        return self.layer(self.dropout(x))  # type: ignore[no-any-return]
