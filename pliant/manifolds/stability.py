r"""Curvature away from the manifold: does a small departure grow?

The Hessian restricted to the normal directions, :math:`P_N H P_N`: where its smallest eigenvalue
:math:`\lambda_{min}` is negative, a small departure along it grows by :math:`1 - \eta\lambda_{min}` in a step of
gradient descent, at a stationary point. Away from one, this is the curvature at one moment of a trajectory, and no
prediction.
"""

from __future__ import annotations

import cmath
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from pliant.errors import IllegalConfiguration
from pliant.manifolds.partition import Partition
from pliant.manifolds.projection import dimension
from pliant.manifolds.structure import block_structure
from pliant.manifolds.trap import refuse_dropout
from pliant.spectrum.lanczos import lanczos
from pliant.spectrum.products import Operator, hessian_operator

__all__ = ["Stability", "stability"]


@dataclass(frozen=True)
class Stability:
    r"""What the curvature normal to a cloning manifold says.

    Attributes:
        smallest: Smallest eigenvalue found.
        largest: Largest one.
        residual: How far an eigenvalue of the operator may be from each; zero up to rounding after all steps.
        verdict: ``"stable"`` (both above the tolerance), ``"unstable"`` (both below minus it), ``"saddle"`` (one on
            each side), ``"flat"`` (both within it); ``"not unstable"`` or ``"not stable"`` where one is within.
        cross: :math:`\lVert P_T H P_N v\rVert/\lVert H P_N v\rVert` for a random ``v``: 0 means that the normal
            directions do not couple to those along the manifold. Symmetry makes it so at plain copies; elsewhere it is
            what was measured.
        num_normal: Number of normal directions.
        gradient_norm: Norm of the gradient: not near zero, this is no stationary point.
        direction: Eigenvector of ``smallest``, by parameter name, of norm 1.

    Example:
        >>> import pliant
        >>> model = nn.Sequential(nn.Linear(1, 2, bias=False), nn.Tanh(), nn.Linear(2, 1, bias=False)).double()
        >>> _ = [nn.init.zeros_(p) for p in model.parameters()]  # a stationary point, and both units are clones
        >>> batch = torch.ones(4, 1).double(), torch.ones(4, 1).double()
        >>> pair = pliant.manifolds.partition(pliant.find_units(model, batch[0]), {"0": [0, 0]})
        >>> found = stability(model, pair, batch, "mse")
        >>> found.verdict, round(found.smallest, 9), round(found.largest, 9), found.num_normal
        ('saddle', -1.0, 1.0, 2)
        >>> round(found.growth(lr=0.1), 9), round(found.growth(lr=0.1, momentum=0.9), 3)  # momentum: faster
        (1.1, 1.316)
    """

    smallest: float
    largest: float
    residual: float
    verdict: str
    cross: float
    num_normal: int
    gradient_norm: float
    direction: Mapping[str, Tensor] = field(repr=False)

    def growth(self, lr: float, momentum: float = 0.0) -> float:
        r"""Growth of a small departure along ``direction`` in one step of gradient descent, at a stationary point.

        :math:`1-\eta\lambda`; with heavy-ball momentum :math:`\mu` the root of largest absolute value of
        :math:`z^2 - (1+\mu-\eta\lambda)z + \mu = 0`, which departures approach after some :math:`1/(1-\mu)` steps.

        Args:
            lr: Step size :math:`\eta`.
            momentum: :math:`\mu`, without dampening and Nesterov's correction.
        """
        if not momentum:
            return 1 - lr * self.smallest
        half = (1 + momentum - lr * self.smallest) / 2
        root = cmath.sqrt(half**2 - momentum)
        return max(abs(half + root), abs(half - root))


def stability(
    model: nn.Module,
    partition: Partition,
    batch: Any,
    loss: Any = "cross_entropy",
    *,
    steps: int = 100,
    tolerance: float = 1e-8,
    mode: Any = None,
    seed: int = 0,
) -> Stability:
    """Extremal curvature in the directions normal to the cloning manifold.

    Args:
        model: The model, on the manifold; float64 for small eigenvalues to mean something.
        partition: Its blocks.
        batch: Inputs and targets.
        loss: As for :func:`pliant.spectrum.hessian_operator`.
        steps: Lanczos steps; as many as there are normal directions give all eigenvalues.
        tolerance: Eigenvalues within it count as zero, relative to the largest in absolute value.
        mode: ``"eval"`` or ``"train"``, where the model has batch norm.
        seed: Seed of the start vector.

    Returns:
        The extremal eigenvalues and the verdict.

    Raises:
        IllegalConfiguration: If the partition is trivial or does not fit, or dropout is on.

    Example:
        >>> import pliant
        >>> _ = torch.manual_seed(0)
        >>> model, x = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 1)).double(), torch.randn(64, 2).double()
        >>> wide = pliant.manifolds.clone(model, 2, x)
        >>> found = stability(wide.model, wide.partition, (x, torch.ones(64, 1).double()), "mse")
        >>> found.num_normal, found.cross < 1e-9  # of 17 directions; at plain copies these do not couple to the others
        (8, True)
        >>> found.verdict, found.gradient_norm > 0.1  # no stationary point: the curvature of this moment
        ('saddle', True)
    """
    if partition.is_trivial:
        raise IllegalConfiguration("every block of the partition is a single unit: there is no normal direction.")
    if mode != "eval":
        refuse_dropout(model)
    operator = hessian_operator(model, batch, loss, mode=mode)
    blocks = block_structure(model, partition)
    num_normal = sum(p.numel() for p in model.parameters()) - dimension(model, partition, "both")

    def normal(vector_D: Tensor) -> Tensor:
        parts = operator.problem.named(vector_D)
        zero = {name: torch.zeros_like(part) for name, part in parts.items() if name not in blocks}
        return torch.cat(
            [zero[n].flatten() if n in zero else blocks[n].off(v, "both").flatten() for n, v in parts.items()]
        )

    basis: list[Tensor] = []

    def product(vector_D: Tensor) -> Tensor:
        basis.append(vector_D)  # Lanczos hands over its basis, vector by vector
        return normal(operator(vector_D))

    generator = torch.Generator().manual_seed(seed)
    draw = torch.randn(operator.dimension, generator=generator, dtype=torch.float64).to(operator.problem.device)
    start = normal(draw.to(operator.problem.dtype))
    done = lanczos(product, start, min(steps, num_normal))
    values, _, residuals = done.nodes()
    matrix = torch.diag(done.alpha) + torch.diag(done.beta, 1) + torch.diag(done.beta, -1)
    vector = torch.linalg.eigh(matrix).eigenvectors[:, 0]
    along = torch.stack(basis[: len(vector)]).T @ vector.to(basis[0])
    along = along / torch.linalg.vector_norm(along)
    moved = operator(start)
    cross = float(torch.linalg.vector_norm(moved - normal(moved)) / torch.linalg.vector_norm(moved))
    low, high = float(values[0]), float(values[-1])
    direction = {name: part.clone() for name, part in operator.problem.named(along).items()}
    worst = float(max(residuals[0], residuals[-1]))
    verdict = _verdict(low, high, tolerance * max(abs(low), abs(high)))
    return Stability(low, high, worst, verdict, cross, num_normal, _gradient_norm(operator), direction)


def _verdict(low: float, high: float, tolerance: float) -> str:
    below, above = low < -tolerance, high > tolerance
    if below and above:
        return "saddle"
    if below:
        return "unstable" if high < -tolerance else "not stable"
    if above:
        return "stable" if low > tolerance else "not unstable"
    return "flat"


def _gradient_norm(operator: Operator) -> float:
    problem = operator.problem
    leaves = {name: item.clone().requires_grad_() for name, item in problem.parameters.items()}
    with problem.explained("the gradient"), torch.enable_grad():
        value = problem.target.loss(problem.outputs(leaves))
        found = torch.autograd.grad(value, list(leaves.values()), allow_unused=True)
    return math.sqrt(sum(float(g.square().sum()) for g in found if g is not None))
