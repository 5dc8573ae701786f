r"""Why an activation function raises the rank of what it is given, and where that stops.

For a pair of standard Gaussian pre-activations with correlation :math:`r`, the correlation after an activation
function :math:`\varphi` with Hermite coefficients :math:`a_k` is

.. math:: K_\varphi(r) = \sum_{k\ge1} w_k r^k, \qquad w_k = a_k^2 / \sum_{l\ge1} a_l^2,

so :math:`|K_\varphi(r)| \le |r|`: correlations shrink and the participation ratio
:math:`er_2(C) = (\operatorname{tr} C)^2/\lVert C\rVert_F^2` of a correlation matrix grows. It does not where
:math:`\varphi` is linear, or where all :math:`|C_{ij}|` are 0 or 1: groups of clones. The quantities here are those of
the theory, for Gaussian pre-activations; they are no measurement of a network.

Source:
    Joudaki et al., Barriers for Learning in an Evolving World (2025), arXiv 2510.00304, theorem 3.1 and later versions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from pliant.errors import IllegalConfiguration

__all__ = [
    "correlation_map",
    "decorrelation_strength",
    "hermite_weights",
    "nonlinearity",
    "rank_gain",
    "rank_gain_bound",
    "tension",
]


_REACH, _POINTS = 14.0, 40_001


@cache
def _grid() -> tuple[Tensor, Tensor]:
    """Points and the square root of their share of a standard Gaussian's mass: the trapezoid rule on a fine grid.

    Gauss-Hermite rules have fewer points, and converge slowly on functions with a kink.
    """
    nodes = torch.linspace(-_REACH, _REACH, _POINTS, dtype=torch.float64)
    step = 2 * _REACH / (_POINTS - 1)
    return nodes, (-nodes.square() / 4).exp() * math.sqrt(step / math.sqrt(2 * math.pi))


def hermite_weights(activation: Callable[[Tensor], Tensor], *, degree: int = 1000) -> Tensor:
    r"""The weights :math:`w_1, \dots, w_n` of an activation function's correlation map.

    Args:
        activation: The function, element by element, on float64.
        degree: Number of weights, :math:`n`. For a function with a kink they fall off as :math:`k^{-5/2}`, for one with
            a jump as :math:`k^{-3/2}`; what is left out is one minus their sum.

    Returns:
        Float64 ``[degree]``; they add up to at most one, the rest belongs to higher degrees.

    Raises:
        IllegalConfiguration: If the function is constant where a Gaussian is, or ``degree`` is not in [1, 5000].

    Example:
        >>> (hermite_weights(lambda z: z**2 + z, degree=3) * 3).round(decimals=6).tolist()  # a_1 = 1, a_2 = sqrt(2)
        [1.0, 2.0, 0.0]
    """
    if not 1 <= degree <= 5000:
        raise IllegalConfiguration(f"degree={degree}: from 1 to 5000, so that the grid resolves the polynomials.")
    nodes, root = _grid()
    values = activation(nodes)
    mean = (root * root * values).sum()
    variance = (root * root * (values - mean).square()).sum()
    if not float(variance) > 1e-24 * float(1 + mean.square()):
        raise IllegalConfiguration("the activation function is constant on standard Gaussian inputs: no correlation.")
    older, newer = root, nodes * root  # normalised Hermite polynomials times the root of the weight stay bounded
    weighted = values * root
    coefficients = []
    for k in range(1, degree + 1):
        coefficients.append(torch.dot(weighted, newer))
        older, newer = newer, (nodes * newer - math.sqrt(k) * older) / math.sqrt(k + 1)
    return torch.stack(coefficients).square() / variance


def correlation_map(activation: Callable[[Tensor], Tensor], correlation: Tensor, *, degree: int = 1000) -> Tensor:
    r""":math:`K_\varphi(r)`: the correlation after the activation, of Gaussian pairs of correlation ``r``.

    Args:
        activation: The function, element by element.
        correlation: Any shape, in [-1, 1].
        degree: As for :func:`hermite_weights`; what is left out is counted as one term of the next degree, so that the
            error is at most that rest.

    Returns:
        Float64, of the same shape.

    Raises:
        IllegalConfiguration: For correlations outside [-1, 1].

    Example:
        >>> correlation_map(lambda z: z, torch.tensor([-1.0, 0.0, 0.25]), degree=20).round(decimals=9).tolist()
        [-1.0, 0.0, 0.25]
    """
    r = correlation.double()
    if not bool((r.abs() <= 1 + 1e-9).all()):
        raise IllegalConfiguration("correlations must be in [-1, 1].")
    r = r.clamp(-1, 1)
    weights = hermite_weights(activation, degree=degree)
    rest = 1 - weights.sum()
    result = torch.full_like(r, float(rest))
    for weight in reversed(weights.tolist()):  # Horner's rule
        result = result * r + weight
    return result * r


def nonlinearity(weights: Tensor) -> float:
    r""":math:`\gamma = (1 - K'(0))/(1 + K'(0))` with :math:`K'(0) = w_1`: 0 if linear, 1 for an even function."""
    first = float(weights[0])
    return (1 - first) / (1 + first)


def decorrelation_strength(activation: Callable[[Tensor], Tensor], *, grid: int = 101) -> float:
    r""":math:`\kappa_\varphi = \max_{r\in[0,1]} r^2 - K_\varphi(r)^2`, over an even grid."""
    r = torch.linspace(0, 1, grid, dtype=torch.float64)
    return float((r.square() - correlation_map(activation, r).square()).max())


def _off_diagonal(correlation_DD: Tensor) -> Tensor:
    matrix = correlation_DD.double()
    is_square = matrix.ndim == 2 and matrix.shape[0] == matrix.shape[1]
    if not is_square or not bool(torch.allclose(matrix.diagonal(), torch.ones_like(matrix.diagonal()))):
        raise IllegalConfiguration("a correlation matrix is square and has ones on its diagonal.")
    return matrix - torch.diag(matrix.diagonal())


def tension(correlation_DD: Tensor) -> float:
    r""":math:`\Psi(C) = \sum_{i\ne j} C_{ij}^2 (1 - C_{ij}^2)`: zero only where all correlations are 0, 1 or -1."""
    square = _off_diagonal(correlation_DD).square()
    return float((square * (1 - square)).sum())


def rank_gain(correlation_DD: Tensor, mapped_DD: Tensor) -> float:
    r""":math:`er_2(K(C))/er_2(C) = (d + \sum_{i\ne j}C_{ij}^2)/(d + \sum_{i\ne j}K(C_{ij})^2)`.

    Args:
        correlation_DD: Correlations before the activation, ``[d, d]``.
        mapped_DD: The same after it, such as :func:`correlation_map` of them.
    """
    before, after = _off_diagonal(correlation_DD), _off_diagonal(mapped_DD)
    return (len(before) + float(before.square().sum())) / (len(after) + float(after.square().sum()))


def rank_gain_bound(correlation_DD: Tensor, weights: Tensor) -> float:
    r"""A lower bound of :func:`rank_gain`: :math:`1 + \gamma\,\Psi(C)/\lVert C\rVert_F^2`.

    Args:
        correlation_DD: Correlations before the activation, ``[d, d]``.
        weights: Of :func:`hermite_weights`.
    """
    return 1 + nonlinearity(weights) * tension(correlation_DD) / float(correlation_DD.double().square().sum())
