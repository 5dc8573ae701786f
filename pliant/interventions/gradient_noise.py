"""Gradient noise: Gaussian noise added to the gradients, of a fixed size or in proportion to their norms."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, final

import torch
from torch import Tensor

from pliant.errors import NoEffect
from pliant.interventions.base import Context, Intervention, require
from pliant.interventions.weight_penalty import wide
from pliant.search import Choice, Domain, Range
from pliant.sharded import whole

__all__ = ["GradientNoise"]

_RELATIVE_TO = ("nothing", "tensor", "entry")


@final
@dataclass(frozen=True)
class GradientNoise(Intervention):
    r"""Before every step, add Gaussian noise to the gradients: :math:`g \leftarrow g + \sigma_t\,\xi`.

    .. math:: \sigma_t = \sigma\,\lambda^t \times \begin{cases}
              1 & \text{relative to nothing} \\
              \|g\| & \text{relative to the tensor: } \|\text{noise}\| / \|g\| \approx \sigma\lambda^t\sqrt n \\
              \|g\| / \sqrt n & \text{relative to its entries: } \|\text{noise}\| / \|g\| \approx \sigma\lambda^t
              \end{cases}

    :math:`\xi` is standard normal, g the gradient of one parameter and n the number of its entries.

    Args:
        noise_scale: :math:`\sigma >= 0`; ``0`` is a no-op.
        decay: :math:`\lambda` in [0, 1], the factor of the noise from one step to the next; ``0``: at one step only.
        relative_to: ``"tensor"``, ``"entry"`` or ``"nothing"``, see above.
        where: Which parameters, a pattern of names.

    State:
        None.

    Edits:
        The gradients; so under ``step(closure)`` it is refused, and an adaptive optimizer rescales the noise.

    Deviations from the published code:
        The noise scaled by the norm is that of the experiments on cloned networks, which applies it inside an SGD of
        its own, for each tensor by itself; here any optimizer may follow.

    Source:
        Perturbed gradient descent; relative to the norm: the noisy SGD of the experiments of Joudaki et al. on
        trapping manifolds (2025).

    Raises:
        IllegalConfiguration: At ``attach``, for a hyper-parameter out of range.
        NoEffect: At ``attach``, if no parameter matches.

    Example:
        >>> GradientNoise(0.02).null()
        GradientNoise(noise_scale=0.0, decay=1.0, relative_to='tensor', where='*')
    """

    noise_scale: float = 0.01
    decay: float = 1.0
    relative_to: str = "tensor"
    where: str = "*"

    source: ClassVar[str] = "Joudaki et al. 2025"
    search: ClassVar[Mapping[str, Domain]] = {
        "noise_scale": Range(1e-3, 0.1, log=True),
        "decay": Choice((0.99, 0.999, 1.0)),
    }
    defaults: ClassVar[Mapping[str, str]] = {
        "noise_scale": "smallest value of the published experiments (0.01, 0.02, 0.05)",
        "decay": "published experiments: 1 is among their values (0, 0.9, 0.99, 0.999, 1)",
        "relative_to": "published experiments",
        "where": "all parameters, as in the published experiments",
    }

    @property
    def changes_gradients(self) -> bool:
        """Unless there is no noise."""
        return self.noise_scale > 0

    def null(self) -> GradientNoise:
        """No noise."""
        return replace(self, noise_scale=0.0)

    def prepare(self, ctx: Context) -> None:
        """Check the hyper-parameters."""
        require(0 <= self.noise_scale < math.inf, self, "noise_scale", ">= 0 and finite")
        require(0 <= self.decay <= 1, self, "decay", "in [0, 1]")
        require(self.relative_to in _RELATIVE_TO, self, "relative_to", "one of " + ", ".join(map(repr, _RELATIVE_TO)))
        if not ctx.parameters(self.where):
            raise NoEffect(f"GradientNoise: no parameter matches where={self.where!r}.")

    def before_step(self, ctx: Context) -> None:
        """Draw and add."""
        size = self.noise_scale * self.decay**ctx.clock.step
        if size == 0:
            return
        found = {name: item for name, item in ctx.parameters(self.where).items() if item.grad is not None}
        with torch.no_grad():
            terms = [self._noise(ctx, name, item, size) for name, item in found.items()]
        ctx.edit.add_to_gradient(list(found), terms)

    def _noise(self, ctx: Context, name: str, parameter: Tensor, size: float) -> Tensor:
        noise = whole(ctx.edit.draw_normal(parameter))
        gradient = parameter.grad
        if self.relative_to == "nothing" or gradient is None:
            return noise.mul_(size)
        lead = 0 if ctx.num_members is None else 1
        norm = wide(whole(gradient)).flatten(lead).norm(dim=-1)
        scale = ctx.edit.gradient_scale(name)
        norm = norm if scale is None else norm / scale  # the term is scaled when it is added
        if self.relative_to == "entry":
            norm = norm / math.sqrt(noise.numel() / (ctx.num_members or 1))
        deviation: Tensor = norm * size
        return noise.mul_(deviation.reshape(deviation.shape + (1,) * (noise.ndim - lead)))
