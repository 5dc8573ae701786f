"""Stochastic Lanczos quadrature: Lanczos' method from several random vectors, raw nodes and weights kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pliant.errors import IllegalConfiguration
from pliant.spectrum.lanczos import lanczos

__all__ = ["Quadrature", "quadrature", "rounding"]


class Quadrature(NamedTuple):
    """Nodes, weights and residuals of each probe, and what can be resolved.

    Attributes:
        nodes: Float64 ``[m]`` for each probe, ascending.
        weights: Of the same shapes; each sums to 1.
        residuals: Of the same shapes.
        resolution: The widest spacing of nodes inside the spectrum, over probes.

    Example:
        >>> import torch
        >>> from pliant.spectrum import quadrature
        >>> diagonal = torch.arange(1.0, 5.0)
        >>> found = quadrature(lambda v: diagonal * v, 4, steps=4, seeds=(0,), dtype=torch.float32)
        >>> round(float(found.weights[0].sum()), 3)
        1.0
    """

    nodes: tuple[Tensor, ...]
    weights: tuple[Tensor, ...]
    residuals: tuple[Tensor, ...]
    resolution: float


def rounding(largest: float, dimension: int, dtype: torch.dtype) -> float:
    """What eigenvalues of a matrix may be off by because it was computed in a dtype."""
    return torch.finfo(dtype).eps * math.sqrt(dimension) * largest


def quadrature(
    product: Callable[[Tensor], Tensor],
    dimension: int,
    *,
    steps: int,
    seeds: Sequence[int],
    dtype: torch.dtype,
    device: torch.device | None = None,
    memory: int | None = None,
) -> Quadrature:
    r"""Nodes and weights for a symmetric operator from random vectors of signs.

    Inside the spectrum nodes are about :math:`(\lambda_{\max} - \lambda_{\min}) \pi / 2m` apart, which is the
    resolution; after a breakdown they are eigenvalues.

    Args:
        product: The operator.
        dimension: Its size.
        steps: Lanczos steps :math:`m` for each vector.
        seeds: One for each vector.
        dtype: Of the vectors.
        device: Of the vectors; drawn on the CPU, so that a seed means the same everywhere.
        memory: Bytes that the basis may take; ``None``: any.

    Source:
        Ubaru, Chen and Saad, Fast estimation of tr(f(A)) via stochastic Lanczos quadrature, SIAM J. Matrix Anal. 38
        (2017); Golub and Welsch (1969) for the quadrature.

    Example:
        >>> diagonal = torch.arange(1.0, 5.0)
        >>> found = quadrature(lambda v: diagonal * v, 4, steps=4, seeds=(0,), dtype=torch.float32)
        >>> found.nodes[0].round(decimals=3).tolist()
        [1.0, 2.0, 3.0, 4.0]
    """
    if not seeds:
        raise IllegalConfiguration("stochastic Lanczos quadrature needs at least one probe.")
    parts, resolution = [], 0.0
    for seed in seeds:
        generator = torch.Generator().manual_seed(int(seed))
        signs = torch.randint(0, 2, (dimension,), generator=generator, dtype=torch.int8)
        done = lanczos(product, (2 * signs - 1).to(device=device, dtype=dtype), steps, memory=memory)
        node, weight, residual = done.nodes()
        parts.append((node, weight / weight.sum(), residual))
        largest, span = float(node.abs().max()), float(node[-1] - node[0])
        fine = rounding(largest, dimension, dtype)
        resolution = max(resolution, fine if done.broke_down else max(fine, span * math.pi / (2 * len(node))))
    nodes, weights, residuals = zip(*parts, strict=True)
    return Quadrature(nodes, weights, residuals, resolution)
