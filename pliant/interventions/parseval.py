"""Parseval regularisation (Chung et al., 2024): the rows of every hidden layer stay orthogonal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from pliant.interventions.base import Context, require
from pliant.interventions.weight_penalty import APPLY_DEFAULT, WeightPenalty, wide
from pliant.search import Domain, Range

__all__ = ["Parseval"]


@final
@dataclass(frozen=True)
class Parseval(WeightPenalty):
    r"""Keep the weight vectors of a layer's units orthogonal, and of one length.

    .. math:: R(\theta) = \sum_{\text{hidden layers}} \left(\frac{w}{O}\right)^2 \left\|W W^\top - s I\right\|_F^2

    The O rows of W are the incoming weights of the layer's units; of a kernel, all of a filter's. The layers are those
    whose outputs are hidden units, so that output layers are left out. In closed form,
    :math:`\nabla R = 4 (W W^\top - s I) W` up to the factor.

    Args:
        strength: :math:`\lambda >= 0`; ``0`` is a no-op.
        where: Which parameters, a pattern of names.
        apply: ``"decoupled"`` after the step, ``"gradient"`` before it, or ``"loss"``, through ``handle.penalty()``.
        scale: :math:`s > 0`, the squared length of a row: the square of the gain of an orthogonal initialisation.
        normalise_rows: Divide each row by its length first, so that only angles are regularised and lengths are free.
        reference_width: w, the width at which the factor is 1; ``None``: no factor.
        every: Act at every so many steps only, each time so many times as strongly.

    State:
        None.

    Edits:
        The parameters, or their gradients; moments are kept.

    Deviations from the published code:
        That adds the term to the loss (``apply="loss"``, or ``"gradient"`` with the same result), multiplies it by one
        factor for the network's width, here one for each layer, and knows fully connected networks only. The diagonal
        layers that the paper adds behind each linear one are the user's to add; groups of units are left out.

    Source:
        Chung et al., Parseval Regularization for Continual Reinforcement Learning (2024), arXiv:2412.07224.

    Raises:
        IllegalConfiguration: At ``attach``, for a hyper-parameter out of range.
        NoEffect: At ``attach``, if no hidden layer's weights match.

    Example:
        >>> Parseval(scale=1.0).null()
        Parseval(strength=0.0, where='*', apply='decoupled', scale=1.0, normalise_rows=False, reference_width=64, every=1)
    """  # noqa: E501

    strength: float = 1e-3
    scale: float = 2.0
    normalise_rows: bool = False
    reference_width: int | None = 64
    every: int = 1

    source: ClassVar[str] = "Chung et al. 2024"
    search: ClassVar[Mapping[str, Domain]] = {"strength": Range(1e-5, 1e-1, log=True)}
    defaults: ClassVar[Mapping[str, str]] = {
        "strength": "authors' code, MetaWorld (1e-3; 1e-4 for some other environments)",
        "where": "all hidden layers, as in the authors' code",
        "apply": APPLY_DEFAULT,
        "scale": "authors' code: the square of its initialisation's gain, sqrt(2)",
        "normalise_rows": "authors' code",
        "reference_width": "authors' code: strengths were tuned at width 64",
        "every": "every step, as in the paper",
    }

    @property
    def period(self) -> int:
        """Steps between two uses."""
        return self.every

    def prepare(self, ctx: Context) -> None:
        """Check the hyper-parameters."""
        require(self.scale > 0, self, "scale", "> 0")
        require(self.reference_width is None or self.reference_width >= 1, self, "reference_width", "None or >= 1")
        super().prepare(ctx)

    def chosen(self, ctx: Context) -> dict[str, Tensor]:
        """Matrices and kernels that make hidden units."""
        hidden = _unit_dims(ctx)
        lead = 0 if ctx.num_members is None else 1
        found = ctx.parameters(self.where).items()
        return {name: item for name, item in found if name in hidden and item.ndim >= lead + 2}

    def value(self, ctx: Context, tensors: Mapping[str, Tensor]) -> Tensor:
        """The sum over layers."""
        terms = []
        for rows, _ in self._rows(ctx, tensors).values():
            unit = rows / rows.norm(dim=2, keepdim=True) if self.normalise_rows else rows
            terms.append(self._excess(unit).square().sum() * self._factor(rows))
        return torch.stack(terms).sum()

    def gradient(self, ctx: Context, tensors: Mapping[str, Tensor]) -> list[Tensor]:
        """Four times the excess of the Gram matrix times the rows, along the sphere where these are normalised."""
        found = []
        for name, (rows, dim) in self._rows(ctx, tensors).items():
            length = rows.norm(dim=2, keepdim=True)
            unit = rows / length if self.normalise_rows else rows
            slope = torch.bmm(self._excess(unit), unit) * (4 * self._factor(rows))
            if self.normalise_rows:
                slope = (slope - unit * (slope * unit).sum(2, keepdim=True)) / length
            first = tensors[name].movedim(dim, 0 if ctx.num_members is None else 1)
            found.append(slope.reshape(first.shape).movedim(0 if ctx.num_members is None else 1, dim))
        return found

    def _excess(self, rows: Tensor) -> Tensor:
        gram = torch.bmm(rows, rows.mT)
        gram.diagonal(dim1=1, dim2=2).sub_(self.scale)
        return gram

    def _factor(self, rows: Tensor) -> float:
        return 1.0 if self.reference_width is None else (self.reference_width / rows.shape[1]) ** 2

    def _rows(self, ctx: Context, tensors: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, int]]:
        """``[S, O, I]`` (of a single model ``[1, O, I]``), and the dimension of the units, by name."""
        dims, found = _unit_dims(ctx), {}
        for name, item in tensors.items():
            rows = wide(item).movedim(dims[name], 0 if ctx.num_members is None else 1)
            rows = rows.flatten(1).unsqueeze(0) if ctx.num_members is None else rows.flatten(2)
            found[name] = (rows, dims[name])
        return found


def _unit_dims(ctx: Context) -> dict[str, int]:
    """The dimension of the units (negative) in every tensor that makes hidden units."""
    return {piece.name: piece.dim for group in ctx.units for piece in group.role("incoming")}
