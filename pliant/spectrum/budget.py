r"""The :math:`\varepsilon` of an :math:`\varepsilon`-rank follows from the budget of training; it is no free knob.

In a linearised model under gradient descent with step size :math:`\eta`, the residual along an eigenvector of the
kernel shrinks by :math:`1 - \eta\lambda` a step. After T steps what has :math:`\lambda \ll 1/(\eta T)` has hardly
moved: :math:`\varepsilon^* = 1/(2\eta T)` divides what the budget can learn from what it cannot.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pliant.errors import ResolutionWarning
from pliant.spectrum.gram import DEFAULT_MEMORY, gram
from pliant.spectrum.problem import Mode, Problem
from pliant.spectrum.quantities import Estimate, eps_rank
from pliant.spectrum.result import Spectrum

__all__ = ["BudgetRank", "Linearised", "budget_eps", "budget_rank", "linearise"]


def budget_eps(lr: float, steps: int) -> float:
    r"""The :math:`\varepsilon` of a budget, :math:`\varepsilon^* = 1/(2 \eta T)`.

    Args:
        lr: Step size :math:`\eta` of plain gradient descent.
        steps: Its number of steps, T.

    Raises:
        ValueError: If one of them is not positive.

    Example:
        >>> budget_eps(lr=0.01, steps=500)
        0.1
    """
    if not lr > 0 or not steps > 0 or not math.isfinite(lr * steps):
        raise ValueError(f"lr={lr} and steps={steps} must be positive and finite")
    return 1 / (2 * lr * steps)


@dataclass(frozen=True)
class BudgetRank:
    r"""The :math:`\varepsilon`-rank for a budget, and how much it depends on :math:`\varepsilon`.

    Attributes:
        eps: :math:`\varepsilon^*`.
        rank: The share of the possible rank that is above it.
        curve: The same for other :math:`\varepsilon`: pairs of it and the share, NaN below the resolution.

    Example:
        >>> import torch
        >>> from pliant.spectrum import budget_rank, ggn_spectrum
        >>> spectrum = ggn_spectrum(torch.nn.Linear(4, 1, bias=False), (torch.eye(4), torch.zeros(4, 1)), "mse")
        >>> found = budget_rank(spectrum, lr=0.1, steps=50)
        >>> found.eps, found.rank.value
        (0.1, 1.0)
    """

    eps: float
    rank: Estimate
    curve: tuple[tuple[float, Estimate], ...]

    def __str__(self) -> str:
        lines = [f"eps-rank of the budget, eps* = {self.eps:.3g}: {self.rank}", "  eps / eps*   eps-rank"]
        lines += [f"  {eps / self.eps:<12.3g} {rank}" for eps, rank in self.curve]
        return "\n".join(lines)


def budget_rank(spectrum: Spectrum, *, lr: float, steps: int, decades: float = 2.0, points: int = 9) -> BudgetRank:
    r"""The normalised :math:`\varepsilon`-rank at :math:`\varepsilon^* = 1/(2\eta T)`, with its sensitivity curve.

    Args:
        spectrum: Of the Gauss-Newton matrix, the kernel or the Hessian.
        lr: Step size of gradient descent; for momentum :math:`\beta` take :math:`\eta/(1-\beta)`. Adaptive optimizers
            have no such number: report the curve.
        steps: Steps on the task.
        decades: How many powers of ten the curve goes to either side.
        points: Points of the curve.

    Returns:
        A :class:`BudgetRank`; ``print`` it.

    Raises:
        ValueError: If the budget is not positive.

    Example:
        >>> from pliant.spectrum import ggn_spectrum
        >>> model = torch.nn.Linear(2, 3)
        >>> spectrum = ggn_spectrum(model, (torch.randn(50, 2), torch.randint(3, (50,))))
        >>> found = budget_rank(spectrum, lr=0.1, steps=5000)
        >>> found.eps, round(found.rank.value, 3), len(found.curve)  # 6 of 9
        (0.001, 0.667, 9)
    """
    eps = budget_eps(lr, steps)
    rank = eps_rank(spectrum, eps, normalised=True)
    factors = torch.logspace(-decades, decades, points, dtype=torch.float64).tolist()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResolutionWarning)  # the curve says it by its NaN
        curve = tuple((eps * factor, eps_rank(spectrum, eps * factor, normalised=True)) for factor in factors)
    return BudgetRank(eps, rank, curve)


@dataclass(frozen=True)
class Linearised:
    r"""A model as its first-order expansion with half the mean squared error, which gradient descent solves by formula.

    .. math:: L_T = \sum_i (1 - \eta\lambda_i)^{2T} e_i, \qquad e_i = \frac{(u_i^\top r_0)^2}{2N}

    with eigenvalues :math:`\lambda_i` and vectors :math:`u_i` of :math:`K = JJ^\top/N`, and residuals
    :math:`r_0 = f - y`.

    Attributes:
        eigenvalues: :math:`\lambda_i`, ascending, float64 ``[R]``.
        energies: :math:`e_i`, float64 ``[R]``; they add up to the loss at present.

    Example:
        >>> import torch
        >>> from pliant.spectrum import linearise
        >>> linear = linearise(torch.nn.Linear(3, 1), (torch.randn(8, 3), torch.randn(8, 1)))
        >>> linear.loss(lr=0.1, steps=50) < linear.loss(lr=0.1, steps=0)
        True
    """

    eigenvalues: Tensor
    energies: Tensor

    def loss(self, *, lr: float, steps: int) -> float:
        """:math:`L_T`, the loss after so many steps."""
        return float(((1 - lr * self.eigenvalues).abs().pow(2 * steps) * self.energies).sum())

    def lower_bound(self, *, lr: float, steps: int, eps: float | None = None) -> float:
        r"""What the loss cannot fall below, from the directions with little curvature alone.

        .. math:: L_T \ge (1 - \eta\varepsilon)^{2T} \sum_{\lambda_i \le \varepsilon} e_i

        It holds for every :math:`\varepsilon \le 1/\eta`, so it is a necessary condition: a task on which the bound is
        above :math:`\tau` is not :math:`\tau`-trainable in this budget.

        Args:
            lr: Step size.
            steps: Steps.
            eps: ``None``: that of the budget.

        Raises:
            ValueError: If ``eps`` is above ``1 / lr``, where it is no bound.
        """
        eps = budget_eps(lr, steps) if eps is None else eps
        if not 0 <= eps * lr <= 1:
            raise ValueError(f"eps={eps} must be between 0 and 1 / lr = {1 / lr:.3g}: beyond, it is no bound")
        return (1 - lr * eps) ** (2 * steps) * float(self.energies[self.eigenvalues <= eps].sum())

    def may_reach(self, tau: float, *, lr: float, steps: int) -> bool:
        """Whether no bound forbids a loss of ``tau``: necessary for the linearised model, not sufficient."""
        limits = self.eigenvalues[(self.eigenvalues >= 0) & (self.eigenvalues * lr <= 1)].tolist()
        limits.append(min(budget_eps(lr, steps), 1 / lr))
        return all(self.lower_bound(lr=lr, steps=steps, eps=eps) <= tau for eps in limits)


def linearise(
    model: nn.Module,
    batch: Any,
    *,
    where: str = "*",
    mode: Mode | None = None,
    active: Any = None,
    dtype: torch.dtype | None = None,
    memory: int = DEFAULT_MEMORY,
) -> Linearised:
    """A model's first-order expansion on a regression batch, solved; arguments as for ``ggn_spectrum(..., "mse")``.

    Raises:
        IllegalConfiguration: As for :func:`pliant.spectrum.ggn_spectrum`.

    Example:
        >>> model, x, y = torch.nn.Linear(3, 1), torch.randn(8, 3), torch.randn(8, 1)
        >>> linear = linearise(model, (x, y))
        >>> later = linear.loss(lr=0.1, steps=20)
        >>> linear.lower_bound(lr=0.1, steps=20) <= later <= linear.loss(lr=0.1, steps=0)
        True
    """
    problem = Problem(model, batch, "mse", where=where, mode=mode, active=active, dtype=dtype)
    found = gram(problem, method="auto", memory=memory, of_outputs=True)
    values, vectors = torch.linalg.eigh(found.matrix.double())
    residual = (problem.at_parameters - getattr(problem.target, "wanted", 0)).reshape(-1).double()
    energies = (vectors.T @ residual).square() / (2 * problem.num_samples)
    return Linearised(values.clamp(min=0).cpu(), energies.cpu())
