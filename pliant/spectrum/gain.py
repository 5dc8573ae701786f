"""How much one step of gradient descent can be expected to gain, from gradients, their noise and curvature."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from pliant.errors import IllegalConfiguration
from pliant.spectrum.lanczos import lanczos
from pliant.spectrum.losses import LossSpec
from pliant.spectrum.problem import Mode, Problem
from pliant.spectrum.products import Operator

__all__ = ["StepGain", "expected_one_step_gain"]


@dataclass(frozen=True)
class StepGain:
    r"""What :func:`expected_one_step_gain` found.

    Attributes:
        strength: :math:`s`, an unbiased estimate of the squared length of the expected gradient; it may be negative.
        noise: :math:`\nu`, that of the batch gradient's variance, :math:`\operatorname{tr}\Sigma / B`.
        curvature: :math:`L`, an upper bound of the Hessian's largest eigenvalue, as far as Lanczos' method saw.

    Example:
        >>> import torch
        >>> from pliant.spectrum import expected_one_step_gain
        >>> gain = expected_one_step_gain(torch.nn.Linear(3, 1), (torch.randn(64, 3), torch.randn(64, 1)), "mse")
        >>> gain.at(0.0), gain.at(gain.best_lr) >= 0
        (0.0, True)
    """

    strength: float
    noise: float
    curvature: float

    @property
    def reliability(self) -> float:
        r""":math:`s / (s + \nu)`, at most 1; 0 where the batch says nothing of the expected gradient."""
        return max(self.strength, 0.0) / (self.strength + self.noise) if self.strength + self.noise > 0 else 0.0

    def at(self, lr: float) -> float:
        r"""The expected gain of a step of size ``lr``: :math:`\eta s - \tfrac12 \eta^2 L (s + \nu)`."""
        return lr * self.strength - 0.5 * lr**2 * self.curvature * (self.strength + self.noise)

    @property
    def best_lr(self) -> float:
        r"""The step size of the largest gain, reliability over curvature; infinite without curvature."""
        return self.reliability / self.curvature if self.curvature > 0 else float("inf")

    @property
    def best(self) -> float:
        r"""The largest gain, :math:`s^2 / (2 L (s + \nu))`; infinite without curvature."""
        if self.strength <= 0:
            return 0.0
        return self.at(self.best_lr) if self.curvature > 0 else float("inf")


def expected_one_step_gain(
    model: nn.Module,
    batch: Any,
    loss: LossSpec = "cross_entropy",
    *,
    steps: int = 20,
    seed: int = 0,
    where: str = "*",
    mode: Mode | None = None,
    active: Any = None,
    dtype: torch.dtype | None = None,
) -> StepGain:
    r"""A bound on what one step of stochastic gradient descent gains on a task, and at which step size.

    .. math:: \mathbb E[L(\theta) - L(\theta - \eta \hat g)] \ge \eta s - \tfrac12 \eta^2 L (s + \nu), \qquad
        s = \|\mathbb E \hat g\|^2, \quad \nu = \operatorname{tr}\Sigma / B

    for a loss whose gradient has the Lipschitz constant L along the step. Strength and noise come from the gradients of
    the batch's two halves: :math:`s = \langle g_1, g_2 \rangle`, :math:`\nu = \tfrac14 \|g_1 - g_2\|^2`. A flat
    surface with a strong gradient promises much, one with a vanished or noisy gradient nothing, whatever its rank.

    Args:
        model: The model; it is left as it is.
        batch: Inputs and targets, in random order, of at least two samples; the last of an odd number is left out.
        loss: As for :func:`pliant.spectrum.ggn_spectrum`.
        steps: Products with the Hessian for its largest eigenvalue.
        seed: Of the vector that they start from.
        where: Which trainable parameters, a pattern of names.
        mode: ``"eval"`` or ``"train"``; must be given where the model has batch norm.
        active: The logits that count; ``None``: all.
        dtype: What is computed in; ``None``: the parameters' own, at least float32.

    Returns:
        A :class:`StepGain`.

    Raises:
        IllegalConfiguration: As for :func:`pliant.spectrum.ggn_spectrum`; for a batch of one.

    Source:
        The descent lemma; the split into strength and reliability is the idea of Wang et al. (2026), arXiv:2605.09044
        ("optimization readiness"), whose formula was not available: this is a derivation of this library.

    Example:
        >>> x, y = torch.randn(64, 3), torch.randn(64, 1)
        >>> gain = expected_one_step_gain(torch.nn.Linear(3, 1), (x, y), "mse")
        >>> gain.at(gain.best_lr) >= gain.at(0.5 * gain.best_lr) and 0 <= gain.reliability <= 1
        True
    """
    options: dict[str, Any] = {"where": where, "mode": mode, "active": active, "dtype": dtype}
    whole = Problem(model, batch, loss, **options)
    count = whole.num_samples // 2
    if count < 1:
        raise IllegalConfiguration("the gradient's noise needs two samples or more; the batch has one.")
    halves = [
        Problem(model, _part(batch, slice(start, start + count), whole.num_samples), loss, **options)
        for start in (0, count)
    ]
    first, second = (_gradient(problem) for problem in halves)
    generator = torch.Generator().manual_seed(seed)
    start_D = torch.randn(whole.num_parameters, generator=generator, dtype=torch.float32)
    found = lanczos(Operator("hessian", whole), start_D.to(device=whole.device, dtype=whole.dtype), steps)
    nodes, _, residuals = found.nodes()
    return StepGain(
        strength=float(first @ second),
        noise=float((first - second).square().sum() / 4),
        curvature=float(nodes[-1] + residuals[-1]),
    )


def _part(batch: Any, index: slice, count: int) -> Any:
    """Some of the samples of inputs and targets."""
    return tuple(
        pytree.tree_map(
            lambda leaf: leaf[index] if isinstance(leaf, Tensor) and leaf.ndim and leaf.shape[0] == count else leaf,
            item,
        )
        for item in batch
    )


def _gradient(problem: Problem) -> Tensor:
    """Of the loss: ``[D]``."""
    leaves = {name: item.clone().requires_grad_() for name, item in problem.parameters.items()}
    with problem.explained("the gradient"), torch.enable_grad():
        value = problem.target.loss(problem.outputs(leaves))
        found = torch.autograd.grad(value, list(leaves.values()), allow_unused=True)
    pairs = zip(leaves.values(), found, strict=True)
    return torch.cat([(torch.zeros_like(leaf) if grad is None else grad).reshape(-1) for leaf, grad in pairs])
