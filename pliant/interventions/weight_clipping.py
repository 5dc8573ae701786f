"""Weight clipping (Elsayed et al., 2024): no weight leaves a multiple of the range that it was drawn from."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, final

from pliant.errors import NoEffect
from pliant.interventions.base import Context, Intervention, require
from pliant.search import Domain, Range
from pliant.units.init import Init

__all__ = ["WeightClipping"]


@final
@dataclass(frozen=True)
class WeightClipping(Intervention):
    r"""After every step, clip every parameter to a multiple of its initial bound.

    .. math:: \theta \leftarrow \min(\max(\theta, -\kappa s), \kappa s)

    :math:`s` is the bound of the uniform distribution that the parameter was initialised with, ``1/sqrt(fan_in)`` for
    the linear and convolutional layers of PyTorch and their biases; of a normal distribution, the bound of the uniform
    one of the same variance, :math:`\sqrt3` deviations.

    Args:
        kappa: :math:`\kappa > 0`; ``None``: a no-op.
        where: Which parameters, a pattern of names. Those that start at a constant have no bound and are left alone.

    State:
        None.

    Edits:
        The parameters; moments are kept.

    Deviations from the published code:
        That assumes PyTorch's initialisation whatever the network's own is (and some of its experiments another bound,
        ``1/sqrt(fan_in + fan_out)``, and 1 for vectors); here each parameter's own distribution counts. Norms' gains
        and biases and biases that start at zero, which that clips to the bound of the layer before them, are left out.

    Source:
        Elsayed et al., Weight Clipping for Deep Continual and Reinforcement Learning (2024), arXiv:2407.01704.

    Raises:
        IllegalConfiguration: At ``attach``, for a hyper-parameter out of range, or where an initial distribution is
            unknown.
        NoEffect: At ``attach``, if no parameter that matches has a bound.

    Example:
        >>> WeightClipping(kappa=2.0).null()
        WeightClipping(kappa=None, where='*')
    """

    kappa: float | None = 1.0
    where: str = "*"

    acts_in_quiet: ClassVar[bool] = True
    source: ClassVar[str] = "Elsayed et al. 2024"
    search: ClassVar[Mapping[str, Domain]] = {"kappa": Range(0.5, 5.0, log=True)}
    defaults: ClassVar[Mapping[str, str]] = {
        "kappa": "authors' code; their experiments sweep 1 to 5",
        "where": "all parameters, the last layer included, as in the authors' code",
    }

    def null(self) -> WeightClipping:
        """No bound."""
        return replace(self, kappa=None)

    def prepare(self, ctx: Context) -> None:
        """Check the hyper-parameter, and that there is something with a bound."""
        require(self.kappa is None or 0 < self.kappa < math.inf, self, "kappa", "None, or > 0 and finite")
        if self.kappa is not None and not self._bounds(ctx, self.kappa):
            raise NoEffect(
                f"WeightClipping: no parameter that matches where={self.where!r} was drawn at random, so none has a "
                "bound."
            )

    def next_step(self, ctx: Context) -> int:
        """The very next one."""
        return ctx.clock.next(None if self.kappa is None else 1)

    def after_step(self, ctx: Context) -> None:
        """Clip."""
        if self.kappa is None:
            return
        bounds = self._bounds(ctx, self.kappa)
        ctx.edit.clamp(list(bounds), [(-bound, bound) for bound in bounds.values()])

    def _bounds(self, ctx: Context, kappa: float) -> dict[str, float]:
        inits = {name: ctx.edit.init_of(name) for name in ctx.parameters(self.where)}
        return {name: kappa * _bound(init) for name, init in inits.items() if init.kind != "constant"}


def _bound(init: Init) -> float:
    """Where the uniform distribution of the same variance ends."""
    return math.sqrt(3 * init.mean_square)
