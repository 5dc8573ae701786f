"""Normalize-and-Project (Lyle et al., 2024): weights are kept at their initial norm."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, final

import torch
from torch import Tensor

from pliant.errors import IllegalConfiguration, NoEffect, NoEffectWarning
from pliant.interventions.base import Context, Intervention, PerParameter, require
from pliant.interventions.l2 import L2
from pliant.interventions.state import StateKind, tensor_norms
from pliant.interventions.weight_clipping import WeightClipping
from pliant.search import Choice, Domain
from pliant.units.norms import Affine, affine_parameters, is_norm

__all__ = ["NormalizeAndProject"]

_NO_NORM = (
    "NormalizeAndProject: the model has no normalisation layer. The projection leaves a network's function as it is "
    "only where a norm follows each layer; without one it is a constraint on what the network can compute, and not "
    "the published method. Put norms before the activations first, or say unnormalised='ignore' if you mean it."
)


@final
@dataclass(frozen=True)
class NormalizeAndProject(Intervention):
    r"""Scale every weight matrix and kernel back to the Frobenius norm that it had when the method was attached.

    .. math:: W \leftarrow \frac{\|W_0\|_F}{\|W\|_F}\, W \quad \text{after every } k \text{ steps.}

    Where a norm stands behind a layer, the scale of :math:`W` does not change the function, but the step size that
    matters is :math:`\alpha / \|W\|^2`: it decays as the weights grow. Held at their initial norm they learn at the
    rate that the schedule says. Gains :math:`\sigma` and offsets :math:`\mu` of the norms do change the function.
    They are projected together, :math:`(\sigma, \mu) \leftarrow \sqrt d\,(\sigma, \mu) / \|(\sigma, \mu)\|` with
    :math:`d` gains, which homogeneous activations such as ReLU allow, or pulled to their initial values by
    :math:`\delta`, or left alone.

    Args:
        every: Period in optimizer steps, :math:`k`; ``None``: never (a no-op).
        affine: What becomes of gains and offsets: ``"decay"``, ``"project"`` or ``"keep"``.
        decay: :math:`\delta` in [0, 1], the share of the way to their initial values at each projection, for
            ``affine="decay"``.
        unnormalised: What happens if the model has no norm at all: ``"refuse"``, ``"warn"`` or ``"ignore"``.
        where: Which parameters, a pattern of names. Of those, whatever has two dimensions or more is projected, and
            gains and offsets are treated as ``affine`` says; biases are left alone.

    State:
        ``norm``, one number per parameter (and member): its Frobenius norm at ``attach``.

    Edits:
        Weights, gains and offsets; moments are kept.

    Deviations from the published method:
        The paper's networks have no biases before norms; here a bias that the model has is left alone, and is then
        the one part of the layer whose size is free. The norm layers are not inserted.

    Source:
        Lyle et al., Normalization and effective learning rates in reinforcement learning (2024), arXiv:2407.01800.

    Raises:
        IllegalConfiguration: At ``attach``, for an option out of range, for a model without norms unless allowed, and
            for a norm that has an offset and no gain with ``affine="project"``.
        NoEffect: At ``attach``, if no weight matches.

    Example:
        >>> NormalizeAndProject(every=10).null()
        NormalizeAndProject(every=None, affine='decay', decay=0.001, unnormalised='refuse', where='*')
    """

    every: int | None = 1
    affine: str = "decay"
    decay: float = 1e-3
    unnormalised: str = "refuse"
    where: str = "*"

    state: ClassVar[Mapping[str, StateKind]] = {"norm": PerParameter("norm")}
    acts_in_quiet: ClassVar[bool] = True
    source: ClassVar[str] = "Lyle et al. 2024"
    search: ClassVar[Mapping[str, Domain]] = {"affine": Choice(("decay", "project", "keep"))}
    defaults: ClassVar[Mapping[str, str]] = {
        "every": "the paper: every step",
        "affine": "the paper's form for activations of any kind; 'project' is its form for homogeneous ones",
        "decay": "a choice of this library: back to the initial values within thousands of steps",
        "unnormalised": "a choice of this library: without norms it is another method",
        "where": "all weights, as in the paper",
    }

    def null(self) -> NormalizeAndProject:
        """Never due."""
        return replace(self, every=None)

    def parameter_pattern(self) -> str:
        """The parameters whose norm is remembered."""
        return self.where

    def conflicts_with(self, other: Intervention) -> str | None:
        """Decoupled L2 scales whole tensors, which the projection takes back; clipped weights leave their bounds."""
        if self.every is None:
            return None
        if isinstance(other, L2) and other.strength and other.apply == "decoupled":
            why = "the projection gives every weight back the norm that L2 has taken from it"
        elif isinstance(other, WeightClipping) and other != other.null():
            why = "the projection moves weights beyond the bounds to which they are clipped"
        else:
            return None
        return why if "*" in (self.where, other.where) or self.where == other.where else None

    def next_step(self, ctx: Context) -> int:
        """The end of the period."""
        return ctx.clock.next(self.every)

    def prepare(self, ctx: Context) -> None:
        """Check the options, and that there are weights and norms."""
        require(self.every is None or self.every >= 1, self, "every", "None or >= 1")
        require(self.affine in ("decay", "project", "keep"), self, "affine", "'decay', 'project' or 'keep'")
        require(0 <= self.decay <= 1, self, "decay", "in [0, 1]")
        require(self.unnormalised in ("refuse", "warn", "ignore"), self, "unnormalised", "'refuse', 'warn' or 'ignore'")
        parameters = ctx.parameters(self.where)
        pairs = self._pairs(ctx, parameters)
        if not self._weights(ctx, parameters, pairs):
            raise NoEffect(f"NormalizeAndProject: no weight matrix or kernel matches where={self.where!r}.")
        if not any(is_norm(module) for module in ctx.modules.values()):
            if self.unnormalised == "refuse":
                raise IllegalConfiguration(_NO_NORM)
            if self.unnormalised == "warn":
                warnings.warn(_NO_NORM, NoEffectWarning, stacklevel=2)
        for pair in pairs if self.affine == "project" else ():
            if pair.gain is None:
                raise IllegalConfiguration(
                    f"NormalizeAndProject: affine='project' scales a gain and its offset together, but the norm of "
                    f"{pair.offset!r} has no gain. Use affine='decay' or 'keep'."
                )

    def after_step(self, ctx: Context) -> None:
        """Project, when due."""
        if not ctx.clock.every(self.every):
            return
        parameters = ctx.parameters(self.where)
        pairs = self._pairs(ctx, parameters)
        self._project_weights(ctx, self._weights(ctx, parameters, pairs))
        if self.affine == "project":
            self._project_pairs(ctx, pairs)
        elif self.affine == "decay" and self.decay > 0:
            self._decay_pairs(ctx, pairs, parameters)

    def _pairs(self, ctx: Context, parameters: Mapping[str, Tensor]) -> tuple[Affine, ...]:
        return affine_parameters(ctx.modules, parameters)

    def _weights(self, ctx: Context, parameters: Mapping[str, Tensor], pairs: Sequence[Affine]) -> list[str]:
        of_norms = {name for pair in pairs for name in pair}
        least = 2 if ctx.num_members is None else 3
        return [name for name, item in parameters.items() if item.ndim >= least and name not in of_norms]

    def _project_weights(self, ctx: Context, names: list[str]) -> None:
        if not names:
            return
        initial = ctx.parameter_state("norm")
        now = tensor_norms([ctx.whole(name) for name in names], ctx.num_members)
        wanted = torch.cat([initial[name].flatten() for name in names])
        factors = _ratio(wanted, now).reshape(len(names), -1).unbind()
        ctx.edit.shrink(names, [f.view(initial[name].shape) for name, f in zip(names, factors, strict=True)])

    def _project_pairs(self, ctx: Context, pairs: Sequence[Affine]) -> None:
        for gain, offset in pairs:
            if gain is None:
                continue
            # where the gain is one plus a parameter, that starts at zero
            shift = 1 - _initial(ctx, gain, 1.0)
            values = [ctx.whole(gain) + shift] + ([] if offset is None else [ctx.whole(offset)])
            now = torch.linalg.vector_norm(tensor_norms(values, None))
            factor = _ratio(now.new_full((), math.sqrt(values[0].numel())), now)
            ctx.edit.shrink([gain], [factor], towards=[_constant(values[0], -shift)] if shift else None)
            if offset is not None:
                ctx.edit.shrink([offset], [factor])

    def _decay_pairs(self, ctx: Context, pairs: Sequence[Affine], parameters: Mapping[str, Tensor]) -> None:
        starts = {name: _initial(ctx, name, float(name == pair.gain)) for pair in pairs for name in pair if name}
        towards = [_constant(parameters[name], start) for name, start in starts.items()]
        ctx.edit.shrink(list(starts), [1 - self.decay] * len(starts), towards=towards)


def _constant(like: Tensor, value: float) -> Tensor:
    """A tensor of another one's shape that takes no memory."""
    return torch.full((), value, dtype=like.dtype, device=like.device).expand(like.shape)


def _ratio(wanted: Tensor, now: Tensor) -> Tensor:
    """By what to multiply; nothing has no direction, and what is not finite stays as it is."""
    return torch.where((now > 0) & now.isfinite(), wanted / now, 1.0)


def _initial(ctx: Context, name: str, default: float) -> float:
    """Where a gain or offset started."""
    init = ctx.edit.inits.get(name)
    return float(init.scale) if init is not None and init.kind == "constant" else default
