"""Weight noise: Gaussian noise added to the weights after the step, of a fixed size or in proportion to their norms."""

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
from pliant.search import Domain, Range
from pliant.sharded import whole

__all__ = ["WeightNoise"]

_RELATIVE_TO = ("step_size", "entry", "nothing")


@final
@dataclass(frozen=True)
class WeightNoise(Intervention):
    r"""After every step, add Gaussian noise to the weights: :math:`\theta \leftarrow \theta + \sigma\,s\,\xi`.

    :math:`\xi` is standard normal, and s is the parameter's current step size (``"step_size"``: perturbed gradient
    descent, :math:`\theta \leftarrow \theta - \alpha(g + \sigma\xi)` for SGD, and for other optimizers the same noise,
    not rescaled by them), the root mean square of its entries (``"entry"``), or 1 (``"nothing"``).

    Args:
        noise_scale: :math:`\sigma >= 0`; ``0`` is a no-op.
        relative_to: ``"step_size"``, ``"entry"`` or ``"nothing"``, see above.
        every: Act at every so many steps only.
        where: Which parameters, a pattern of names.

    State:
        None.

    Edits:
        The parameters; moments are kept. It works with closures.

    Deviations from the published code:
        The published perturbed gradient descent adds the noise inside an SGD of its own. With weight decay it is the
        per-step shrink and perturb of the Nature experiments; their noise is Gaussian, as here.

    Source:
        Perturbed gradient descent as in Dohare et al., Loss of plasticity in deep continual learning, Nature 632
        (2024), and Elsayed & Mahmood (2024), arXiv:2404.00781.

    Raises:
        IllegalConfiguration: At ``attach``, for a hyper-parameter out of range.
        NoEffect: At ``attach``, if no parameter matches.

    Example:
        >>> WeightNoise(0.02).null()
        WeightNoise(noise_scale=0.0, relative_to='step_size', every=1, where='*')
    """

    noise_scale: float = 0.01
    relative_to: str = "step_size"
    every: int = 1
    where: str = "*"

    source: ClassVar[str] = "Dohare et al. 2024"
    search: ClassVar[Mapping[str, Domain]] = {"noise_scale": Range(5e-4, 0.5, log=True)}
    defaults: ClassVar[Mapping[str, str]] = {
        "noise_scale": "choice of this library; published sweeps go from 0.005 to 0.5",
        "relative_to": "perturbed gradient descent, noise inside the step",
        "every": "every step, as published",
        "where": "all parameters, as published",
    }

    def null(self) -> WeightNoise:
        """No noise."""
        return replace(self, noise_scale=0.0)

    def prepare(self, ctx: Context) -> None:
        """Check the hyper-parameters."""
        require(0 <= self.noise_scale < math.inf, self, "noise_scale", ">= 0 and finite")
        require(self.relative_to in _RELATIVE_TO, self, "relative_to", "one of " + ", ".join(map(repr, _RELATIVE_TO)))
        require(self.every >= 1, self, "every", ">= 1")
        if not ctx.parameters(self.where):
            raise NoEffect(f"WeightNoise: no parameter matches where={self.where!r}.")

    def next_step(self, ctx: Context) -> int:
        """The end of the period."""
        return ctx.clock.next(self.every if self.noise_scale else None)

    def after_step(self, ctx: Context) -> None:
        """Draw and add."""
        if self.noise_scale == 0 or not ctx.clock.every(self.every):
            return
        parameters = ctx.parameters(self.where)
        names = list(parameters)
        with torch.no_grad():
            noise = [whole(ctx.edit.draw_normal(item)) for item in parameters.values()]
            if self.relative_to == "entry":
                terms = [item.mul_(self._size(ctx, name)) for name, item in zip(names, noise, strict=True)]
            else:
                rates = ctx.learning_rates(names) if self.relative_to == "step_size" else [1.0] * len(names)
                terms = [item.mul_(rate * self.noise_scale) for item, rate in zip(noise, rates, strict=True)]
        ctx.edit.add(names, terms)

    def _size(self, ctx: Context, name: str) -> Tensor:
        """``[]``, or ``[S, 1, ...]``."""
        values = wide(ctx.whole(name))
        lead = 0 if ctx.num_members is None else 1
        size = values.flatten(lead).square().mean(dim=-1).sqrt() * self.noise_scale
        return size.reshape(size.shape + (1,) * (values.ndim - lead))
