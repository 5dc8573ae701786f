"""Spectral regularisation (Lewandowski et al., 2024): the largest singular value of every layer stays near one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor
from torch.nn import functional

from pliant.devices import can_read
from pliant.interventions.base import Context, PerParameter, require
from pliant.interventions.weight_penalty import APPLY_DEFAULT, WeightPenalty, wide
from pliant.search import Domain, Range

__all__ = ["SpectralRegularisation"]


@final
@dataclass(frozen=True)
class SpectralRegularisation(WeightPenalty):
    r"""Pull the spectral norm of every matrix to 1, norms' gains to 1 and biases to 0.

    .. math:: R(\theta) = \sum_{\text{matrices}} \left(\sigma_{\max}(W)^k - 1\right)^2
              + \sum_{\text{biases}} \|b\|^{2k} + \sum_{\text{gains}} \|\gamma - 1\|^2

    A kernel is the matrix of its output channels by everything else. :math:`\sigma_{\max} \approx u^\top W v`, where
    the unit vectors u and v are kept, and improved by one power iteration each time that they are used:
    :math:`u \leftarrow Wv / \|Wv\|`, :math:`v \leftarrow W^\top u / \|W^\top u\|`.

    Args:
        strength: :math:`\lambda >= 0`; ``0`` is a no-op.
        where: Which parameters, a pattern of names; scalars are left alone.
        apply: ``"decoupled"`` after the step, ``"gradient"`` before it, or ``"loss"``, through ``handle.penalty()``.
        k: The exponent, ``>= 1``.
        every: Act at every so many steps only, each time so many times as strongly.

    State:
        ``left`` and ``right``: the vectors u and v of every matrix, at least float32; drawn at ``attach``.

    Edits:
        The parameters, or their gradients; moments are kept.

    Deviations from the published code:
        The paper's code was not found; the biases' exponent is that of a re-implementation. A vector's target is the
        constant that it was initialised with, else 0: that is 1 for gains and 0 for biases, and 0.25 for PReLU. The
        stacked projection of ``nn.MultiheadAttention`` is one matrix.

    Source:
        Lewandowski et al., Learning Continually by Spectral Regularization (2024), arXiv:2406.06811.

    Raises:
        IllegalConfiguration: At ``attach``, for a hyper-parameter out of range, or where it is not known what a vector
            was initialised with.
        NoEffect: At ``attach``, if no parameter matches.

    Example:
        >>> SpectralRegularisation(k=1.0).null()
        SpectralRegularisation(strength=0.0, where='*', apply='decoupled', k=1.0, every=1)
    """

    strength: float = 1e-3
    k: float = 2.0
    every: int = 1

    state: ClassVar[Mapping[str, PerParameter]] = {
        "left": PerParameter(1.0, along="rows"),
        "right": PerParameter(1.0, along="columns"),
    }
    source: ClassVar[str] = "Lewandowski et al. 2024"
    search: ClassVar[Mapping[str, Domain]] = {"strength": Range(1e-5, 1e-1, log=True)}
    defaults: ClassVar[Mapping[str, str]] = {
        "strength": "choice of this library; the paper sweeps it",
        "where": "all parameters, as in the paper",
        "apply": APPLY_DEFAULT,
        "k": "the paper (from memory, not checked) and its re-implementations",
        "every": "every step, as in the paper",
    }

    @property
    def period(self) -> int:
        """Steps between two uses."""
        return self.every

    def chosen(self, ctx: Context) -> dict[str, Tensor]:
        """Matrices, kernels and vectors."""
        lead = _lead(ctx)
        return {name: item for name, item in ctx.parameters(self.where).items() if item.ndim > lead}

    def prepare(self, ctx: Context) -> None:
        """Check the hyper-parameters, and draw the vectors that the iteration starts from."""
        require(self.k >= 1, self, "k", ">= 1")
        if self.strength:
            for name, item in self.chosen(ctx).items():
                if item.ndim == _lead(ctx) + 1:
                    ctx.edit.init_of(name)
            for vector in ctx.parameter_state("right").values():
                vector.copy_(functional.normalize(ctx.edit.draw_normal(vector), dim=-1))
        super().prepare(ctx)

    def refresh(self, ctx: Context, tensors: Mapping[str, Tensor]) -> None:
        """One power iteration."""
        left, right = ctx.parameter_state("left"), ctx.parameter_state("right")
        with torch.no_grad():
            for name, matrix in self._matrices(ctx, tensors).items():
                u, v = left[name], right[name]
                new_u = functional.normalize(_times(matrix, _column(v, matrix)), dim=1)
                new_v = functional.normalize(_times(matrix.mT, new_u), dim=1)
                for old, new in ((u, new_u), (v, new_v)):
                    found = new.reshape(old.shape).to(old.dtype)
                    old.copy_(found if ctx.live is None else torch.where(ctx.live > 0, found, old))

    def value(self, ctx: Context, tensors: Mapping[str, Tensor]) -> Tensor:
        """The sum over matrices and vectors."""
        left, right = ctx.parameter_state("left"), ctx.parameter_state("right")
        terms = []
        for name, matrix in self._matrices(ctx, tensors).items():
            sigma = _sigma(matrix, _column(left[name], matrix), _column(right[name], matrix))
            terms.append((sigma.abs().pow(self.k) - 1).square().sum())
        for away, is_bias in self._vectors(ctx, tensors).values():
            squares = away.square().sum(-1)
            terms.append(squares.pow(self.k).sum() if is_bias else squares.sum())
        return torch.stack(terms).sum()

    def gradient(self, ctx: Context, tensors: Mapping[str, Tensor]) -> list[Tensor]:
        """Of the spectral norm: the outer product of the singular vectors."""
        left, right = ctx.parameter_state("left"), ctx.parameter_state("right")
        found: dict[str, Tensor] = {}
        for name, matrix in self._matrices(ctx, tensors).items():
            u, v = _column(left[name], matrix), _column(right[name], matrix)
            sigma = _sigma(matrix, u, v)
            size = sigma.abs()
            slope = 2 * self.k * (size.pow(self.k) - 1) * size.pow(self.k - 1) * sigma.sign()
            found[name] = torch.bmm(u * slope, v.mT).reshape(tensors[name].shape)
        for name, (away, is_bias) in self._vectors(ctx, tensors).items():
            factor = self.k * away.square().sum(-1, keepdim=True).pow(self.k - 1) if is_bias else 1.0
            found[name] = 2 * away * factor
        return [found[name] for name in tensors]

    def _matrices(self, ctx: Context, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """``[S, O, I]`` by name, of a single model ``[1, O, I]``."""
        lead = _lead(ctx)
        found = {name: wide(item).flatten(lead + 1) for name, item in tensors.items() if item.ndim > lead + 1}
        return {name: item if lead else item.unsqueeze(0) for name, item in found.items()}

    def _vectors(self, ctx: Context, tensors: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, bool]]:
        """Differences to the targets, and whether the target is zero."""
        found: dict[str, tuple[Tensor, bool]] = {}
        for name, item in tensors.items():
            if item.ndim == _lead(ctx) + 1:
                init = ctx.edit.init_of(name)
                target = init.scale if init.kind == "constant" else 0.0
                found[name] = (wide(item) - target, target == 0)
        return found


def _lead(ctx: Context) -> int:
    return 0 if ctx.num_members is None else 1


def _column(vector: Tensor, matrix: Tensor) -> Tensor:
    """``[I]`` or ``[S, I]`` as ``[S, I, 1]``, in the matrix's type."""
    return vector.reshape(matrix.shape[0], -1, 1).to(matrix.dtype)


def _times(matrix: Tensor, column: Tensor) -> Tensor:
    """``[S, O, I]`` times ``[S, I, 1]``; on a CPU member by member, so that each has the bits of its single run."""
    if len(matrix) == 1 or not can_read(matrix):
        return torch.bmm(matrix, column)
    return torch.cat([torch.bmm(matrix[s : s + 1], column[s : s + 1]) for s in range(len(matrix))])


def _sigma(matrix: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """``[S, 1, 1]``."""
    return (left * _times(matrix, right)).sum(1, keepdim=True)
