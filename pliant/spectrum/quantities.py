r"""Numbers of a spectrum, each with its standard error, from nodes and weights alone; never from a smoothed density.

Standard errors are over the probes (jackknife): 0 for an exact spectrum, NaN where one probe cannot tell.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from pliant.errors import ResolutionWarning
from pliant.spectrum.result import Spectrum

__all__ = [
    "Estimate",
    "condition_number",
    "effective_rank",
    "eps_rank",
    "largest_eigenvalue",
    "negative_mass",
    "smallest_eigenvalue",
    "trace",
]


class Estimate(NamedTuple):
    """A number and its standard error.

    Attributes:
        value: The number; NaN where it cannot be told.
        standard_error: 0 for an exact one, NaN if unknown.

    Example:
        >>> import torch
        >>> from pliant.spectrum import ggn_spectrum, trace
        >>> spectrum = ggn_spectrum(torch.nn.Linear(4, 1, bias=False), (torch.eye(4), torch.zeros(4, 1)), "mse")
        >>> found = trace(spectrum)
        >>> round(found.value, 3), found.standard_error
        (1.0, 0.0)
    """

    value: float
    standard_error: float

    def __str__(self) -> str:
        if self.standard_error == 0:
            return f"{self.value:.4g}"
        error = "unknown" if math.isnan(self.standard_error) else f"{self.standard_error:.2g}"
        return f"{self.value:.4g} ± {error}"


def eps_rank(spectrum: Spectrum, eps: float, *, relative: bool = False, normalised: bool = False) -> Estimate:
    r"""How many eigenvalues are larger than :math:`\varepsilon` in absolute value.

    .. math:: \operatorname{rank}_\varepsilon(M) = \#\{i : |\lambda_i| > \varepsilon\}

    An absolute :math:`\varepsilon` is not invariant to rescaling the weights of ReLU layers; see
    :func:`pliant.spectrum.budget_rank` for the one that follows from step size and number of steps.

    Args:
        spectrum: Of whatever matrix.
        eps: :math:`\varepsilon > 0`.
        relative: Multiply it by the largest absolute eigenvalue.
        normalised: Divide by the largest rank possible, ``spectrum.max_rank``: at most 1.

    Returns:
        The count, or the share. NaN with a :class:`~pliant.errors.ResolutionWarning` where :math:`\varepsilon` is below
        the spectrum's resolution.

    Raises:
        ValueError: If ``eps`` is not positive.

    Source:
        Prakash, He, Guo et al., Spectral Collapse Drives Loss of Plasticity in Deep Continual Learning (2025),
        arXiv:2509.22335, whose code takes it from a smoothed density; here eigenvalues are counted.

    Example:
        >>> from pliant.spectrum import ggn_spectrum
        >>> model = torch.nn.Linear(2, 3)
        >>> spectrum = ggn_spectrum(model, (torch.randn(50, 2), torch.randint(3, (50,))))
        >>> eps_rank(spectrum, 1e-3).value  # of 9 parameters, (3 - 1) * 3 matter to a softmax
        6.0
    """
    if not eps > 0:
        raise ValueError(f"eps={eps} must be positive")
    scale = max(abs(largest_eigenvalue(spectrum).value), abs(smallest_eigenvalue(spectrum).value)) if relative else 1.0
    limit = eps * scale
    if limit < spectrum.resolution:
        advice = (
            "compute in dtype=torch.float64" if spectrum.exact else "take more steps, or the exact Gauss-Newton one"
        )
        warnings.warn(
            f"an eps of {limit:.3g} is below the resolution of this {spectrum.matrix} spectrum "
            f"({spectrum.resolution:.3g}), so its eps-rank is not known; {advice}.",
            ResolutionWarning,
            stacklevel=2,
        )
        return Estimate(math.nan, math.nan)
    most = spectrum.max_rank / spectrum.dimension
    found = _estimate(spectrum, lambda node, weight: float(weight[node.abs() > limit].sum().clamp(max=most)))
    size = 1 / most if normalised else spectrum.dimension
    value = found.value * size
    if spectrum.exact and not normalised:
        value = float(round(value))
    return Estimate(value, found.standard_error * size)


def effective_rank(spectrum: Spectrum) -> Estimate:
    r"""Effective rank of the matrix: the exponential of the entropy of the absolute eigenvalues.

    .. math:: \exp\Bigl(-\sum_i p_i \ln p_i\Bigr), \qquad p_i = \frac{|\lambda_i|}{\sum_j |\lambda_j|}

    Nodes count by their weights; the entropy of unweighted nodes is another number. 0 for a matrix of zeros.

    Source:
        Roy and Vetterli, The effective rank, EUSIPCO 2007.

    Example:
        >>> from pliant.spectrum import ggn_spectrum
        >>> model, x = torch.nn.Linear(4, 1, bias=False), torch.eye(4)
        >>> round(effective_rank(ggn_spectrum(model, (x, torch.zeros(4, 1)), "mse")).value, 3)
        4.0
    """

    def rank(node: Tensor, weight: Tensor) -> float:
        size = node.abs()
        total = spectrum.dimension * (weight * size).sum()
        if total == 0:
            return 0.0
        entropy = spectrum.dimension * (weight * torch.special.entr(size / total)).sum()
        return float(entropy.exp())

    return _estimate(spectrum, rank)


def largest_eigenvalue(spectrum: Spectrum) -> Estimate:
    """The largest eigenvalue; of a quadrature the largest node, never above it, with its residual as the error.

    Example:
        >>> import torch
        >>> from pliant.spectrum import ggn_spectrum, largest_eigenvalue
        >>> spectrum = ggn_spectrum(torch.nn.Linear(4, 1, bias=False), (torch.eye(4), torch.zeros(4, 1)), "mse")
        >>> round(largest_eigenvalue(spectrum).value, 3)
        0.25
    """
    return _extreme(spectrum, -1)


def smallest_eigenvalue(spectrum: Spectrum) -> Estimate:
    """The smallest (most negative) eigenvalue; of a quadrature the smallest node, never below it, with its residual.

    Example:
        >>> import torch
        >>> from pliant.spectrum import ggn_spectrum, smallest_eigenvalue
        >>> spectrum = ggn_spectrum(torch.nn.Linear(4, 1, bias=False), (torch.eye(4), torch.zeros(4, 1)), "mse")
        >>> round(smallest_eigenvalue(spectrum).value, 3)
        0.25
    """
    return _extreme(spectrum, 0)


def trace(spectrum: Spectrum) -> Estimate:
    """The sum of all eigenvalues; that of the Gauss-Newton matrix of cross-entropy is the trace of the Fisher matrix.

    By quadrature it is Hutchinson's estimate, which says little about an indefinite matrix: look at its error.

    Example:
        >>> import torch
        >>> from pliant.spectrum import ggn_spectrum, trace
        >>> spectrum = ggn_spectrum(torch.nn.Linear(4, 1, bias=False), (torch.eye(4), torch.zeros(4, 1)), "mse")
        >>> round(trace(spectrum).value, 3)
        1.0
    """
    return _estimate(spectrum, lambda node, weight: spectrum.dimension * float((weight * node).sum()))


def negative_mass(spectrum: Spectrum, eps: float | None = None) -> Estimate:
    r"""The share of eigenvalues below :math:`-\varepsilon`, by default below minus the resolution.

    Args:
        spectrum: Of whatever matrix.
        eps: Not below ``spectrum.resolution``.

    Raises:
        ValueError: If ``eps`` is negative.

    Example:
        >>> import torch
        >>> from pliant.spectrum import ggn_spectrum, negative_mass
        >>> spectrum = ggn_spectrum(torch.nn.Linear(4, 1, bias=False), (torch.eye(4), torch.zeros(4, 1)), "mse")
        >>> round(negative_mass(spectrum).value, 3)
        0.0
    """
    limit = spectrum.resolution if eps is None else eps
    if not limit >= 0:
        raise ValueError(f"eps={eps} must not be negative")
    if limit < spectrum.resolution:
        warnings.warn(
            f"an eps of {limit:.3g} is below the resolution of this {spectrum.matrix} spectrum "
            f"({spectrum.resolution:.3g}), so its negative mass beyond it is not known.",
            ResolutionWarning,
            stacklevel=2,
        )
        return Estimate(math.nan, math.nan)
    return _estimate(spectrum, lambda node, weight: float(weight[node < -limit].sum()))


def condition_number(spectrum: Spectrum) -> Estimate:
    r"""The largest eigenvalue over the smallest that is above the resolution, :math:`\lambda_{\max}/\lambda_{\min}^+`.

    Of the NTK, it says how unevenly a linearised network learns. Only an exact spectrum knows its smallest eigenvalue:
    NaN otherwise, and where no eigenvalue is above the resolution.

    Example:
        >>> import torch
        >>> from pliant.spectrum import ggn_spectrum, condition_number
        >>> spectrum = ggn_spectrum(torch.nn.Linear(4, 1, bias=False), (torch.eye(4), torch.zeros(4, 1)), "mse")
        >>> round(condition_number(spectrum).value, 3)
        1.0
    """
    if not spectrum.exact:
        warnings.warn(
            "the smallest nonzero eigenvalue cannot be seen by a quadrature; use an exact spectrum.",
            ResolutionWarning,
            stacklevel=2,
        )
        return Estimate(math.nan, math.nan)
    above = spectrum.nodes[0][spectrum.nodes[0] > spectrum.resolution]
    return Estimate(float(above.max() / above.min()), 0.0) if len(above) else Estimate(math.nan, math.nan)


def _extreme(spectrum: Spectrum, place: int) -> Estimate:
    ends = [
        (float(node[place]), float(error[place]))
        for node, error in zip(spectrum.nodes, spectrum.residuals, strict=True)
    ]
    value, error = max(ends) if place == -1 else min(ends)
    return Estimate(value, error)


def _estimate(spectrum: Spectrum, function: Callable[[Tensor, Tensor], float]) -> Estimate:
    value = function(*spectrum.pooled())
    if spectrum.exact:
        return Estimate(value, 0.0)
    count = spectrum.num_probes
    if count == 1:
        return Estimate(value, math.nan)
    without = torch.tensor([function(*spectrum.pooled(index)) for index in range(count)], dtype=torch.float64)
    spread = (without - without.mean()).square().sum() * (count - 1) / count
    return Estimate(value, float(spread.sqrt()))
