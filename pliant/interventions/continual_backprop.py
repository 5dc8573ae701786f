"""Continual backprop (Dohare et al., 2024): steadily replace the least useful mature units."""

from __future__ import annotations

import fnmatch
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar, final

import torch
from torch import Tensor

from pliant.devices import can_read
from pliant.interventions.base import Context, Intervention, PerUnit, Sample, require
from pliant.search import Domain, Range
from pliant.units.group import UnitGroup

__all__ = ["ContinualBackprop"]

_MAX_CADENCE = 8
_SAMPLES_PER_WINDOW = 12
_MAX_UNITS = 8
_MAX_DELAY = 0.08

_DEVIATIONS = ("zero_contribution", "adaptable_contribution", "feature_by_input")
_UTILITIES = ("contribution", *_DEVIATIONS, "weight", "adaptation", "random")


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
        utility: What a unit is worth. With :math:`out_i = \sum_k |w^{out}_{ki}|`, :math:`in_i = \sum_j |w^{in}_{ij}|`
            and :math:`\hat f_i` the running mean of :math:`h_i`: ``"contribution"`` is the formula above;
            ``"zero_contribution"`` has :math:`|h_i - \hat f_i|` in the place of :math:`|h_i|`;
            ``"adaptable_contribution"`` divides that by :math:`in_i`, since units with small incoming weights change
            fast; ``"feature_by_input"`` is :math:`\overline{|h_i - \hat f_i|} / in_i`; ``"weight"`` is :math:`out_i`,
            ``"adaptation"`` :math:`1 / in_i`, and ``"random"`` a number drawn at each decision.
        exact: Average the product :math:`|h_i| \sum_k |w_{ki}|` at every step, as the paper does, instead of
            multiplying the averaged activation with the weights at decision time. Reading every outgoing weight each
            step is most of the published code's cost.
        decide_every: Decide every so many steps, rounded up to whole samples. ``None``: whenever the rate has accrued
            up to eight units, at most 8 % of the group, but not more often than at every second sample, so that a
            replacement is late by at most 8 % of a unit's mean life or two samples. The accrued budget is exact either
            way.
        sample_every: Sample the activations every so many steps. ``None``: every 8, and oftener where the running
            mean, the maturity threshold or ``decide_every`` are short (at least 12 samples in ``1 / (1 - decay_rate)``
            and in ``maturity_threshold`` steps, and one in ``decide_every``); every step with ``exact=True``.
        where: Which unit groups, a pattern of names.
        rates: Replacement rates of their own for groups whose name matches a pattern, the first that does:
            ``(("blocks.0.*", 1e-5), ("head*", 0.0))``.
        accumulate: Carry the fraction of a unit that the budget holds over to the next decision; ``False``: replace
            one more unit with that probability, and forget it.
        compensate_bias: Add what a replaced unit sent on average, :math:`w^{out}_{ki} \hat f_i`, to the biases of the
            layers that read it.

    State:
        ``age`` int64 ``[U]``; ``activation`` float32 ``[U]`` (uncorrected running mean; of the utility if ``exact``);
        ``budget`` float32 ``[1]``, the unspent :math:`c`; ``since`` int64 ``[1]``, real steps since the last
        decision; where the utility or the compensation needs it, ``mean`` float32 ``[U]``, the uncorrected running
        mean of :math:`h`, and ``center``, the corrected one. All move at sampled steps, by the steps since the last
        sample. Under DDP the statistics are averaged over ranks. Groups that a sampled step did not use (the other
        heads of a multi-task network) do not age in it.

    Edits:
        Incoming weights (drawn from each layer's own initial distribution), their biases (zero), norm parameters and
        running statistics of the unit (initial values), outgoing weights (zero), moments of all of these (zero);
        with ``compensate_bias`` the biases behind them.

    Deviations from the published code:
        Torch's Adam has one step counter per tensor, so a reset unit's bias correction is that of its tensor. The
        published code's configurations for MNIST and ImageNet use ``utility="adaptable_contribution"``, with means
        where sums stand here (the ranking is the same) and :math:`\hat f` including the batch at hand (here: before
        it, as in the paper of 2021). Its transfer of the removed contribution into the next bias never acts. Without
        accumulation it drops the fraction beyond the first unit; here it is kept as a probability.

    Source:
        Dohare et al., Loss of plasticity in deep continual learning, Nature 632 (2024), algorithm 1; the other
        utilities and the bias: Dohare et al., Continual backprop (2021), arXiv:2108.06325, and the authors' code.

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
    rates: tuple[tuple[str, float], ...] = ()
    accumulate: bool = True
    compensate_bias: bool = False

    redraws: ClassVar[bool] = True
    acts_in_quiet: ClassVar[bool] = True
    source: ClassVar[str] = "Dohare et al. 2024"
    search: ClassVar[Mapping[str, Domain]] = {
        "replacement_rate": Range(1e-6, 1e-2, log=True),
        "maturity_threshold": Range(10, 10_000, log=True, integer=True),
    }
    defaults: ClassVar[Mapping[str, str]] = {
        "replacement_rate": "Dohare et al. (2024): the largest rate searched for permuted MNIST, and that of the Ant",
        "maturity_threshold": "Dohare et al. (2024): permuted MNIST and Continual ImageNet",
        "decay_rate": "Dohare et al. (2024), in all experiments",
        "utility": "Dohare et al. (2024), algorithm 1",
        "exact": "a choice of this library: cheaper, and learns as well on three streams (docs/results/speed.md)",
        "decide_every": "a choice of this library: several units at once, late by at most 8 % of a unit's mean life",
        "sample_every": "a choice of this library: at least 12 samples within each time constant",
        "where": "a choice of this library: all groups",
        "rates": "Dohare et al. (2024): one rate for all layers",
        "accumulate": "Dohare et al. (2024), algorithm 1",
        "compensate_bias": "Dohare et al. (2024): algorithm 1 has none",
    }

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]
        """The activation's mean size, and what the utility and the compensation ask for."""
        deviation = {"mean_abs_deviation"} if self.utility in _DEVIATIONS else set()
        mean = {"mean_activation"} if self._follows_mean else set()
        return frozenset({"mean_abs_activation", *deviation, *mean})

    @property
    def state(self) -> Mapping[str, PerUnit]:  # type: ignore[override]
        """Its state; running means of the activation itself only where an option needs them."""
        means = {"mean": PerUnit(), "center": PerUnit()} if self._follows_mean else {}
        return {
            "age": PerUnit(dtype="int64"),
            "activation": PerUnit(),
            "budget": PerUnit(per_group=True),
            "since": PerUnit(dtype="int64", per_group=True),
            **means,
        }

    @property
    def _follows_mean(self) -> bool:
        return self.utility in _DEVIATIONS or self.compensate_bias

    def null(self) -> ContinualBackprop:
        """Replacement rate zero, everywhere."""
        return replace(self, replacement_rate=0.0, rates=())

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

    def rate(self, group: UnitGroup) -> float:
        """The replacement rate of a group: its own, or the common one."""
        for pattern, rate in self.rates:
            if fnmatch.fnmatchcase(group.name, pattern):
                return rate
        return self.replacement_rate

    def period(self, group: UnitGroup) -> int:
        """Steps between the decisions on a group, ``decide_every`` or its default, rounded up to whole samples."""
        key = (group.name, group.size)
        if key not in self._periods:
            wanted, rate = self.decide_every, self.rate(group)
            if wanted is None:
                units = min(max(1, int(_MAX_DELAY * group.size)), _MAX_UNITS)
                accrues = int(units / (rate * group.size)) if rate else sys.maxsize // 2
                wanted = max(1, accrues, 2 * self.cadence if self.cadence > 1 else 1)
            self._periods[key] = -(-wanted // self.cadence) * self.cadence
        return self._periods[key]

    @cached_property
    def _periods(self) -> dict[tuple[str, int], int]:
        return {}

    def samples(self, step: int) -> bool:
        """Once in :attr:`cadence` steps."""
        return step % self.cadence == 0

    def next_sample(self, step: int) -> int:
        """The end of the cadence."""
        return (step // self.cadence + 1) * self.cadence

    def next_step(self, ctx: Context) -> int:
        """The next decision on a group, or the next sample where that cannot wait."""
        if self.exact or self.utility in _DEVIATIONS:  # each sample is measured about the mean of those before
            return ctx.clock.next(self.cadence)
        return min((ctx.clock.next(self.period(group)) for group in ctx.groups(self.where)), default=sys.maxsize)

    def check(self) -> None:
        """Check the pairs before they are taken apart."""
        pairs = self.rates if isinstance(self.rates, tuple) else (None,)
        valid = all(isinstance(pair, tuple) and len(pair) == 2 and 0 <= pair[1] <= 1 for pair in pairs)
        require(valid, self, "rates", "pairs of a pattern of group names and a rate in [0, 1]")

    def prepare(self, ctx: Context) -> None:
        """Check the hyper-parameters."""
        require(0 <= self.replacement_rate <= 1, self, "replacement_rate", "in [0, 1]")
        require(self.maturity_threshold >= 0, self, "maturity_threshold", ">= 0")
        require(0 <= self.decay_rate < 1, self, "decay_rate", "in [0, 1)")
        require(self.utility in _UTILITIES, self, "utility", f"one of {', '.join(_UTILITIES)}")
        require(self.decide_every is None or self.decide_every >= 1, self, "decide_every", "None or >= 1")
        require(self.sample_every is None or self.sample_every >= 1, self, "sample_every", "None or >= 1")
        require(not (self.exact and self.cadence > 1), self, "sample_every", "None or 1 when exact=True")
        reads = self.utility in ("contribution", *_DEVIATIONS)
        require(reads or not self.exact, self, "exact", "False for utilities that read no activations")
        for pattern, _ in self.rates:
            ctx.units.require(pattern)
        if self.utility in _DEVIATIONS:
            for group in ctx.groups(self.where):
                ctx.stats(group).measure_about(ctx.state(group)["center"])

    def observe(self, ctx: Context) -> None:
        """Age the units, and average what they do."""
        groups = ctx.groups(self.where)
        name = "mean_abs_deviation" if self.utility in _DEVIATIONS else "mean_abs_activation"
        histories = [ctx.stats(group).history(name) for group in groups]
        means = [ctx.stats(group).history("mean_activation") for group in groups] if self._follows_mean else []
        together = all(len(history) == len(ctx.samples) for history in histories)
        if together and groups:  # the usual case, in which time needs to pass only once
            self._age(ctx, groups, sum(sample.elapsed for sample in ctx.samples))
        for sample in ctx.samples:
            seen = [i for i, history in enumerate(histories) if sample.step in history]
            if not seen:  # this optimizer trains no group, or nothing was seen of any
                continue
            found = [groups[i] for i in seen]
            if not together:
                self._age(ctx, found, sample.elapsed)
            values = [histories[i][sample.step] for i in seen]
            if self.exact:
                values = [value * self._factor(ctx, group) for value, group in zip(values, found, strict=True)]
            self._average([ctx.state(group)["activation"] for group in found], values, sample)
            if self._follows_mean:
                self._average([ctx.state(g)["mean"] for g in found], [means[i][sample.step] for i in seen], sample)
        for group in groups if self._follows_mean else ():
            state = ctx.state(group)
            state["center"].copy_(state["mean"] / self._correction(state))

    def _age(self, ctx: Context, groups: Sequence[UnitGroup], elapsed: int | Tensor) -> None:
        for name in ("age", "since"):
            for clock in ctx.states(name, groups):
                clock.add_(elapsed)

    def _average(self, averages: list[Tensor], seen: list[Tensor], sample: Sample) -> None:
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
        step = ctx.clock.step
        if ctx.is_quiet:  # what is not replaced now is not made up for later
            for group in ctx.groups(self.where):
                ctx.state(group)["since"].zero_()
            return
        due = [
            (group, self._utility(ctx, group, ctx.state(group)))
            for group in ctx.groups(self.where)  # all are checked before any is edited
            if step % self.period(group) == 0 and self.rate(group)
        ]
        for group, utility in due:
            self._replace(ctx, group, ctx.state(group), utility)

    def _correction(self, state: dict[str, Tensor]) -> Tensor:
        """Of running means for their start at zero."""
        age: Tensor = state["age"].clamp(min=1).to(state["activation"].dtype)
        return 1 - self.decay_rate**age

    def _factor(self, ctx: Context, group: UnitGroup) -> Tensor:
        """What the weights contribute to the utility."""
        if self.utility in ("contribution", "zero_contribution", "weight"):
            return ctx.magnitude(group)
        incoming = ctx.magnitude(group, "incoming").clamp(min=torch.finfo(torch.float32).tiny)
        return (ctx.magnitude(group) if self.utility == "adaptable_contribution" else 1.0) / incoming

    def _utility(self, ctx: Context, group: UnitGroup, state: dict[str, Tensor]) -> Tensor:
        activity = state["activation"] / self._correction(state)
        finite = ctx.check_finite(activity, group)
        if self.utility == "random":
            utility = ctx.edit.draw_normal(activity)
        elif self.utility in ("weight", "adaptation"):
            utility = self._factor(ctx, group)
        else:
            utility = activity if self.exact else activity * self._factor(ctx, group)
        return torch.where(finite & utility.isfinite(), utility, torch.inf)

    def _replace(self, ctx: Context, group: UnitGroup, state: dict[str, Tensor], utility: Tensor) -> None:
        age, budget, since = (state[name] for name in ("age", "budget", "since"))
        # each unit has been mature for min(age - m, since) of the steps since the last decision
        mature_steps = torch.minimum((age - self.maturity_threshold).clamp(min=0), since).sum(-1, keepdim=True)
        budget.add_(self.rate(group) * mature_steps.to(budget.dtype))
        since.zero_()
        if self.accumulate and can_read(budget) and bool((budget < 1).all()):
            return
        eligible = (age > self.maturity_threshold) & (utility < torch.inf)
        if ctx.live is not None:  # nothing is replaced at a skipped step; the budget waits
            eligible = eligible & (ctx.live > 0)
        allowed = budget.floor()
        if not self.accumulate:
            allowed = allowed + (ctx.edit.uniform(group.slices[0].name).reshape(budget.shape) < budget - allowed)
        order = torch.where(eligible, utility, torch.inf).argsort(dim=-1, stable=True)
        affordable = torch.arange(group.size, device=order.device) < allowed
        mask = torch.zeros_like(eligible).scatter_(-1, order, affordable) & eligible
        if self.accumulate:
            budget.sub_(mask.sum(-1, keepdim=True))
        else:
            budget.zero_() if ctx.live is None else budget.mul_(1 - ctx.live)
        at_most = min(int(self.period(group) * self.rate(group) * group.size) + 2, group.size)
        if self.compensate_bias:
            ctx.edit.compensate(group, torch.where(mask, state["center"], 0.0), reason="what replaced units sent")
        ctx.edit.reset(group, mask, at_most=at_most, reason="low utility")
        for name, value in state.items():
            if name not in ("budget", "since"):
                value.masked_fill_(mask, 0)
