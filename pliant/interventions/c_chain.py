"""C-CHAIN (Tang et al., 2025): outputs on a reference batch stay near those of the network of a step ago."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, final

import torch
from torch import Tensor

from pliant.errors import IllegalConfiguration, NotYetSupported
from pliant.interventions.base import Context, Intervention, Scalar, Snapshot, require
from pliant.interventions.state import StateKind
from pliant.interventions.weight_penalty import wide
from pliant.search import Domain, Range
from pliant.sharded import is_sharded
from pliant.units.export import Inputs, model_outputs

__all__ = ["CChain"]

_EPSILON = 1e-8
_UNKNOWN = -1.0  # no absolute value, and equal to itself, unlike a NaN


@final
@dataclass(frozen=True)
class CChain(Intervention):
    r"""Add to the loss how much the outputs on other data have just changed (their churn).

    .. math:: c \; \mathbb{E}_{x \in \text{reference}} \left|f_\theta(x) - f_{\theta^-}(x)\right|^2, \qquad
              c = \rho \, \frac{\overline{|L|}}{\overline{\text{churn}} + 10^{-8}}

    :math:`\theta^-` are the parameters of ``lag`` steps ago. Bars are running means, so that the term is about the
    share :math:`\rho` of the loss. Pass both with ``handle.penalty(loss=loss, reference=batch)``; the reference batch
    is drawn anew at each step, apart from the training batch (from the replay buffer, or the same rollout).

    Args:
        share: :math:`\rho >= 0`; ``0`` is a no-op.
        lag: How many steps ago, ``>= 1``.
        start: The first steps add nothing; the running means begin in them.
        window: Steps that the running means cover.
        every: Compare at every so many steps only, each time so many times as strongly; the other steps run no further
            forward pass.

    State:
        ``theta_0`` to ``theta_<lag>``: copies of the network after the last steps; running means of the loss's absolute
        value and of the churn, and the values of the step in progress.

    Edits:
        None; it acts through ``handle.penalty()`` alone.

    Deviations from the published code:
        The running means are exponential after the first ``window`` steps, and of single steps (theirs: of the last
        minibatch of each of the last 100 iterations). Before the coefficient is known nothing is added (theirs: a fixed
        coefficient). Theirs has an annealing factor in one of its environments, regularises the policy only, and
        weighs by the policy's loss: here it is all outputs of the model, and the loss that you pass.

    Source:
        Tang et al., Mitigating Plasticity Loss in Continual Reinforcement Learning by Reducing Churn (2025),
        arXiv:2506.00592.

    Raises:
        IllegalConfiguration: At ``attach``, for a hyper-parameter out of range; from ``handle.penalty()``, without a
            loss or a reference batch.
        NotYetSupported: At ``attach``, for a model that is sharded over processes.

    Example:
        >>> CChain(share=0.1).null()
        CChain(share=0.0, lag=1, start=100, window=100, every=1)
    """

    share: float = 0.05
    lag: int = 1
    start: int = 100
    window: int = 100
    every: int = 1

    acts_in_quiet: ClassVar[bool] = True
    source: ClassVar[str] = "Tang et al. 2025"
    search: ClassVar[Mapping[str, Domain]] = {"share": Range(0.005, 0.5, log=True)}
    defaults: ClassVar[Mapping[str, str]] = {
        "share": "authors' code, DeepMind Control (target_rel_loss_scale)",
        "lag": "authors' code: the agent before the last update",
        "start": "choice of this library; their coefficient adapts after 50 iterations, or 10,000 updates",
        "window": "authors' code, DeepMind Control: the last 100 values",
        "every": "every step, as in the paper",
    }

    @property
    def state(self) -> Mapping[str, StateKind]:  # type: ignore[override]  # as many copies as the lag needs
        """Copies of the network, and numbers."""
        copies = {f"theta_{age}": Snapshot() for age in range(self.lag + 1)}
        return {
            **copies,
            **{"mean_loss": Scalar(), "mean_churn": Scalar(), "loss": Scalar(_UNKNOWN), "churn": Scalar(_UNKNOWN)},
        }

    @property
    def needs_penalty(self) -> bool:
        """It acts through the loss alone."""
        return self.share > 0

    def null(self) -> CChain:
        """A share of zero."""
        return replace(self, share=0.0)

    def check(self) -> None:
        """Check the hyper-parameters, on which the number of copies depends."""
        require(self.share >= 0, self, "share", ">= 0")
        require(self.lag >= 1, self, "lag", ">= 1")
        require(self.start >= 0, self, "start", ">= 0")
        require(self.window >= 1, self, "window", ">= 1")
        require(self.every >= 1, self, "every", ">= 1")

    def prepare(self, ctx: Context) -> None:
        """A model that is not sharded."""
        if any(is_sharded(tensor) for tensor in ctx.edit.tensors.values()):
            raise NotYetSupported("CChain runs copies of the network, which a sharded model does not allow.")

    def next_step(self, ctx: Context) -> int:
        """Every step, for the first optimizer alone."""
        return ctx.clock.next(1 if self.share > 0 and ctx.index == 0 else None)

    def penalty(self, ctx: Context) -> Tensor | None:
        """The term for the loss; nothing but the values in progress is changed."""
        if self.share == 0 or ctx.index > 0 or (ctx.clock.step + 1) % self.every:
            return None
        loss, reference = self._given(ctx)
        starts = ctx.clock.step >= max(self.start, self.lag)
        with torch.no_grad():
            before = model_outputs(ctx.call(reference, ctx.snapshot(f"theta_{self.lag}")))
        with torch.set_grad_enabled(starts and torch.is_grad_enabled()):
            now = model_outputs(ctx.call(reference))
            churn = self._churn(ctx, now, before)
        ctx.scalar("loss").copy_(loss.detach().abs())
        ctx.scalar("churn").copy_(churn.detach())
        return (self.every * self._coefficient(ctx) * churn).sum() if starts else None

    def after_step(self, ctx: Context) -> None:
        """Move the running means, and let the copies age by one step."""
        if self.share == 0 or ctx.index > 0:
            return
        loss, churn = ctx.scalar("loss"), ctx.scalar("churn")
        known = loss.isfinite() & churn.isfinite() & (churn >= 0)
        if ctx.live is not None:
            known = known & (ctx.live > 0)
        weight = self.every / min(max(ctx.clock.step - self.lag, self.every), max(self.window, self.every))
        for mean, value in ((ctx.scalar("mean_loss"), loss), (ctx.scalar("mean_churn"), churn)):
            if ctx.clock.step > self.lag:  # before, both networks were the initial one
                mean.copy_(torch.where(known, torch.lerp(mean, value, weight), mean))
            value.fill_(_UNKNOWN)
        with torch.no_grad():
            for age in range(self.lag, -1, -1):
                older = ctx.snapshot(f"theta_{age}")
                newer = ctx.snapshot(f"theta_{age - 1}") if age else ctx.edit.tensors
                _copy(older, newer, ctx.live)

    def on_record(self, ctx: Context) -> Mapping[str, float]:
        """The coefficient and the churn, means over members."""
        if self.share == 0 or ctx.index > 0:
            return {}
        churn = float(ctx.scalar("mean_churn").mean())
        return {"coefficient": float(self._coefficient(ctx).mean()), "churn": churn}

    def _coefficient(self, ctx: Context) -> Tensor:
        return self.share * ctx.scalar("mean_loss") / (ctx.scalar("mean_churn") + _EPSILON)

    def _given(self, ctx: Context) -> tuple[Tensor, Inputs]:
        shape = () if ctx.num_members is None else (ctx.num_members,)
        if ctx.loss is None or ctx.reference is None:
            missing = "loss=loss" if ctx.loss is None else "reference=batch"
            raise IllegalConfiguration(
                f"CChain: handle.penalty() was called without {missing}. Pass the loss that the term is added to, and "
                "a batch of inputs besides the one that is trained on: handle.penalty(loss=loss, reference=batch)."
            )
        if tuple(ctx.loss.shape) != shape:
            raise IllegalConfiguration(
                f"CChain: handle.penalty(loss=...) has shape {tuple(ctx.loss.shape)}; pass "
                + ("a scalar." if not shape else f"the loss of each member, {shape}, not their sum.")
            )
        return ctx.loss, ctx.reference

    def _churn(self, ctx: Context, now: list[Tensor], before: list[Tensor]) -> Tensor:
        """Mean squares of the differences, summed over outputs: ``[]`` or ``[S]``."""
        found = []
        for new, old in zip(now, before, strict=True):
            if new.is_floating_point():
                squares = wide(new - old).square()
                found.append(squares.mean() if ctx.num_members is None else squares.flatten(1).mean(1))
        if not found:
            raise IllegalConfiguration("CChain: the model has no floating-point output that could be compared.")
        return torch.stack(found).sum(0)


def _copy(to: Mapping[str, Tensor], values: Mapping[str, Tensor], live: Tensor | None) -> None:
    names = list(to)
    news = [values[name].detach() for name in names]
    if live is not None:
        news = [torch.where(live > 0, new, to[name]) for name, new in zip(names, news, strict=True)]
    torch._foreach_copy_([to[name] for name in names], news)
