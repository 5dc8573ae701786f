"""Lanczos' method with a basis that stays orthogonal, and a stop where an invariant subspace is exhausted."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from pliant.errors import IllegalConfiguration

__all__ = ["Tridiagonal", "basis_bytes", "lanczos"]

_BREAKDOWN = 100


class Tridiagonal(NamedTuple):
    r"""What Lanczos' method has made of an operator: :math:`V^\top A V = T`.

    Attributes:
        alpha: Diagonal of T, float64 ``[m]``.
        beta: Beside it, float64 ``[m - 1]``.
        last: Norm of what was left after the last step; 0 after a breakdown.
        broke_down: Whether the start vector's invariant subspace was exhausted, so that the nodes are eigenvalues.

    Example:
        >>> import torch
        >>> from pliant.spectrum import lanczos
        >>> diagonal = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
        >>> found = lanczos(lambda v: diagonal * v, torch.ones(3, dtype=torch.float64), 3)
        >>> beside = torch.diag(found.beta, 1)
        >>> torch.linalg.eigvalsh(torch.diag(found.alpha) + beside + beside.T).round()
        tensor([1., 2., 3.], dtype=torch.float64)
    """

    alpha: Tensor
    beta: Tensor
    last: float
    broke_down: bool

    def nodes(self) -> tuple[Tensor, Tensor, Tensor]:
        r"""Gauss quadrature: nodes (Ritz values), weights that sum to 1, and residuals.

        There is an eigenvalue of the operator within the residual :math:`\beta_m |s_{mi}|` of the node.

        Returns:
            Three times float64 ``[m]``, nodes ascending.
        """
        matrix = torch.diag(self.alpha)
        if len(self.beta):
            matrix = matrix + torch.diag(self.beta, 1) + torch.diag(self.beta, -1)
        values, vectors = torch.linalg.eigh(matrix)
        return values, vectors[0].square(), self.last * vectors[-1].abs()


def basis_bytes(dimension: int, steps: int, dtype: torch.dtype = torch.float32) -> int:
    """Memory of the basis that full re-orthogonalisation keeps.

    Example:
        >>> basis_bytes(2_800_000, 100) / 2**30
        1.043...
    """
    return dimension * min(steps, dimension) * dtype.itemsize


def lanczos(
    product: Callable[[Tensor], Tensor], start_D: Tensor, steps: int, *, memory: int | None = None
) -> Tridiagonal:
    r"""Some steps of Lanczos' method with a symmetric operator.

    Each new vector is made orthogonal to all before it, twice: once is not enough in float32. It stops where what is
    left is rounding beside the operator's size.

    Args:
        product: The operator's product with a vector, ``[D]`` to ``[D]``.
        start_D: The first vector, of any length but zero.
        steps: At most so many products.
        memory: Bytes that the basis may take; ``None``: any.

    Raises:
        IllegalConfiguration: If the basis would take more, or the operator gives a NaN.

    Example:
        >>> matrix = torch.diag(torch.tensor([1.0, 2.0, 5.0]))
        >>> done = lanczos(lambda v: matrix @ v, torch.ones(3), 10)
        >>> done.broke_down, [round(node, 4) for node in done.nodes()[0].tolist()]
        (True, [1.0, 2.0, 5.0])
    """
    dimension, dtype = start_D.numel(), start_D.dtype
    steps = min(steps, dimension)
    needed = basis_bytes(dimension, steps, dtype)
    if memory is not None and needed > memory:
        fits = memory // (dimension * dtype.itemsize)
        raise IllegalConfiguration(
            f"{steps} Lanczos steps on {dimension} parameters keep a basis of {needed / 2**30:.1f} GiB, more than "
            f"memory={memory / 2**30:.1f} GiB. Take at most {fits} steps, fewer parameters (where=...), a larger "
            "memory=..., or the exact Gauss-Newton spectrum of few samples."
        )
    if steps < 1:
        raise IllegalConfiguration(f"Lanczos' method needs at least one step, not {steps}.")
    basis = torch.empty(steps, dimension, dtype=dtype, device=start_D.device)
    norm = float(torch.linalg.vector_norm(start_D))
    if not norm > 0 or not math.isfinite(norm):
        raise IllegalConfiguration(f"the start vector of Lanczos' method has length {norm}.")
    vector = start_D / norm
    alpha: list[float] = []
    beta: list[float] = []
    scale, left = 0.0, 0.0
    for step in range(steps):
        basis[step] = vector
        new = product(vector)
        alpha.append(float(torch.dot(vector, new)))
        if not math.isfinite(alpha[-1]):
            raise IllegalConfiguration(
                f"the operator gave {alpha[-1]} in step {step + 1} of Lanczos' method: the loss, its derivatives or "
                "the weights are not finite."
            )
        so_far = basis[: step + 1]
        for _ in range(2):
            new = new - so_far.T @ (so_far @ new)
        left = float(torch.linalg.vector_norm(new))
        scale = max(scale, abs(alpha[-1]), left)
        if step + 1 == dimension or left <= _BREAKDOWN * torch.finfo(dtype).eps * scale or left == 0:
            return Tridiagonal(_double(alpha), _double(beta), 0.0, broke_down=True)
        if step + 1 < steps:
            beta.append(left)
            vector = new / left
    return Tridiagonal(_double(alpha), _double(beta), left, broke_down=False)


def _double(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)
