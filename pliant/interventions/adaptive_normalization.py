"""Norms that come in layer by layer where units fall dormant or weights grow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pliant import metrics
from pliant.devices import can_read
from pliant.errors import NoEffect
from pliant.insertion import insert_normalization
from pliant.interventions.base import Context, Intervention, PerParameter, PerUnit, require
from pliant.interventions.state import StateKind, tensor_norms
from pliant.nn.wrapped import Normalized
from pliant.search import Domain, Range
from pliant.units.group import UnitGroup

__all__ = ["AdaptiveNormalization"]


@final
@dataclass(frozen=True)
class AdaptiveNormalization(Intervention):
    r"""Lay gated layer norms before all activations, and open a layer's gate while that layer is in trouble.

    Every layer's output becomes :math:`h + g\,(\operatorname{norm}(h) - h)` with :math:`g = 0` at first, which leaves
    the function as it is. At each check, a layer is called in trouble if the fraction :math:`d` of its units that are
    dormant (score at most :math:`\tau`, as in ReDo) or the growth :math:`w = \|W\| / \|W_0\|` of its weights is above
    its upper threshold, and well again once both are below their lower ones; in between it stays what it was.
    While it is in trouble, :math:`g \leftarrow g + \rho\,(1 - g)` at each check.

    Args:
        rate: :math:`\rho` in (0, 1], the share of the way to a full norm at each check.
        every: Period of the checks in optimizer steps; ``None``: never, and nothing is put in (a no-op).
        dormant_above: Upper threshold on :math:`d`.
        dormant_below: Lower threshold on :math:`d`, not above the upper one.
        growth_above: Upper threshold on :math:`w`.
        growth_below: Lower threshold on :math:`w`, not above the upper one.
        tau: :math:`\tau >= 0`.
        where: Which unit groups get a norm, a pattern of the names that they have before.

    State:
        ``in_trouble`` bool ``[1]`` per group; ``norm``, one number per parameter, its norm at ``attach``. The gates are
        buffers of the model.

    Edits:
        The model at ``attach`` (see :func:`pliant.insertion.insert_normalization`); afterwards the gates. Each opening
        is an event with the reason.

    Source:
        This library: the layer norms of Lyle et al. (2023), arXiv:2303.01486, with the score of Sokar et al. (2023),
        arXiv:2302.12902, for when they are wanted.

    Raises:
        IllegalConfiguration: At ``attach``, for an option out of range, or where a named group has no place for a norm.
        NoEffect: At ``attach``, if there is no place for a norm.

    Example:
        >>> AdaptiveNormalization(every=50).null().every is None
        True
    """

    rate: float = 0.1
    every: int | None = 100
    dormant_above: float = 0.2
    dormant_below: float = 0.1
    growth_above: float = 3.0
    growth_below: float = 2.0
    tau: float = 0.025
    where: str = "*"

    needs: ClassVar[frozenset[str]] = frozenset({"mean_abs_activation"})
    state: ClassVar[Mapping[str, StateKind]] = {
        "in_trouble": PerUnit(dtype="bool", per_group=True),
        "norm": PerParameter("norm"),
    }
    changes_model: ClassVar[bool] = True
    source: ClassVar[str] = "this library"
    search: ClassVar[Mapping[str, Domain]] = {
        "rate": Range(0.02, 1.0, log=True),
        "growth_above": Range(2.0, 10.0, log=True),
    }
    defaults: ClassVar[Mapping[str, str]] = {
        **dict.fromkeys(
            ("rate", "every", "dormant_above", "dormant_below", "growth_above", "growth_below"),
            "a choice of this library, not tuned",
        ),
        "tau": "ReDo's threshold (Sokar et al. 2023)",
        "where": "before all activations",
    }

    def null(self) -> AdaptiveNormalization:
        """Nothing is put in, and nothing checked."""
        return replace(self, every=None)

    def unit_pattern(self) -> str:
        """The groups that it looks at; those without a gate are left alone."""
        return "*"

    def parameter_pattern(self) -> str:
        """The weights of layers that have a norm behind them."""
        return "*layer.weight"

    def samples(self, step: int) -> bool:
        """Only the steps at which it checks."""
        return self.every is not None and step % self.every == 0

    def next_step(self, ctx: Context) -> int:
        """The end of the period."""
        return ctx.clock.next(self.every)

    def check(self) -> None:
        """Check the hyper-parameters, before the model is changed."""
        require(self.every is None or self.every >= 1, self, "every", "None or >= 1")
        require(0 < self.rate <= 1, self, "rate", "in (0, 1]")
        require(self.dormant_above >= 0, self, "dormant_above", ">= 0")
        require(0 <= self.dormant_below <= self.dormant_above, self, "dormant_below", "between 0 and dormant_above")
        require(self.growth_above >= 0, self, "growth_above", ">= 0")
        require(0 <= self.growth_below <= self.growth_above, self, "growth_below", "between 0 and growth_above")
        require(self.tau >= 0, self, "tau", ">= 0")

    def surgery_with(self, model: nn.Module, optimizers: Sequence[Optimizer], example_inputs: Any) -> None:
        """Put closed gates and norms in."""
        if self.every is not None:
            insert_normalization(
                model,
                "layer",
                example_inputs=example_inputs,
                optimizers=optimizers,
                gate="fixed",
                where=self.where,
            )

    def prepare(self, ctx: Context) -> None:
        """There is a gate to open, unless this optimizer trains no such layer."""
        if self.every is not None and not any(self._layers(ctx, group) for group in ctx.groups()):
            raise NoEffect("AdaptiveNormalization: no layer with a gate is trained by this optimizer.")

    def after_step(self, ctx: Context) -> None:
        """Check every layer, when due, and open the gates of those in trouble."""
        if not ctx.clock.every(self.every):
            return
        for group in ctx.groups():
            layers = self._layers(ctx, group)
            if layers and ctx.is_seen(group):
                self._check(ctx, group, layers)

    def on_record(self, ctx: Context) -> Mapping[str, float]:
        """The mean of all gates, and the fraction of layers in trouble."""
        groups = {group.name: layers for group in ctx.groups() if (layers := self._layers(ctx, group))}
        if not groups:
            return {}
        gates = [ctx.whole(f"{path}.gate").float() for layers in groups.values() for path in layers]
        troubles = [ctx.state(group)["in_trouble"].float().mean() for group in ctx.groups() if group.name in groups]
        return {"gate": float(torch.stack(gates).mean()), "in_trouble": float(torch.stack(troubles).mean())}

    def _layers(self, ctx: Context, group: UnitGroup) -> list[str]:
        """The layers of a group that have a gate of this kind behind them."""
        paths = [piece.name.removesuffix(".layer.weight") for piece in group.role("incoming")]
        found = [path for path in dict.fromkeys(paths) if isinstance(ctx.modules.get(path), Normalized)]
        return [path for path in found if "gate" in ctx.modules[path]._buffers]

    def _check(self, ctx: Context, group: UnitGroup, layers: list[str]) -> None:
        mean_abs = ctx.stats(group).mean_abs_activation
        dormant = metrics.dormant_fraction(mean_abs, self.tau)
        initial = ctx.parameter_state("norm")
        names = [name for path in layers if (name := f"{path}.layer.weight") in initial]
        now = tensor_norms([ctx.whole(name) for name in names], None)
        growth = (now / torch.cat([initial[name].flatten() for name in names])).max()
        trouble = (dormant > self.dormant_above) | (growth > self.growth_above)
        well = (dormant < self.dormant_below) & (growth < self.growth_below)
        state = ctx.state(group)["in_trouble"]
        now_in_trouble = trouble | (state & ~well)
        state.copy_(now_in_trouble if ctx.live is None else torch.where(ctx.live > 0, now_in_trouble, state))
        if can_read(state) and not bool(state):
            return
        reason = f"dormant fraction above {self.dormant_above} or weights grown by more than {self.growth_above}"
        for path in layers:
            self._open(ctx, f"{path}.gate", state, reason)

    def _open(self, ctx: Context, name: str, state: Tensor, reason: str) -> None:
        gate = ctx.whole(name)
        opened = gate + self.rate * state.to(gate.dtype).reshape(()) * (1 - gate)
        ctx.edit.assign(name, opened, moments="keep", reason=reason)
