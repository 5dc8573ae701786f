"""One number each from a model and a batch, for the catalogue of metrics; the spectra behind them say more."""

from __future__ import annotations

from typing import Any, TypedDict, Unpack

import torch
from torch import nn

from pliant.spectrum.budget import budget_eps
from pliant.spectrum.gram import DEFAULT_MEMORY, gram
from pliant.spectrum.losses import LossSpec
from pliant.spectrum.problem import Mode, Problem
from pliant.spectrum.products import Operator
from pliant.spectrum.quadrature import quadrature
from pliant.spectrum.quantities import Estimate, condition_number, effective_rank, eps_rank
from pliant.spectrum.spectra import ggn_spectrum, ntk_spectrum
from pliant.units.export import Inputs

__all__ = ["Options", "curvature_share", "fisher_trace", "ntk_condition", "ntk_effective_rank", "sharpness"]


class Options(TypedDict, total=False):
    """How a model is looked at, as for :func:`pliant.spectrum.ggn_spectrum`.

    Attributes:
        where: Which trainable parameters, a pattern of names.
        mode: ``"eval"`` or ``"train"``; must be given where the model has batch norm.
        active: The logits that count.
        dtype: What is computed in.
    """

    where: str
    mode: Mode | None
    active: Any
    dtype: torch.dtype | None


def curvature_share(
    model: nn.Module,
    batch: Any,
    loss: LossSpec = "cross_entropy",
    *,
    lr: float,
    steps: int,
    memory: int = DEFAULT_MEMORY,
    **options: Unpack[Options],
) -> Estimate:
    r"""The share of the Gauss-Newton matrix's possible rank that a budget of training can use.

    .. math:: \frac{\#\{i : \lambda_i(G) > \varepsilon^*\}}{\min(D, NC)}, \qquad \varepsilon^* = \frac{1}{2\eta T}

    :func:`pliant.spectrum.budget_rank` puts the curve of other :math:`\varepsilon` beside it, which belongs to it.

    Args:
        model: The model; it is left as it is.
        batch: Inputs and targets of the task that is to be learned next.
        loss: As for :func:`pliant.spectrum.ggn_spectrum`.
        lr: Step size of gradient descent, :math:`\eta`.
        steps: Steps on the task, T.
        memory: Bytes that may be taken.
        **options: See :class:`Options`.

    Returns:
        In ``[0, 1]``, exact; NaN below the resolution.

    Raises:
        IllegalConfiguration: As for :func:`pliant.spectrum.ggn_spectrum`.
        ValueError: If the budget is not positive.

    Source:
        Prakash, He, Guo et al. (2025), arXiv 2509.22335, for the rank; the :math:`\varepsilon` is this library's.

    Example:
        >>> model, x = torch.nn.Linear(2, 3), torch.randn(50, 2)
        >>> print(curvature_share(model, (x, torch.randint(3, (50,))), lr=0.1, steps=5000))  # 6 of 9
        0.6667
    """
    eps = budget_eps(lr, steps)
    return eps_rank(ggn_spectrum(model, batch, loss, memory=memory, **options), eps, normalised=True)


def ntk_effective_rank(
    model: nn.Module, inputs: Inputs, *, memory: int = DEFAULT_MEMORY, **options: Unpack[Options]
) -> Estimate:
    r"""Effective rank of the neural tangent kernel's eigenvalues: how many directions outputs can move in, and evenly.

    .. math:: \exp\Bigl(-\sum_i p_i \ln p_i\Bigr), \qquad p_i = \frac{\lambda_i(JJ^\top)}{\sum_j \lambda_j(JJ^\top)}

    Args:
        model: The model; it is left as it is.
        inputs: Of the task that is to be learned next.
        memory: Bytes that may be taken.
        **options: See :class:`Options`.

    Returns:
        In ``[1, N C]``, exact; 0 where nothing depends on the parameters.

    Raises:
        IllegalConfiguration: As for :func:`pliant.spectrum.ntk_spectrum`.

    Source:
        Roy and Vetterli (2007) for the rank; Jacot, Gabriel and Hongler (2018), arXiv 1806.07572, for the kernel.

    Example:
        >>> print(ntk_effective_rank(torch.nn.Linear(3, 2, bias=False), torch.eye(3)))
        6
    """
    return effective_rank(ntk_spectrum(model, inputs, memory=memory, **options))


def ntk_condition(
    model: nn.Module, inputs: Inputs, *, memory: int = DEFAULT_MEMORY, **options: Unpack[Options]
) -> Estimate:
    r"""Condition number of the neural tangent kernel, over the eigenvalues that are above rounding.

    .. math:: \kappa = \frac{\lambda_{\max}(JJ^\top)}{\lambda_{\min}^+(JJ^\top)}

    How unevenly a linearised network learns: gradient descent with the largest stable step needs about
    :math:`\kappa` steps for its slowest direction. In float32 what is below rounding is left out, so that a number near
    a million is a lower bound; ``dtype=torch.float64`` sees further. Behind a layer that is dead only biases are left,
    and they are perfectly conditioned: look at the rank beside it.

    Args:
        model: The model; it is left as it is.
        inputs: Of the task that is to be learned next.
        memory: Bytes that may be taken.
        **options: See :class:`Options`.

    Returns:
        At least 1, exact; NaN where nothing depends on the parameters.

    Raises:
        IllegalConfiguration: As for :func:`pliant.spectrum.ntk_spectrum`.

    Source:
        Xiao, Pennington and Schoenholz (2020), *Disentangling trainability and generalization in deep neural networks*,
        arXiv 1912.13053, for the kernel of infinitely wide networks.

    Example:
        >>> x = torch.diag(torch.tensor([2.0, 1.0]))
        >>> print(ntk_condition(torch.nn.Linear(2, 1, bias=False), x))
        4
    """
    return condition_number(ntk_spectrum(model, inputs, memory=memory, **options))


def sharpness(
    model: nn.Module,
    batch: Any,
    loss: LossSpec = "cross_entropy",
    *,
    steps: int = 30,
    seed: int = 0,
    memory: int = DEFAULT_MEMORY,
    **options: Unpack[Options],
) -> Estimate:
    r"""The largest eigenvalue of the loss's Hessian, by Lanczos' method.

    Above :math:`2/\eta` gradient descent with step size :math:`\eta` is not stable.

    Args:
        model: The model; it is left as it is.
        batch: Inputs and targets.
        loss: As for :func:`pliant.spectrum.ggn_spectrum`.
        steps: Products with the Hessian.
        seed: Of the vector that they start from.
        memory: Bytes that may be taken.
        **options: See :class:`Options`.

    Returns:
        The largest node, never above the largest eigenvalue; its error is the residual, within which there is one.

    Raises:
        IllegalConfiguration: As for :func:`pliant.spectrum.hessian_spectrum`.
        UnsupportedOp: Where an operation has no second derivative.

    Source:
        Cohen et al. (2021), *Gradient descent on neural networks typically occurs at the edge of stability*, arXiv
        2103.00065.

    Example:
        >>> model, x = torch.nn.Linear(2, 1, bias=False), torch.diag(torch.tensor([2.0, 1.0]))
        >>> round(sharpness(model, (x, torch.zeros(2, 1)), "mse").value, 4)  # of X^T X / N
        2.0
    """
    problem = Problem(model, batch, loss, **options)
    operator = Operator("hessian", problem)
    found = quadrature(
        operator,
        operator.dimension,
        steps=steps,
        seeds=(seed,),
        dtype=problem.dtype,
        device=problem.device,
        memory=memory,
    )
    return Estimate(float(found.nodes[0][-1]), float(found.residuals[0][-1]))


def fisher_trace(model: nn.Module, batch: Any, *, memory: int = DEFAULT_MEMORY, **options: Unpack[Options]) -> Estimate:
    r"""Trace of the Fisher matrix of a classifier, exactly: no label is drawn, and no eigenvalue computed.

    .. math:: \frac1N \sum_n \mathbb E_{y \sim p(\cdot | x_n)} \lVert \nabla_\theta \ln p(y | x_n) \rVert^2
        = \operatorname{tr} G

    with the Gauss-Newton matrix of cross-entropy.

    Args:
        model: The model; it is left as it is.
        batch: Inputs and targets; of the targets it matters only which positions have one.
        memory: Bytes that may be taken.
        **options: See :class:`Options`.

    Returns:
        ``>= 0``, exact.

    Raises:
        IllegalConfiguration: As for :func:`pliant.spectrum.ggn_spectrum`.

    Source:
        Martens (2020), *New insights and perspectives on the natural gradient method*, arXiv 1412.1193.

    Example:
        >>> model, x = torch.nn.Linear(2, 2, bias=False), torch.eye(2)
        >>> with torch.no_grad():
        ...     _ = model.weight.zero_()
        >>> print(fisher_trace(model, (x, torch.tensor([0, 1]))))  # p = 1/2 throughout
        0.5
    """
    problem = Problem(model, batch, "cross_entropy", **options)
    return Estimate(float(gram(problem, memory=memory).matrix.diagonal().double().sum()), 0.0)
