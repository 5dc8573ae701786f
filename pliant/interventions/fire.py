"""FIRE: replace every weight matrix by the nearest multiple of an isometry (Han et al., 2026)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn

from pliant.errors import IllegalConfiguration, NoEffect
from pliant.interventions.base import Context, Intervention, require
from pliant.interventions.state import matches
from pliant.search import Domain, Range

__all__ = ["FIRE"]


@final
@dataclass(frozen=True)
class FIRE(Intervention):
    r"""At task boundaries, or every so many steps, give all singular values of each weight matrix the same size.

    .. math:: W \leftarrow \frac1k \sqrt{\frac{d_{out}}{d_{in}}}\; U V^\top, \qquad W = U \Sigma V^\top

    The polar factor :math:`UV^\top` is the isometry that is nearest to :math:`W`. It is approached by the
    Newton-Schulz iteration :math:`X \leftarrow \tfrac32 X - \tfrac12 X X^\top X` from :math:`W / \|W\|_F`. Of a
    convolution with :math:`k` taps, each tap is a matrix.

    Args:
        iterations: Newton-Schulz iterations; ``0``: none (a no-op). Singular values far below the Frobenius norm have
            not converged after a few: each iteration multiplies them by at most 1.5.
        every: Period in optimizer steps; ``None``: at task boundaries.
        where: Which parameters, a pattern of names. Of these, the weights of linear layers, convolutions and attention
            projections are changed, and bare matrices with hidden units on both sides; never embeddings, recurrent
            layers, biases and norms, or weights that are computed from other parameters.
        fused: Names of weights that hold query, key and value in one, each of which is a matrix of its own.
        parts: Which of query, key and value of these: ``"qkv"``, or ``"qk"`` as the authors do for vision
            transformers (there, with ``where`` such as ``"*.to_q, *.to_k"`` where they are apart).

    State:
        None.

    Edits:
        The weights, and their optimizer state, which restarts.

    Deviations from the published code:
        See the method's page.

    Source:
        Han et al., FIRE: Frobenius-Isometry Reinitialization for Balancing the Stability-Plasticity Tradeoff (2026),
        arXiv:2602.08040.

    Raises:
        IllegalConfiguration: At ``attach``, for an argument out of range, or a fused weight that has no three parts.
        NoEffect: At ``attach``, if no weight matrix matches.

    Example:
        >>> FIRE().null()
        FIRE(iterations=0, every=None, where='*', fused='*in_proj_weight, *c_attn, *qkv', parts='qkv')
    """

    iterations: int = 10
    every: int | None = None
    where: str = "*"
    fused: str = "*in_proj_weight, *c_attn, *qkv"
    parts: str = "qkv"

    source: ClassVar[str] = "Han et al. 2026"
    search: ClassVar[Mapping[str, Domain]] = {"iterations": Range(3, 20, integer=True)}
    defaults: ClassVar[Mapping[str, str]] = {
        "iterations": "the authors' vision and RL code (5 in their language code)",
        "every": "before training on new data, as in the paper",
        "where": "all linear and convolutional layers, the output layer included, as in the authors' code",
        "fused": "nn.MultiheadAttention's name, GPT-2's (which the authors' code splits likewise) and the usual one",
        "parts": "the authors' language code; their TinyViT is changed in Q and K only",
    }

    @property
    def needs_boundary(self) -> bool:
        """Whether it waits for task boundaries."""
        return self.every is None and self.iterations > 0

    def null(self) -> FIRE:
        """No iteration."""
        return replace(self, iterations=0)

    def next_step(self, ctx: Context) -> int:
        """The end of the period."""
        return ctx.clock.next(self.every)

    def prepare(self, ctx: Context) -> None:
        """Check the arguments, and that there is a matrix."""
        require(self.iterations >= 0, self, "iterations", ">= 0")
        require(self.every is None or self.every >= 1, self, "every", "None or >= 1")
        require(
            0 < len(set(self.parts)) == len(self.parts) and set(self.parts) <= set("qkv"), self, "parts", "of 'qkv'"
        )
        names = self._matrices(ctx)
        if not names:
            raise NoEffect(
                f"FIRE: no weight of a linear layer, convolution or attention projection that this optimizer trains "
                f"matches where={self.where!r}."
            )
        if self.fused != FIRE.fused and not any(matches(name, self.fused) for name in names):
            raise NoEffect(f"FIRE: none of these weights matches fused={self.fused!r}: {', '.join(names)}.")
        for name, parameter in names.items():
            if matches(name, self.fused) and parameter.shape[_out_dim(ctx, name)] % 3:
                raise IllegalConfiguration(
                    f"FIRE: {name!r} has {parameter.shape[_out_dim(ctx, name)]} outputs, which are not query, key and "
                    "value of one size. Leave it out with where=..., or out of fused=..."
                )

    def after_step(self, ctx: Context) -> None:
        """When due by steps."""
        if ctx.clock.every(self.every):
            self._apply(ctx)

    def at_task_boundary(self, ctx: Context, data: Any = None) -> None:
        """When due by tasks."""
        if self.every is None:
            self._apply(ctx)

    def _apply(self, ctx: Context) -> None:
        for name in self._matrices(ctx) if self.iterations else ():
            weight, dim = ctx.whole(name), _out_dim(ctx, name)
            if matches(name, self.fused):
                thirds = zip("qkv", weight.chunk(3, dim), strict=True)
                new = [self._isometry(ctx, name, part) if key in self.parts else part for key, part in thirds]
                value = torch.cat([part.to(weight.dtype) for part in new], dim)
            else:
                value = self._isometry(ctx, name, weight)
            ctx.edit.assign(name, value, moments="zero", reason="orthogonalised")

    def _isometry(self, ctx: Context, name: str, weight: Tensor) -> Tensor:
        """The scaled polar factor of a weight, ``[*, O, I, *kernel]`` or with inputs and outputs exchanged."""
        lead = 0 if ctx.num_members is None else 1
        rows, columns = weight.shape[lead : lead + 2]
        taps = math.prod(weight.shape[lead + 2 :])
        matrices = weight.flatten(lead + 2).movedim(-1, lead) if weight.ndim > lead + 2 else weight.unsqueeze(lead)
        outputs_first = _out_dim(ctx, name) % weight.ndim == lead
        ratio = rows / columns if outputs_first else columns / rows
        polar = _newton_schulz(matrices, self.iterations).mul_(math.sqrt(ratio) / taps)
        return polar.movedim(lead, -1).reshape(weight.shape)

    def _matrices(self, ctx: Context) -> dict[str, Tensor]:
        lead = 0 if ctx.num_members is None else 1
        inside = _between_units(ctx)
        found = {}
        for name, parameter in ctx.parameters(self.where).items():
            kind, leaf = ctx.layer_types[name], name.rpartition(".")[2]
            known = issubclass(kind, _LAYERS) or kind.__name__ == "Conv1D" or lead == 1
            is_weight = leaf in ("weight", *_PROJECTIONS) if known else name in inside and not issubclass(kind, _NEVER)
            if is_weight and parameter.ndim - lead >= 2:
                found[name] = parameter
        return found


_LAYERS: tuple[type[nn.Module], ...] = (nn.Linear, nn.modules.conv._ConvNd, nn.MultiheadAttention)
_NEVER = (nn.Embedding, nn.EmbeddingBag, nn.RNNBase, nn.RNNCellBase, nn.Bilinear)
_PROJECTIONS = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")


def _newton_schulz(matrices: Tensor, iterations: int) -> Tensor:
    """Approximate polar factors of ``[*, m, n]``, at least in float32; a matrix of zeros stays one."""
    x = matrices if matrices.dtype == torch.float64 else matrices.float()
    is_wide = x.shape[-1] > x.shape[-2]
    x = x.mT if is_wide else x
    x = x / torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True).clamp(min=torch.finfo(x.dtype).tiny)
    for _ in range(iterations):
        x = 1.5 * x - 0.5 * x @ (x.mT @ x)
    polar: Tensor = x.mT if is_wide else x
    return polar


def _out_dim(ctx: Context, name: str) -> int:
    """The dimension of the outputs, counted from the end."""
    kind, ndim = ctx.layer_types[name], ctx.edit.tensors[name].ndim
    lead = 0 if ctx.num_members is None else 1
    exchanged = issubclass(kind, nn.modules.conv._ConvTransposeNd) or kind.__name__ == "Conv1D"
    if not exchanged and not issubclass(kind, _LAYERS) and lead == 0:
        exchanged = ("incoming", -1) in {(p.role, p.dim) for group in ctx.units for p in group.slices if p.name == name}
    return lead - ndim + (1 if exchanged else 0)


def _between_units(ctx: Context) -> set[str]:
    """Bare matrices that hidden units come out of and others go into, unless they start as a constant (a scale)."""
    ends: dict[str, set[int]] = {}
    for group in ctx.units:
        for piece in group.slices:
            if piece.role in ("incoming", "outgoing") and ctx.edit.tensors[piece.name].ndim == 2:
                ends.setdefault(piece.name, set()).add(piece.dim)
    inits = ctx.edit.inits
    return {
        name
        for name, dims in ends.items()
        if dims == {-1, -2} and not ((init := inits.get(name)) is not None and init.kind == "constant")
    }
