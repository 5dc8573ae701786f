"""Smooth densities of spectra, for plots and for nothing else."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pliant.spectrum.result import Spectrum

__all__ = ["density"]


def density(spectrum: Spectrum, *, width: float | None = None, points: int = 1000) -> tuple[Tensor, Tensor]:
    r"""A sum of Gaussians around the nodes, to be looked at.

    .. math:: \rho(\lambda) = \overline{\sum_k w_k \, \mathcal N(\lambda; \lambda_k, \text{width}^2)}

    Never integrate it to count eigenvalues: what lies within a few widths of zero is smeared over zero. Counts come
    from :func:`pliant.spectrum.eps_rank`.

    Args:
        spectrum: Of whatever matrix.
        width: Of the Gaussians; ``None``: a hundredth of the range, and never below the resolution.
        points: Of the grid, which reaches four widths beyond the outer nodes.

    Returns:
        The grid and the density on it, both float64 ``[points]``.

    Raises:
        ValueError: If the width is not positive.

    Example:
        >>> from pliant.spectrum import ggn_spectrum
        >>> model = torch.nn.Linear(4, 3)
        >>> grid, values = density(ggn_spectrum(model, (torch.randn(9, 4), torch.randint(3, (9,)))))
        >>> round(float(torch.trapezoid(values, grid)), 2)
        1.0
    """
    nodes, weights = spectrum.pooled()
    low, high = float(nodes.min()), float(nodes.max())
    if width is None:
        width = max((high - low) / 100, spectrum.resolution, torch.finfo(torch.float64).tiny)
    if not width > 0:
        raise ValueError(f"width={width} must be positive")
    grid = torch.linspace(low - 4 * width, high + 4 * width, points, dtype=torch.float64)
    values = torch.zeros_like(grid)
    for node, weight in zip(torch.split(nodes, 256), torch.split(weights, 256), strict=True):
        values += (((grid[:, None] - node) / width).square().mul(-0.5).exp() * weight).sum(1)
    return grid, values / (width * math.sqrt(2 * math.pi))
