"""A method from outside the package, in one file: it passes the contracts of all, and the command line takes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, final

import torch

from pliant.interventions.base import Context, Intervention, PerUnit, require
from pliant.search import Domain, Range


@final
@dataclass(frozen=True)
class OveractiveDecay(Intervention):
    r"""Every so many steps, shrink the outgoing weights of the units that are much more active than the others.

    .. math:: w^{out}_{ki} \leftarrow \gamma\, w^{out}_{ki} \quad \text{where } \mathbb{E}|h_i| > \kappa \cdot
              \tfrac1U \sum_j \mathbb{E}|h_j|

    Args:
        limit: :math:`\kappa \ge 1`, how much more than the mean is too much.
        decay: :math:`\gamma` in [0, 1]; ``1`` is a no-op.
        every: Period in optimizer steps.
        where: Which unit groups, a pattern of names.

    State:
        ``decayed``, how often each unit was.

    Edits:
        Outgoing weights; moments are kept.

    Source:
        None: an example of a method of one's own.

    Raises:
        IllegalConfiguration: At ``attach``, for a hyper-parameter out of range.
    """

    limit: float = 2.0
    decay: float = 0.9
    every: int = 100
    where: str = "*"

    needs: ClassVar[frozenset[str]] = frozenset({"mean_abs_activation"})
    state: ClassVar[Mapping[str, PerUnit]] = {"decayed": PerUnit(dtype="int64")}
    source: ClassVar[str] = "an example"
    search: ClassVar[Mapping[str, Domain]] = {"limit": Range(1.5, 8.0, log=True), "decay": Range(0.5, 0.99)}
    defaults: ClassVar[Mapping[str, str]] = dict.fromkeys(("limit", "decay", "every", "where"), "a guess")

    def null(self) -> OveractiveDecay:
        return replace(self, decay=1.0)

    def unit_pattern(self) -> str:
        return self.where

    def samples(self, step: int) -> bool:
        return step % self.every == 0

    def next_step(self, ctx: Context) -> int:
        return ctx.clock.next(self.every)

    def prepare(self, ctx: Context) -> None:
        require(self.limit >= 1, self, "limit", ">= 1")
        require(0 <= self.decay <= 1, self, "decay", "in [0, 1]")
        require(self.every >= 1, self, "every", ">= 1")

    def after_step(self, ctx: Context) -> None:
        if self.decay == 1 or not ctx.clock.every(self.every):
            return
        for group in ctx.groups(self.where):
            if not ctx.is_seen(group):
                continue
            activity = ctx.stats(group).mean_abs_activation
            too_active = (activity > self.limit * activity.mean(-1, keepdim=True)) & ctx.check_finite(activity, group)
            ctx.edit.scale(group, torch.where(too_active, self.decay, 1.0), reason="over-active")
            hits = too_active if ctx.live is None else too_active & (ctx.live > 0)
            ctx.state(group)["decayed"].add_(hits)

    def on_record(self, ctx: Context) -> Mapping[str, float]:
        return {"decayed": sum(float(ctx.state(group)["decayed"].sum()) for group in ctx.groups(self.where))}
