"""What a stream asks for: the gradient of its loss with respect to the outputs, the loss itself, and the score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor
from torch.nn import functional as F

from pliant.bench.streams.base import LOSSES
from pliant.errors import IllegalConfiguration

__all__ = ["Heads", "Meter", "Objective", "auc", "logit_gradient"]

_FITTING = {
    "cross_entropy": ("accuracy",),
    "mse": ("mse",),
    "binary_cross_entropy": ("accuracy", "auc"),
}
"""The scores that can be taken of the outputs, by the loss that these are trained with."""


def logit_gradient(logits: Tensor, target_SBC: Tensor) -> Tensor:
    """Return the gradient of each member's mean cross-entropy with respect to its logits.

    Args:
        logits: any shape ``[..., C]``.
        target_SBC: minus one over the batch size at the label of each example, zero elsewhere, shaped as logits.

    It is what autograd computes for ``F.cross_entropy``, bit by bit, at a fifth of the cost; the loss itself is
    evaluated once per chunk from the kept logits.
    """
    gradient: Tensor = torch.ops.aten._log_softmax_backward_data(
        target_SBC, torch.log_softmax(logits, -1), -1, logits.dtype
    )
    return gradient


def auc(scores_SN: Tensor, labels_SN: Tensor) -> Tensor:
    r"""Area under the receiver operating characteristic of each member, ``[S]``: ties count half.

    .. math:: P(s_+ > s_-) + \tfrac12 P(s_+ = s_-)

    Args:
        scores_SN: larger means more likely positive.
        labels_SN: positive where larger than 0.5.

    Returns:
        float64 ``[S]``; NaN where a class is missing or a score is not finite.

    >>> auc(torch.tensor([[0.1, 0.4, 0.4, 0.8]]), torch.tensor([[0, 0, 1, 1]]))
    tensor([0.8750], dtype=torch.float64)
    """
    found = []
    for scores, labels in zip(scores_SN, labels_SN > 0.5, strict=True):
        values, inverse, counts = scores.unique(return_inverse=True, return_counts=True)
        below = counts.cumsum(0) - counts
        ranks = (below.double() + (counts.double() + 1) / 2)[inverse]  # the mean rank within each tie
        num_positive = labels.sum().double()
        num_negative = labels.numel() - num_positive
        won = ranks[labels].sum() - num_positive * (num_positive + 1) / 2
        found.append(torch.where(values.isfinite().all(), won / (num_positive * num_negative), torch.nan))
    return torch.stack(found)


@final
@dataclass(frozen=True)
class Objective:
    """The loss and the score of a stream, for the outputs of stacked members.

    Targets come in chunks of K batches: labels ``[K, S, B]`` (or ``[K, S, B, T]`` for outputs ``[K, S, B, T, C]``) for
    cross-entropy, and float ``[K, S, B]`` or ``[K, S, B, C]`` otherwise.

    Attributes:
        loss: one of :data:`~pliant.bench.streams.base.LOSSES`; a mean over examples (and positions, or outputs).
        score: ``"accuracy"``, ``"mse"`` or ``"auc"``.

    Raises:
        IllegalConfiguration: an unknown loss or score, or a score that does not fit the loss.
    """

    loss: str = "cross_entropy"
    score: str = "accuracy"

    def __post_init__(self) -> None:
        if self.loss not in LOSSES:
            raise IllegalConfiguration(f"a stream's loss is one of {', '.join(LOSSES)}; this one has {self.loss!r}")
        if self.score not in _FITTING[self.loss]:
            raise IllegalConfiguration(
                f"a stream with the loss {self.loss!r} can be scored by {' or '.join(_FITTING[self.loss])}, not by "
                f"{self.score!r}"
            )

    def constant(self, targets: Tensor, num_outputs: int, dtype: torch.dtype, weight_S: Tensor | None) -> Tensor:
        """The part of the gradient that does not depend on the outputs, of a whole chunk.

        Args:
            targets: ``[K, S, B]``, ``[K, S, B, T]`` or ``[K, S, B, C]``.
            num_outputs: C.
            dtype: that of the outputs.
            weight_S: factor of each member's gradient (0 silences it); None: all ones.
        """
        if self.loss != "cross_entropy":
            return _wide(targets).to(dtype)
        gradient = torch.zeros(*targets.shape, num_outputs, dtype=dtype, device=targets.device)
        gradient.scatter_(-1, targets.unsqueeze(-1), -1.0 / targets.shape[2:].numel())
        if weight_S is not None:
            gradient *= _along(weight_S, gradient, 1)
        return gradient

    def gradient(self, outputs: Tensor, constant: Tensor, weight_S: Tensor | None) -> Tensor:
        """The gradient of each member's loss with respect to its outputs ``[S, B, ..., C]``.

        Args:
            outputs: detached.
            constant: of this batch, from :meth:`constant`.
            weight_S: as there.
        """
        if self.loss == "cross_entropy":
            return logit_gradient(outputs, constant)
        if self.loss == "mse":
            gradient = (outputs - constant).mul_(2.0 / outputs.shape[1:].numel())
        else:
            gradient = (outputs.sigmoid() - constant).mul_(1.0 / outputs.shape[1:].numel())
        return gradient if weight_S is None else gradient.mul_(_along(weight_S, gradient, 0))

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The loss of each example, float64 ``[K, S, B]`` (a mean over positions and outputs)."""
        wide = outputs.double()
        if self.loss == "cross_entropy":
            picked = torch.log_softmax(wide, -1).gather(-1, targets.unsqueeze(-1)).squeeze(-1)
            return -_per_example(picked)
        wanted = _wide(targets).double()
        if self.loss == "mse":
            return (wide - wanted).square().mean(-1)
        return F.binary_cross_entropy_with_logits(wide, wanted, reduction="none").mean(-1)

    def scores(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The score of each example, float64 ``[K, S, B]``; not for ``"auc"``, which no example has by itself."""
        if self.loss == "cross_entropy":
            return _per_example((outputs.argmax(-1) == targets).double())
        wanted = _wide(targets)
        if self.score == "accuracy":
            return ((outputs > 0) == (wanted > 0.5)).double().mean(-1)
        return (outputs.double() - wanted.double()).square().mean(-1)


@final
@dataclass
class Meter:
    """Loss and score of each member over everything that is added.

    Attributes:
        objective: what is measured.
        num_members: S.
        num_seen: examples per member so far.
    """

    objective: Objective
    num_members: int
    num_seen: int = 0
    _loss: Tensor = field(init=False)
    _score: Tensor = field(init=False)
    _kept: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._loss = torch.zeros(self.num_members, dtype=torch.float64)
        self._score = torch.zeros(self.num_members, dtype=torch.float64)

    def add(self, outputs: Tensor, targets: Tensor) -> None:
        """Take in a chunk: outputs ``[K, S, B, ..., C]`` and its targets."""
        outputs, targets = outputs.detach(), targets.detach()
        self._loss += self.objective.losses(outputs, targets).sum((0, 2)).cpu()
        if self.objective.score == "auc":
            wanted = _wide(targets)
            self._kept.append((_rows(outputs), _rows(wanted)))
        else:
            self._score += self.objective.scores(outputs, targets).sum((0, 2)).cpu()
        self.num_seen += outputs.shape[0] * outputs.shape[2]

    def score(self) -> Tensor:
        """Float64 ``[S]``."""
        if self._kept:
            return auc(*(torch.cat(part, 1) for part in zip(*self._kept, strict=True))).cpu()
        return self._score / self.num_seen

    def loss(self) -> Tensor:
        """Mean loss, float64 ``[S]``."""
        return self._loss / self.num_seen


def _rows(values: Tensor) -> Tensor:
    """``[K, S, B, C]`` as ``[S, K * B * C]``."""
    return values.transpose(0, 1).flatten(1)


def _per_example(values: Tensor) -> Tensor:
    """A value for each label, ``[K, S, B]`` or ``[K, S, B, T]``, as a mean for each example."""
    return values if values.ndim == 3 else values.flatten(3).mean(-1)


def _wide(targets: Tensor) -> Tensor:
    """Float targets ``[K, S, B]`` or ``[K, S, B, C]`` with an axis for the outputs."""
    return targets.unsqueeze(-1) if targets.ndim == 3 else targets


def _along(weight_S: Tensor, like: Tensor, dim: int) -> Tensor:
    shape = [1] * like.ndim
    shape[dim] = -1
    return weight_S.to(like).view(shape)


@final
class Heads:
    """An objective on the outputs that take part in a task: all of them, or some of each member's.

    Args:
        objective: loss and score.
        num_outputs: C, of the model.
        active: for each member the outputs that take part, equally many; None: all outputs.
        device: where the outputs are.

    Raises:
        IllegalConfiguration: members with different numbers of active outputs, or outputs that do not exist.
    """

    def __init__(
        self,
        objective: Objective,
        num_outputs: int,
        active: Sequence[Sequence[int]] | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.objective, self.num_outputs = objective, num_outputs
        self.active_SA: Tensor | None = None
        if active is None:
            return
        if len({len(each) for each in active}) != 1 or not active[0]:
            raise IllegalConfiguration("the stream gives its seeds tasks with different numbers of active outputs")
        if any(len(set(each)) != len(each) or min(each) < 0 or max(each) >= num_outputs for each in active):
            raise IllegalConfiguration(f"active outputs must be different and in 0..{num_outputs - 1}: {active[0]}")
        self.active_SA = torch.tensor([list(each) for each in active], device=device)
        self._place_SC = torch.full((len(active), num_outputs), -1, device=device)
        self._place_SC.scatter_(
            1, self.active_SA, torch.arange(len(active[0]), device=device).expand_as(self.active_SA)
        )

    def select(self, outputs: Tensor) -> Tensor:
        """The active ones of outputs ``[S, B, ..., C]``."""
        if self.active_SA is None:
            return outputs
        return outputs.gather(-1, self._index(outputs))

    def _index(self, outputs: Tensor) -> Tensor:
        assert self.active_SA is not None
        index = self.active_SA.view(self.active_SA.shape[0], *[1] * (outputs.ndim - 2), -1)
        return index.expand(*outputs.shape[:-1], -1)

    def targets(self, targets: Tensor) -> Tensor:
        """Targets ``[K, S, B, ...]`` numbered as the active outputs are.

        Raises:
            IllegalConfiguration: a label whose output takes no part.
        """
        if self.active_SA is None:
            return targets
        if targets.is_floating_point():
            return torch.stack([self.select(batch) for batch in _wide(targets).unbind(0)])
        members = torch.arange(targets.shape[1], device=targets.device).view(-1, *[1] * (targets.ndim - 2))
        placed: Tensor = self._place_SC[members, targets]
        if bool((placed < 0).any()):
            raise IllegalConfiguration("a task has labels whose outputs are not among its active_outputs")
        return placed

    def constant(self, targets: Tensor, dtype: torch.dtype, weight_S: Tensor | None) -> Tensor:
        """See :meth:`Objective.constant`; targets from :meth:`targets`."""
        num_outputs = self.num_outputs if self.active_SA is None else self.active_SA.shape[1]
        return self.objective.constant(targets, num_outputs, dtype, weight_S)

    def loss(self, outputs: Tensor, constant: Tensor) -> Tensor:
        """Each member's mean loss of a batch, ``[S]``, from what the gradient is made of."""
        chosen = self.select(outputs)
        if self.objective.loss == "cross_entropy":
            return (constant * torch.log_softmax(chosen, -1)).flatten(1).sum(1)
        if self.objective.loss == "mse":
            return (chosen - constant).square().flatten(1).mean(1)
        return F.binary_cross_entropy_with_logits(chosen, constant, reduction="none").flatten(1).mean(1)

    def gradient(self, outputs: Tensor, constant: Tensor, weight_S: Tensor | None) -> Tensor:
        """See :meth:`Objective.gradient`; zero for outputs that take no part."""
        if self.active_SA is None:
            return self.objective.gradient(outputs, constant, weight_S)
        some = self.objective.gradient(self.select(outputs), constant, weight_S)
        return torch.zeros_like(outputs).scatter_(-1, self._index(outputs), some)
