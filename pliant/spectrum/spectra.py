"""The spectra themselves: of the Gauss-Newton matrix, the neural tangent kernel, and the Hessian."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from pliant.errors import IllegalConfiguration
from pliant.spectrum.gram import DEFAULT_MEMORY, gram, gram_bytes
from pliant.spectrum.losses import LossSpec
from pliant.spectrum.problem import Mode, Problem
from pliant.spectrum.products import Operator
from pliant.spectrum.quadrature import quadrature, rounding
from pliant.spectrum.result import Spectrum
from pliant.units.export import Inputs

__all__ = ["ggn_spectrum", "hessian_spectrum", "ntk_spectrum"]


def ggn_spectrum(
    model: nn.Module,
    batch: Any,
    loss: LossSpec = "cross_entropy",
    *,
    method: Literal["auto", "jacobian", "lanczos"] = "auto",
    where: str = "*",
    mode: Mode | None = None,
    active: Any = None,
    dtype: torch.dtype | None = None,
    steps: int = 100,
    num_probes: int = 4,
    seed: int = 0,
    memory: int = DEFAULT_MEMORY,
) -> Spectrum:
    r"""The spectrum of the generalised Gauss-Newton matrix on a batch, exactly by default.

    .. math:: G = \sum_n J_n^\top (\nabla_{f_n}^2 L)\, J_n

    Its nonzero eigenvalues are those of the loss-weighted Gram matrix of the neural tangent kernel,
    :math:`F^\top J J^\top F` with :math:`F F^\top = \nabla_f^2 L`, whose size is the number of outputs of the batch.
    64 to 256 samples are a diagnosis. The model is not changed, to the bit.

    Args:
        model: Any model. In linear layers that see each sample once no Jacobian is needed.
        batch: Inputs and targets ``(x, y)``. Inputs are a tensor, a tuple of positional or a mapping of keyword inputs,
            with the samples along the first dimension.
        loss: ``"cross_entropy"``, the mean over samples (or tokens; -100 has no target), with class indices as targets;
            ``"mse"``, half the squared error summed over outputs and averaged over samples, so that its curvature is
            1/N (that of ``torch.nn.functional.mse_loss`` is 2/C times as much); or a function of output and targets.
        method: ``"auto"`` and ``"jacobian"`` are exact, the latter without the shortcut for linear layers;
            ``"lanczos"`` estimates.
        where: Which trainable parameters, a pattern of names, several with commas between.
        mode: ``"eval"`` or ``"train"`` for the batch norms; must be given where the model has any.
        active: The logits that count (a head masked to the classes seen so far): indices or a mask; ``None``: all.
        dtype: What is computed in; ``None``: the parameters' own, at least float32.
        steps: For ``"lanczos"``: steps of each probe.
        num_probes: For ``"lanczos"``: random vectors; one alone has no standard error.
        seed: For ``"lanczos"``: that of the first probe; the next have the next.
        memory: Bytes that the matrix, the Jacobian or the basis may take.

    Returns:
        A :class:`Spectrum`; ``print`` it, or pass it on to the functions beside this one.

    Raises:
        IllegalConfiguration: For an empty batch, a loss that is not finite, targets that are not among the active
            logits, a mode that must be given, or a matrix that does not fit, with what would.
        UnsupportedOp: Where the model's operations cannot be differentiated as is needed.

    Source:
        Schraudolph (2002) for the matrix; Prakash, He, Guo et al. (2025), arXiv:2509.22335, for its use as a measure of
        plasticity. The layer-wise form is derived in the documentation.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
        >>> spectrum = ggn_spectrum(model, (torch.randn(10, 4), torch.randint(3, (10,))))
        >>> spectrum.method, spectrum.dimension, len(spectrum.eigenvalues())
        ('layers', 30, 30)
    """
    problem = Problem(model, batch, loss, where=where, mode=mode, active=active, dtype=dtype)
    if method == "lanczos":
        return _estimated(Operator("ggn", problem), steps, num_probes, seed, memory)
    if method not in ("auto", "jacobian"):
        raise IllegalConfiguration(f"method={method!r}; it is 'auto', 'jacobian' or 'lanczos'.")
    return _exact(problem, "ggn", method, memory)


def ntk_spectrum(
    model: nn.Module,
    inputs: Inputs,
    *,
    where: str = "*",
    mode: Mode | None = None,
    active: Any = None,
    dtype: torch.dtype | None = None,
    memory: int = DEFAULT_MEMORY,
) -> Spectrum:
    r"""The exact spectrum of the neural tangent kernel's Gram matrix :math:`J J^\top / N`, which knows no loss.

    A saturated softmax makes the Gauss-Newton matrix of cross-entropy vanish although the kernel has full rank: look at
    both. Arguments as for :func:`ggn_spectrum`.

    Example:
        >>> model, x = torch.nn.Linear(3, 2, bias=False), torch.eye(3)
        >>> ntk_spectrum(model, x).eigenvalues().tolist()  # X X^T / N for each output
        [0.333..., 0.333..., 0.333..., 0.333..., 0.333..., 0.333...]
    """
    problem = Problem(model, (inputs, None), "mse", where=where, mode=mode, active=active, dtype=dtype)
    return _exact(problem, "ntk", "auto", memory)


def hessian_spectrum(
    model: nn.Module,
    batch: Any,
    loss: LossSpec = "cross_entropy",
    *,
    method: Literal["lanczos", "dense"] = "lanczos",
    steps: int = 100,
    num_probes: int = 4,
    seed: int = 0,
    where: str = "*",
    mode: Mode | None = None,
    active: Any = None,
    dtype: torch.dtype | None = None,
    memory: int = DEFAULT_MEMORY,
) -> Spectrum:
    r"""The spectrum of the loss's Hessian, estimated by stochastic Lanczos quadrature by default.

    Eigenvalues nearer to zero than ``resolution`` cannot be seen, which is coarse where the largest is large: the share
    of vanished directions is better asked of :func:`ggn_spectrum`. The L2 term of an optimizer is no part of the loss.

    Args:
        model: Any model that can be differentiated twice.
        batch: As for :func:`ggn_spectrum`.
        loss: As for :func:`ggn_spectrum`.
        method: ``"lanczos"``, or ``"dense"``: the whole matrix, for a few thousand parameters.
        steps: Products for each probe.
        num_probes: Random vectors; one alone has no standard error.
        seed: That of the first; the next have the next.
        where: Which trainable parameters, a pattern of names.
        mode: ``"eval"`` or ``"train"``; must be given where the model has batch norm.
        active: The logits that count; ``None``: all.
        dtype: What is computed in; ``None``: the parameters' own, at least float32.
        memory: Bytes that the matrix or the basis may take (the latter: see :func:`basis_bytes`).

    Returns:
        A :class:`Spectrum`.

    Raises:
        IllegalConfiguration: As for :func:`ggn_spectrum`.
        UnsupportedOp: Where an operation has no second derivative.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
        >>> spectrum = hessian_spectrum(model, (torch.randn(10, 4), torch.randint(3, (10,))), steps=20, num_probes=2)
        >>> spectrum.dimension, spectrum.num_probes, spectrum.seeds
        (67, 2, (0, 1))
    """
    problem = Problem(model, batch, loss, where=where, mode=mode, active=active, dtype=dtype)
    operator = Operator("hessian", problem)
    if method == "lanczos":
        return _estimated(operator, steps, num_probes, seed, memory)
    if method != "dense":
        raise IllegalConfiguration(f"method={method!r}; it is 'lanczos' or 'dense'.")
    size = problem.num_parameters
    needed = gram_bytes(size, size, problem.dtype)
    if needed > memory:
        raise IllegalConfiguration(
            f"the whole Hessian of {size} parameters needs {needed / 2**30:.1f} GiB, more than "
            f"memory={memory / 2**30:.1f} GiB. Use method='lanczos', or fewer parameters (where=...)."
        )
    return _of_matrix(problem, "hessian", "dense", operator.dense(), size, size)


def _exact(problem: Problem, matrix: str, method: str, memory: int) -> Spectrum:
    found = gram(problem, method=method, memory=memory)
    dimension = min(problem.num_parameters, problem.num_positions * problem.num_outputs)
    return _of_matrix(problem, matrix, found.method, found.matrix, dimension, dimension)


def _of_matrix(problem: Problem, matrix: str, method: str, values: Tensor, dimension: int, max_rank: int) -> Spectrum:
    """Eigenvalues in float64; what the matrix lacks of the dimension are zeros."""
    if not bool(torch.isfinite(values).all()):
        raise IllegalConfiguration(
            f"the {matrix} matrix has NaN or infinite entries although the loss is finite: a derivative of the model "
            "is not (a square root or norm at zero, for example), or it overflows; try dtype=torch.float64."
        )
    nodes = torch.linalg.eigvalsh(values.double()).cpu()
    weights = torch.full_like(nodes, 1 / dimension)
    if dimension > len(nodes):
        place = int(torch.searchsorted(nodes, 0.0))
        nodes = torch.cat([nodes[:place], nodes.new_zeros(1), nodes[place:]])
        zeros = weights.new_full((1,), (dimension - len(weights)) / dimension)
        weights = torch.cat([weights[:place], zeros, weights[place:]])
    resolution = rounding(float(nodes.abs().max()), len(values), problem.dtype)
    return _spectrum(
        problem, matrix, method, ((nodes,), (weights,), (torch.zeros_like(nodes),)), dimension, max_rank, resolution, ()
    )


def _estimated(operator: Operator, steps: int, num_probes: int, seed: int, memory: int) -> Spectrum:
    problem, dimension = operator.problem, operator.dimension
    seeds = tuple(range(seed, seed + num_probes))
    found = quadrature(
        operator, dimension, steps=steps, seeds=seeds, dtype=problem.dtype, device=problem.device, memory=memory
    )
    most = dimension
    if operator.matrix == "ggn":
        most = min(dimension, problem.num_positions * problem.num_outputs)
    parts = (found.nodes, found.weights, found.residuals)
    return _spectrum(problem, operator.matrix, "lanczos", parts, dimension, most, found.resolution, seeds)


def _spectrum(
    problem: Problem,
    matrix: str,
    method: str,
    parts: tuple[tuple[Tensor, ...], ...],
    dimension: int,
    max_rank: int,
    resolution: float,
    seeds: tuple[int, ...],
) -> Spectrum:
    return Spectrum(
        matrix=matrix,
        method=method,
        nodes=parts[0],
        weights=parts[1],
        residuals=parts[2],
        dimension=dimension,
        max_rank=max_rank,
        num_samples=problem.num_positions,
        num_outputs=problem.num_outputs,
        num_parameters=problem.num_parameters,
        loss="none" if matrix == "ntk" else problem.target.name,
        mode=problem.mode,
        resolution=resolution,
        seeds=seeds,
    )
