"""Self-normalised resets (Farias & Jozefiak, 2024): reset units that are silent for longer than they ever are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, final

import torch
from torch import Tensor

from pliant.devices import can_read
from pliant.interventions.base import Context, Intervention, PerUnit, require
from pliant.search import Choice, Domain, Range
from pliant.units.group import UnitGroup

__all__ = ["SelfNormalizedReset"]


@final
@dataclass(frozen=True)
class SelfNormalizedReset(Intervention):
    r"""Reset each unit that has been silent for longer than almost all of its own earlier silences.

    A unit fires in a step if :math:`h_i > 0` for any of the step's samples (and positions), or for more than a share
    ``min_active`` of them. :math:`a_i` is the number of steps since it last fired, and a gap is what :math:`a_i` was
    when the unit fired again or was reset. A unit is reset when

    .. math:: a_i \ge \tau_i.

    At first :math:`\tau_i` is ``initial_threshold``. After every ``update_every`` steps it follows the unit's gaps
    :math:`g > 0` since the last update, whose :math:`\eta`-quantile is :math:`q_i`:

    .. math:: \tau_i \leftarrow \begin{cases} q_i & q_i < \tau_i \\ \gamma \tau_i & \text{otherwise} \end{cases}
              \quad\text{, clipped to } [\tau_{min}, \tau_{max}].

    A unit that fired in every step has no gap, and :math:`q_i = 1`: its first silence is news.

    Args:
        percentile: :math:`\eta` in (0, 1]: the share of a unit's silences that its threshold covers.
        initial_threshold: :math:`\tau_i` in steps until the first update, between the two bounds below.
        min_threshold: :math:`\tau_{min} \ge 1`, in steps.
        max_threshold: :math:`\tau_{max}`, in steps; the histogram has one bin for each.
        expansion: :math:`\gamma > 1`.
        update_every: Steps between updates of the thresholds.
        min_active: A unit fires in a step if it is positive for more than this share of the step's samples, in
            [0, 1). Above 0 it makes sense for units that see many samples a step (channels, tokens), of which some
            are positive almost always.
        check_every: Steps between looks for silent units; ``None``: never (a no-op). On an accelerator, where nobody
            can see whether there are any, each look costs as much as a reset of each group, and ``10`` is cheaper.
        where: Which unit groups, a pattern of names.

    State:
        ``silent`` int64 ``[U]``, :math:`a_i`; ``threshold`` int64 ``[U]``, :math:`\tau_i`; ``gaps`` int64
        ``[U, max_threshold + 1]``, the histogram of gaps since the last update (bin 0 counts firings in successive
        steps, and is not used). Groups that a step did not use (the other heads of a multi-task network) do not age
        in it.

    Edits:
        Incoming weights (initial distribution), their biases (zero), norm parameters of the unit (initial values),
        outgoing weights (zero), moments of all of these (zero).

    Deviations from the published code:
        Time is counted in optimizer steps, not in samples, so that the bounds are those of the code divided by its
        batch size of 100; for a constant batch size nothing else changes. Thresholds are updated after a number of
        steps instead of a number of tasks. The paper's algorithm compares with a percentile of all gaps; this is the
        published estimate of it for mini-batches. A unit that neither fired nor was reset since the last update keeps
        its threshold (theirs falls to the least). Adam's step counter, one per tensor in PyTorch, is kept.

    Source:
        Farias & Jozefiak, Self-Normalized Resets for Plasticity in Continual Learning (2024), arXiv:2410.20098, and
        its code.

    Raises:
        IllegalConfiguration: At ``attach``, for a hyper-parameter out of range; in training, if activations are not
            finite when units would be reset.

    Example:
        >>> SelfNormalizedReset(percentile=0.95).null().check_every is None
        True
    """

    percentile: float = 0.99
    initial_threshold: int = 200
    min_threshold: int = 1
    max_threshold: int = 200
    expansion: float = 2.0
    update_every: int = 10_000
    min_active: float = 0.0
    check_every: int | None = 1
    where: str = "*"

    needs: ClassVar[frozenset[str]] = frozenset({"active_fraction"})
    redraws: ClassVar[bool] = True
    acts_in_quiet: ClassVar[bool] = True
    source: ClassVar[str] = "Farias & Jozefiak 2024"
    search: ClassVar[Mapping[str, Domain]] = {
        "percentile": Choice((0.9, 0.95, 0.99, 0.999)),
        "update_every": Range(0.1, 10, log=True, unit="task"),
    }
    defaults: ClassVar[Mapping[str, str]] = {
        "percentile": "the authors' code, threshold_percentile",
        "initial_threshold": "a choice of this library: the largest threshold, so that nothing is reset in haste",
        "min_threshold": "the authors' code: one batch",
        "max_threshold": "20,000 samples, as in a port of the authors' code, at the code's batch size of 100",
        "expansion": "the authors' code, threshold_expansion_factor",
        "update_every": "a choice of this library near the 16 tasks of the authors' code",
        "min_active": "the authors' code: a single positive sample is a firing",
        "check_every": "the authors' code: every step",
        "where": "all hidden units, as in the paper",
    }

    @property
    def state(self) -> Mapping[str, PerUnit]:  # type: ignore[override]
        """Its state; the histogram's size is an option."""
        return {
            "silent": PerUnit(dtype="int64"),
            "threshold": PerUnit(self.initial_threshold, dtype="int64"),
            "gaps": PerUnit(dtype="int64", shape=(max(self.max_threshold, 0) + 1,)),
        }

    def null(self) -> SelfNormalizedReset:
        """Never looks for silent units."""
        return replace(self, check_every=None)

    def unit_pattern(self) -> str:
        """The groups that it edits."""
        return self.where

    def samples(self, step: int) -> bool:
        """Every step: a firing that is not seen would make a silence longer than it is."""
        return self.check_every is not None

    def next_step(self, ctx: Context) -> int:
        """The next one."""
        return ctx.clock.next(None if self.check_every is None else 1)

    def check(self) -> None:
        """Check the hyper-parameters, on which the size of the state depends."""
        require(0 < self.percentile <= 1, self, "percentile", "in (0, 1]")
        require(self.min_threshold >= 1, self, "min_threshold", ">= 1")
        require(self.max_threshold >= self.min_threshold, self, "max_threshold", ">= min_threshold")
        within = self.min_threshold <= self.initial_threshold <= self.max_threshold
        require(within, self, "initial_threshold", "between min_threshold and max_threshold")
        require(self.expansion > 1, self, "expansion", "> 1")
        require(self.update_every >= 1, self, "update_every", ">= 1")
        require(0 <= self.min_active < 1, self, "min_active", "in [0, 1)")
        require(self.check_every is None or self.check_every >= 1, self, "check_every", "None or >= 1")

    def after_step(self, ctx: Context) -> None:
        """Count silences, reset what is silent for too long, and update the thresholds when due."""
        groups = [group for group in ctx.groups(self.where) if ctx.is_seen(group)]
        active = [ctx.stats(group).active_fraction for group in groups]
        self._count(ctx, groups, [fraction > self.min_active for fraction in active])
        if ctx.clock.every(self.check_every) and not ctx.is_quiet:
            overdue = [  # all are checked before any is edited
                (group, self._overdue(ctx, group, fraction)) for group, fraction in zip(groups, active, strict=True)
            ]
            for group, mask in overdue:
                if mask is not None:
                    state = ctx.state(group)
                    _record(state, mask)
                    state["silent"].masked_fill_(mask, 0)
                    ctx.edit.reset(group, mask, reason="silent for longer than its threshold")
        if ctx.clock.every(self.update_every):
            for group in ctx.groups(self.where):
                self._update(ctx.state(group))

    def _count(self, ctx: Context, groups: Sequence[UnitGroup], fires: Sequence[Tensor]) -> None:
        """One more step of silence, or the end of one."""
        live = ctx.live
        for group, fired in zip(groups, fires, strict=True):
            _record(ctx.state(group), fired if live is None else fired & (live > 0))
        for silent in ctx.states("silent", groups):
            silent.add_(1 if live is None else (live > 0).to(silent.dtype)).clamp_(max=self.max_threshold)
        for group, fired in zip(groups, fires, strict=True):
            ctx.state(group)["silent"].masked_fill_(fired if live is None else fired & (live > 0), 0)

    def _overdue(self, ctx: Context, group: UnitGroup, active: Tensor) -> Tensor | None:
        """Which units to reset; ``None`` where it is known that there are none."""
        state = ctx.state(group)
        mask = state["silent"] >= state["threshold"]
        if can_read(mask) and not bool(mask.any()):
            return None
        mask = mask & ctx.check_finite(active, group)
        return mask if ctx.live is None else mask & (ctx.live > 0)

    def _update(self, state: dict[str, Tensor]) -> None:
        """New thresholds from the gaps since the last update."""
        gaps, threshold = state["gaps"], state["threshold"]
        counts = gaps[..., 1:].cumsum(-1)
        share = counts / counts[..., -1:].clamp(min=1)
        quantile = (share < self.percentile).sum(-1) + 1  # the first bin whose share reaches the percentile
        quantile = torch.where(counts[..., -1] > 0, quantile, 1)
        expanded = (threshold * self.expansion).to(threshold.dtype)
        updated = torch.where(quantile < threshold, quantile, expanded).clamp(self.min_threshold, self.max_threshold)
        threshold.copy_(torch.where(gaps.sum(-1) > 0, updated, threshold))
        gaps.zero_()


def _record(state: dict[str, Tensor], ended: Tensor) -> None:
    """Note the lengths of the silences that have ended."""
    gaps = state["gaps"]
    gaps.scatter_add_(-1, state["silent"].unsqueeze(-1), ended.unsqueeze(-1).to(gaps.dtype))
