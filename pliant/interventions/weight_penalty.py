"""What the penalties on weights share: three ways to apply one, none of which needs autograd but the loss."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from pliant.errors import NoEffect
from pliant.interventions.base import Context, Intervention, require
from pliant.sharded import is_sharded

__all__ = ["APPLY_DEFAULT", "WeightPenalty", "wide"]

_WAYS = ("decoupled", "gradient", "loss")
_WIDE = (torch.float32, torch.float64)

APPLY_DEFAULT = "choice of this library: neither the loop nor the loss changes, closures work, Adam does not rescale it"
"""Where the default of ``apply`` comes from, for the ``defaults`` of the subclasses."""


@dataclass(frozen=True)
class WeightPenalty(Intervention):
    r"""Base of the penalties :math:`\lambda R(\theta)` on weights; a subclass is final and gives :math:`R` twice.

    ``"decoupled"``: after the step, :math:`\theta \leftarrow \theta - \alpha\lambda\nabla R(\theta)` with each
    parameter's current step size :math:`\alpha` (as AdamW does for L2). ``"gradient"``: :math:`\lambda\nabla R` is
    added to the gradients before the step; refused under ``step(closure)``. ``"loss"``: :math:`\lambda R` is what
    ``handle.penalty()`` returns, for the user to add. The last two are the same for every optimizer; all three are the
    same for SGD up to terms of second order in :math:`\alpha`.

    Attributes:
        elementwise: Whether the gradient of an entry depends on that entry alone, so that the parts of a sharded
            parameter need not be gathered.
    """

    strength: float = 1e-4
    where: str = "*"
    apply: str = "decoupled"

    elementwise: ClassVar[bool] = False
    acts_in_quiet: ClassVar[bool] = True

    @abstractmethod
    def value(self, ctx: Context, tensors: Mapping[str, Tensor]) -> Tensor:
        """:math:`R` of some parameters by name, summed over them (and over members), with graph: ``[]``."""

    @abstractmethod
    def gradient(self, ctx: Context, tensors: Mapping[str, Tensor]) -> list[Tensor]:
        r""":math:`\nabla R` for each of some parameters, in closed form and without graph; it may be a view of them."""

    def refresh(self, ctx: Context, tensors: Mapping[str, Tensor]) -> None:
        """Bring state that follows the weights up to date; called once before :math:`R` is used at a step."""

    @property
    def period(self) -> int:
        """It acts at every so many steps, each time so many times as strongly."""
        return 1

    @property
    def needs_penalty(self) -> bool:
        """Whether it acts through the loss."""
        return self.apply == "loss" and self.strength != 0

    @property
    def changes_gradients(self) -> bool:
        """Whether it acts before the step."""
        return self.apply == "gradient" and self.strength != 0

    def null(self) -> Self:
        """Strength zero."""
        return replace(self, strength=0.0)

    def parameter_pattern(self) -> str:
        """The parameters that it acts on."""
        return self.where

    def chosen(self, ctx: Context) -> dict[str, Tensor]:
        """The parameters that it acts on, by name."""
        return ctx.parameters(self.where)

    def prepare(self, ctx: Context) -> None:
        """Check the hyper-parameters and that there is something to act on."""
        require(self.strength >= 0, self, "strength", ">= 0")
        require(self.apply in _WAYS, self, "apply", "one of " + ", ".join(map(repr, _WAYS)))
        require(self.period >= 1, self, "every", ">= 1")
        if not self.chosen(ctx):
            raise NoEffect(f"{type(self).__name__}: no parameter that it can act on matches where={self.where!r}.")
        if self.strength:
            self.refresh(ctx, self._values(self.chosen(ctx)))

    def next_step(self, ctx: Context) -> int:
        """The next step that closes a period; where it acts before a step, the one after which state is refreshed."""
        if self.strength == 0 or (self.apply != "decoupled" and type(self).refresh is WeightPenalty.refresh):
            return ctx.clock.next(None)
        if self.apply == "decoupled":
            return ctx.clock.next(self.period)
        return ((ctx.clock.step + 1) // self.period + 1) * self.period - 1

    def after_step(self, ctx: Context) -> None:
        """Move the weights, or refresh what the penalty of the coming step needs."""
        if self.strength == 0:
            return
        step = ctx.clock.step if self.apply == "decoupled" else ctx.clock.step + 1
        parameters = self.chosen(ctx)
        if step % self.period or not parameters:
            return
        values = self._values(parameters)
        self.refresh(ctx, values)
        if self.apply == "decoupled":
            self.decouple(ctx, values)

    def decouple(self, ctx: Context, values: Mapping[str, Tensor]) -> None:
        """Move some parameters against the penalty's gradient, by their own step sizes."""
        names = list(values)
        factors = [-rate * self.strength * self.period for rate in ctx.learning_rates(names)]
        with torch.no_grad():
            ctx.edit.add(names, _scaled(self.gradient(ctx, values), factors), reason="")

    def before_step(self, ctx: Context) -> None:
        """Add to the gradients."""
        parameters = self._due(ctx, "gradient")
        if parameters:
            with torch.no_grad():
                gradients = self.gradient(ctx, self._values(parameters))
                terms = _scaled(gradients, [self.strength * self.period] * len(gradients))
            ctx.edit.add_to_gradient(list(parameters), terms)

    def penalty(self, ctx: Context) -> Tensor | None:
        """The term for the loss."""
        parameters = self._due(ctx, "loss")
        if not parameters:
            return None
        tensors = {name: _gathered(tensor) for name, tensor in parameters.items()}
        return self.value(ctx, tensors) * (self.strength * self.period)

    def _due(self, ctx: Context, way: str) -> dict[str, Tensor]:
        """What it acts on at the coming step."""
        if self.apply != way or self.strength == 0 or (ctx.clock.step + 1) % self.period:
            return {}
        return self.chosen(ctx)

    def _values(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Detached; what is sharded is gathered where entries depend on others."""
        gather = not self.elementwise
        return {name: (_gathered(item) if gather else item).detach() for name, item in parameters.items()}


def _gathered(tensor: Tensor) -> Tensor:
    """A parameter as a plain tensor, with its graph; narrow types are widened by whoever computes with it."""
    if not is_sharded(tensor):
        return tensor
    sharded: Any = tensor
    result: Tensor = sharded.full_tensor()
    return result


def wide(tensor: Tensor) -> Tensor:
    """At least float32, for sums and products of many entries."""
    return tensor if tensor.dtype in _WIDE else tensor.float()


def _scaled(tensors: Sequence[Tensor], factors: Sequence[float]) -> list[Tensor]:
    return list(torch._foreach_mul(list(tensors), list(factors)))
