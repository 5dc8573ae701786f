"""Continual backprop (Dohare et al., 2024): steadily replace the least useful mature units."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar, final

import torch
from torch import Tensor

from pliant.devices import can_read
from pliant.interventions.base import Context, Intervention, PerUnit, Sample, require
from pliant.units.group import UnitGroup

__all__ = ["ContinualBackprop"]

_MAX_CADENCE = 8
_SAMPLES_PER_WINDOW = 12
_MAX_UNITS = 8
_MAX_DELAY = 0.04


@final
@dataclass(frozen=True)
class ContinualBackprop(Intervention):
    r"""Replace, in every unit group, a small fraction of the mature units with the least contribution utility.

    With :math:`\overline{|h_i|}` the running mean of the unit's absolute activation (decay :math:`\eta`, corrected
    for its start at zero) and :math:`a_i` its age in steps,

    .. math:: u_i = \overline{|h_i|} \sum_k |w^{out}_{ki}|, \qquad
              c \leftarrow c + \rho \, |\{i : a_i > m\}| \text{ per step.}

    Whenever :math:`c \ge 1`, the :math:`\lfloor c \rfloor` mature units of smallest :math:`u_i` get fresh incoming
    weights, zero bias, zero outgoing weights, restored norm parameters and cleared optimizer moments, and start again
    at age 0.

    Args:
        replacement_rate: :math:`\rho`, expected replacements per mature unit and step, in [0, 1]. ``0`` is a no-op.
        maturity_threshold: :math:`m`, steps for which a new unit is protected.
        decay_rate: :math:`\eta` of the running mean, in [0, 1).
        utility: ``"contribution"`` (the formula above).
        exact: Average the product :math:`|h_i| \sum_k |w_{ki}|` at every step, as the paper does, instead of
            multiplying the averaged activation with the weights at decision time. Reading every outgoing weight each
            step is most of the published code's cost.
        decide_every: Decide every so many steps, rounded up to whole samples. ``None``: whenever the rate has accrued
            one unit, but not more often than at every second sample, so that a replacement is late by at most
            ``max(1 / (replacement_rate * U), 2 * cadence)`` steps. The accrued budget is exact either way.
        sample_every: Sample the activations every so many steps. ``None``: every 8, and oftener where the running
            mean, the maturity threshold or ``decide_every`` are short (at least 12 samples in ``1 / (1 - decay_rate)``
            and in ``maturity_threshold`` steps, and one in ``decide_every``); every step with ``exact=True``.
        where: Which unit groups, a pattern of names.

    State:
        ``age`` int64 ``[U]``; ``activation`` float32 ``[U]`` (uncorrected running mean; of the utility if ``exact``);
        ``budget`` float32 ``[1]``, the unspent :math:`c`; ``since`` int64 ``[1]``, real steps since the last
        decision. All four move at sampled steps, by the steps since the last sample. Under DDP the statistics are
        averaged over ranks. Groups that a sampled step did not use (the other heads of a multi-task network) do not
        age in it.

    Edits:
        Incoming weights (drawn from each layer's own initial distribution), their biases (zero), norm parameters and
        running statistics of the unit (initial values), outgoing weights (zero), moments of all of these (zero).

    Deviations from the published code:
        Torch's Adam has one step counter per tensor, so a reset unit's bias correction is that of its tensor. The
        published code divides by fan-in and subtracts the mean in its "adaptable" utility; the paper's text, followed
        here, does not. Its transfer of the removed contribution into the next bias never acts and is left out.

    Source:
        Dohare et al., Loss of plasticity in deep continual learning, Nature 632 (2024), algorithm 1.

    Raises:
        IllegalConfiguration: At ``attach``, for a hyper-parameter out of range.

    Example:
        >>> method = ContinualBackprop(replacement_rate=1e-3)
        >>> eval(repr(method)) == method
        True
    """

    replacement_rate: float = 1e-4
    maturity_threshold: int = 100
    decay_rate: float = 0.99
    utility: str = "contribution"
    exact: bool = False
    decide_every: int | None = None
    sample_every: int | None = None
    where: str = "*"

    needs: ClassVar[frozenset[str]] = frozenset({"mean_abs_activation"})
    state: ClassVar[Mapping[str, PerUnit]] = {
        "age": PerUnit(dtype="int64"),
        "activation": PerUnit(),
        "budget": PerUnit(per_group=True),
        "since": PerUnit(dtype="int64", per_group=True),
    }
    redraws: ClassVar[bool] = True
    source: ClassVar[str] = "Dohare et al. 2024"
    defaults: ClassVar[Mapping[str, str]] = {
        "replacement_rate": "Dohare et al. (2024): the largest of the rates searched for permuted MNIST, 1e-4 to 1e-6",
        "maturity_threshold": "Dohare et al. (2024): permuted MNIST and Continual ImageNet",
        "decay_rate": "Dohare et al. (2024), in all experiments",
        "utility": "Dohare et al. (2024), algorithm 1",
        "exact": "a choice of this library: cheaper, and learns as well on three streams (docs/results/speed.md)",
        "decide_every": "a choice of this library: whenever a unit is due, but at most at every second sample",
        "sample_every": "a choice of this library: at least 12 samples within each time constant",
        "where": "a choice of this library: all groups",
    }

    def null(self) -> ContinualBackprop:
        """Replacement rate zero."""
        return replace(self, replacement_rate=0.0)

    def unit_pattern(self) -> str:
        """The groups that it edits."""
        return self.where

    @cached_property
    def cadence(self) -> int:
        """Steps between samples of the activations, ``sample_every`` or its default."""
        if self.sample_every is not None:
            return self.sample_every
        if self.exact:
            return 1
        window = round(min(1 / (1 - self.decay_rate), self.maturity_threshold))
        return max(1, min(_MAX_CADENCE, window // _SAMPLES_PER_WINDOW, self.decide_every or _MAX_CADENCE))

    def period(self, group: UnitGroup) -> int:
        """Steps between the decisions on a group, ``decide_every`` or its default, rounded up to whole samples."""
        found = self._periods.get(group.size)
        if found is None:
            wanted = self.decide_every
            if wanted is None:
                units = min(max(1, int(_MAX_DELAY * group.size)), _MAX_UNITS)
                accrues = int(units / (self.replacement_rate * group.size)) if self.replacement_rate else 1
                wanted = max(1, accrues, 2 * self.cadence if self.cadence > 1 else 1)
            found = self._periods[group.size] = -(-wanted // self.cadence) * self.cadence
        return found

    @cached_property
    def _periods(self) -> dict[int, int]:
        return {}

    def samples(self, step: int) -> bool:
        """Once in :attr:`cadence` steps."""
        return step % self.cadence == 0

    def next_sample(self, step: int) -> int:
        """The end of the cadence."""
        return (step // self.cadence + 1) * self.cadence

    def next_step(self, ctx: Context) -> int:
        """The next decision on a group; with ``exact=True`` the next step, whose weights are needed."""
        if self.exact:
            return ctx.clock.step + 1
        if self.replacement_rate == 0:
            return sys.maxsize
        return min((ctx.clock.next(self.period(group)) for group in ctx.groups(self.where)), default=sys.maxsize)

    def prepare(self, ctx: Context) -> None:
        """Check the hyper-parameters."""
        require(0 <= self.replacement_rate <= 1, self, "replacement_rate", "in [0, 1]")
        require(self.maturity_threshold >= 0, self, "maturity_threshold", ">= 0")
        require(0 <= self.decay_rate < 1, self, "decay_rate", "in [0, 1)")
        require(self.utility == "contribution", self, "utility", "'contribution'")
        require(self.decide_every is None or self.decide_every >= 1, self, "decide_every", "None or >= 1")
        require(self.sample_every is None or self.sample_every >= 1, self, "sample_every", "None or >= 1")
        require(not (self.exact and self.cadence > 1), self, "sample_every", "None or 1 when exact=True")

    def observe(self, ctx: Context) -> None:
        """Age the units, and average what they do."""
        groups = ctx.groups(self.where)
        histories = [ctx.stats(group).history("mean_abs_activation") for group in groups]
        together = all(len(history) == len(ctx.samples) for history in histories)
        if together and groups:  # the usual case, in which time needs to pass only once
            self._age(ctx, groups, sum(sample.elapsed for sample in ctx.samples))
        for sample in ctx.samples:
            found = [
                (group, history[sample.step])
                for group, history in zip(groups, histories, strict=True)
                if sample.step in history
            ]
            seen = [group for group, _ in found]
            if not seen:  # this optimizer trains no group, or nothing was seen of any
                continue
            if not together:
                self._age(ctx, seen, sample.elapsed)
            self._average(ctx, seen, [value for _, value in found], sample)

    def _age(self, ctx: Context, groups: Sequence[UnitGroup], elapsed: int | Tensor) -> None:
        for name in ("age", "since"):
            for clock in ctx.states(name, groups):
                clock.add_(elapsed)

    def _average(self, ctx: Context, groups: Sequence[UnitGroup], seen: list[Tensor], sample: Sample) -> None:
        averages = [ctx.state(group)["activation"] for group in groups]
        if self.exact:
            seen = [value * ctx.magnitude(group) for value, group in zip(seen, groups, strict=True)]
        seen = [
            value if value.dtype == average.dtype else value.to(average.dtype)
            for value, average in zip(seen, averages, strict=True)
        ]
        weight = 1 - self.decay_rate**sample.elapsed
        if not isinstance(weight, Tensor):
            torch._foreach_lerp_(averages, seen, weight)
            return
        for average, value in zip(averages, seen, strict=True):
            mixed = torch.lerp(average, value, weight.to(average.dtype))
            average.copy_(mixed if sample.live is None else torch.where(sample.live > 0, mixed, average))

    def after_step(self, ctx: Context) -> None:
        """Replace where the budget allows."""
        if self.replacement_rate == 0:
            return
        step = ctx.clock.step
        due = [
            (group, self._utility(ctx, group, ctx.state(group)))
            for group in ctx.groups(self.where)  # all are checked before any is edited
            if step % self.period(group) == 0
        ]
        for group, utility in due:
            self._replace(ctx, group, ctx.state(group), utility)

    def _utility(self, ctx: Context, group: UnitGroup, state: dict[str, Tensor]) -> Tensor:
        age, activation = state["age"], state["activation"]
        corrected = activation / (1 - self.decay_rate ** age.clamp(min=1).to(activation.dtype))
        utility = corrected if self.exact else corrected * ctx.magnitude(group)
        return torch.where(ctx.check_finite(utility, group), utility, torch.inf)

    def _replace(self, ctx: Context, group: UnitGroup, state: dict[str, Tensor], utility: Tensor) -> None:
        age, activation, budget, since = (state[name] for name in ("age", "activation", "budget", "since"))
        # each unit has been mature for min(age - m, since) of the steps since the last decision
        mature_steps = torch.minimum((age - self.maturity_threshold).clamp(min=0), since).sum(-1, keepdim=True)
        budget.add_(self.replacement_rate * mature_steps.to(budget.dtype))
        since.zero_()
        if can_read(budget) and bool((budget < 1).all()):
            return
        eligible = (age > self.maturity_threshold) & (utility < torch.inf)
        if ctx.live is not None:  # nothing is replaced at a skipped step; the budget waits
            eligible = eligible & (ctx.live > 0)
        order = torch.where(eligible, utility, torch.inf).argsort(dim=-1, stable=True)
        affordable = torch.arange(group.size, device=order.device) < budget.floor()
        mask = torch.zeros_like(eligible).scatter_(-1, order, affordable) & eligible
        budget.sub_(mask.sum(-1, keepdim=True))
        at_most = min(int(self.period(group) * self.replacement_rate * group.size) + 1, group.size)
        ctx.edit.reset(group, mask, at_most=at_most, reason="low utility")
        activation.masked_fill_(mask, 0.0)
        age.masked_fill_(mask, 0)
