"""Feature norm (Lyle et al., 2024): a penalty on the squared length of the last hidden features."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, final

import torch
from torch import Tensor

from pliant.errors import IllegalConfiguration, NoEffect
from pliant.interventions.base import Context, Intervention, require
from pliant.interventions.weight_penalty import wide
from pliant.search import Domain, Range
from pliant.units.group import UnitGroup

__all__ = ["FeatureNorm"]


@final
@dataclass(frozen=True)
class FeatureNorm(Intervention):
    r"""Add to the loss the mean squared length of the features.

    .. math:: \lambda \, \mathbb{E}_x \|\phi(x)\|^2

    The expectation runs over the samples (batch, positions, time steps) of the training forward passes that went before
    ``handle.penalty()``; several groups add up.

    Args:
        strength: :math:`\lambda >= 0`; ``0`` is a no-op.
        where: Which unit groups, a pattern of names; ``None``: the penultimate features, which are the hidden units
            that feed an output directly.

    State:
        None.

    Edits:
        None; it acts through ``handle.penalty()`` alone.

    Deviations from the published code:
        None known; the authors' code was not found. Groups whose activations are not tensors of the forward pass
        (heads inside ``nn.MultiheadAttention``) are left out of a pattern that matches others as well.

    Source:
        Lyle et al., Disentangling the Causes of Plasticity Loss in Neural Networks (2024), arXiv:2402.18762.

    Raises:
        IllegalConfiguration: At ``attach``, for a hyper-parameter out of range; from ``handle.penalty()``, if no
            training forward went before it.
        NoEffect: At ``attach``, if no group matches, or none feeds an output.

    Example:
        >>> FeatureNorm(0.1).null()
        FeatureNorm(strength=0.0, where=None)
    """

    strength: float = 1e-3
    where: str | None = None

    needs: ClassVar[frozenset[str]] = frozenset({"features"})
    source: ClassVar[str] = "Lyle et al. 2024"
    search: ClassVar[Mapping[str, Domain]] = {"strength": Range(1e-5, 1e-1, log=True)}
    defaults: ClassVar[Mapping[str, str]] = {
        "strength": "choice of this library; the paper's value was not found",
        "where": "the paper's features: the inputs of the last layer",
    }

    @property
    def needs_penalty(self) -> bool:
        """It acts through the loss alone."""
        return self.strength > 0

    def null(self) -> FeatureNorm:
        """Strength zero."""
        return replace(self, strength=0.0)

    def unit_pattern(self) -> str:
        """The groups that are listened to."""
        return "*" if self.where is None else self.where

    def samples(self, step: int) -> bool:
        """Every step."""
        return self.strength > 0

    def next_step(self, ctx: Context) -> int:
        """Every step is sampled."""
        return ctx.clock.next(1 if self.strength > 0 else None)

    def prepare(self, ctx: Context) -> None:
        """Check the strength, and that there are features."""
        require(self.strength >= 0, self, "strength", ">= 0")
        if not self._groups(ctx):
            raise NoEffect(
                "FeatureNorm: no hidden unit group that can be listened to feeds an output directly. Name one with "
                "where=...; that of a residual stream is read at its tap, which may be far from the end."
            )

    def penalty(self, ctx: Context) -> Tensor | None:
        """The term for the loss."""
        groups = self._groups(ctx) if self.strength > 0 else ()
        if not groups:
            return None
        heard = [features for group in groups if (features := ctx.features(group))]
        if not heard:
            raise IllegalConfiguration(
                "FeatureNorm: handle.penalty() was called without a training forward pass before it. Call it between "
                "the forward and the backward pass, with the model in training mode."
            )
        return torch.stack([_mean_square_length(features) for features in heard]).sum() * self.strength

    def _groups(self, ctx: Context) -> tuple[UnitGroup, ...]:
        groups = ctx.groups(self.unit_pattern())
        if self.where is not None:
            return groups
        inner = {piece.name for group in ctx.units for piece in group.role("incoming")}
        return tuple(group for group in groups if any(piece.name not in inner for piece in group.role("outgoing")))


def _mean_square_length(features: list[Tensor]) -> Tensor:
    """Mean over the samples of all forwards, summed over members: ``[]``."""
    total = torch.stack([wide(matrix).square().sum() for matrix in features]).sum()
    return total / sum(matrix.shape[-2] for matrix in features)
