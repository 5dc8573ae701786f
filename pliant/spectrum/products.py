"""Products of the Hessian and of the generalised Gauss-Newton matrix with vectors, through a graph that is kept."""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor, nn

from pliant.errors import IllegalConfiguration
from pliant.spectrum.losses import LossSpec
from pliant.spectrum.problem import Mode, Problem

__all__ = ["Operator", "ggn_operator", "hessian_operator"]


@final
class Operator:
    r"""A symmetric matrix over a model's parameters that is known by its products with vectors.

    The graph of the gradient (of the outputs, for the Gauss-Newton matrix) is made once and kept as long as the
    operator is: a product is then one or two backward passes through it and no forward pass. That takes the memory of a
    training step, and needs second derivatives in reverse mode alone, which more operations have than forward ones.

    Attributes:
        matrix: ``"hessian"`` or ``"ggn"``.
        problem: The model on its batch.
        dimension: Number of parameters.

    Example:
        >>> import torch
        >>> from pliant.spectrum import ggn_operator
        >>> operator = ggn_operator(torch.nn.Linear(3, 1, bias=False), (torch.eye(3), torch.zeros(3, 1)), "mse")
        >>> operator.matrix, operator(torch.ones(3)).shape
        ('ggn', torch.Size([3]))
    """

    def __init__(self, matrix: str, problem: Problem) -> None:
        self.matrix, self.problem, self.dimension = matrix, problem, problem.num_parameters
        self._leaves = {name: item.clone().requires_grad_() for name, item in problem.parameters.items()}
        leaves = list(self._leaves.values())
        with problem.explained(f"the gradient for the {matrix}"), torch.enable_grad():
            out_NPC = problem.outputs(self._leaves)
            self._at = out_NPC.detach()
            # the Gauss-Newton matrix: J^T u is linear in u, and its derivative in u along J^T's result is J
            self._dual = torch.zeros_like(out_NPC).requires_grad_()
            value = problem.target.loss(out_NPC) if matrix == "hessian" else (out_NPC * self._dual).sum()
            self._out, self._gradient = out_NPC, _derivative([value], leaves, None, create_graph=True)
            _check_twice(self._gradient)

    def __call__(self, vector_D: Tensor) -> Tensor:
        """The product: ``[D]``, in the problem's dtype.

        Raises:
            IllegalConfiguration: For a vector of another length.
            UnsupportedOp: Where the model's operations cannot be differentiated twice.
        """
        problem = self.problem
        if vector_D.shape != (self.dimension,):
            raise IllegalConfiguration(
                f"the vector has shape {tuple(vector_D.shape)}, not ({self.dimension},): one entry for each parameter."
            )
        along = list(problem.named(vector_D.detach().to(problem.parameters[problem.names[0]])).values())
        leaves = list(self._leaves.values())
        with problem.explained(f"the product with the {self.matrix}"):
            if self.matrix == "hessian":
                found = _derivative(self._gradient, leaves, along)
            else:
                moved = _derivative(self._gradient, [self._dual], along)[0]
                found = _derivative([self._out], leaves, [problem.target.product(self._at, moved)])
        return torch.cat([item.reshape(-1) for item in found])

    def dense(self) -> Tensor:
        """The whole matrix, ``[D, D]``, made symmetric: for small models and for tests."""
        identity = torch.eye(self.dimension, dtype=self.problem.dtype, device=self.problem.device)
        matrix = torch.stack([self(row) for row in identity])
        return (matrix + matrix.T) / 2


def _check_twice(gradients: list[Tensor]) -> None:
    """Refuse a graph that holds a function which may be differentiated once only.

    Where the path through it is not the only one, PyTorch would leave it out and say nothing.
    """
    waiting, seen = [item.grad_fn for item in gradients], set()
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            if node.name().endswith("Error"):  # it leads nowhere
                raise RuntimeError("trying to differentiate twice a function that was marked with @once_differentiable")
            waiting.extend(following for following, _ in node.next_functions)


def _derivative(
    values: list[Tensor], leaves: list[Tensor], along: list[Tensor] | None, *, create_graph: bool = False
) -> list[Tensor]:
    """Gradients in some leaves, zeros where values do not depend on them; the graph stays."""
    tracked = [index for index, value in enumerate(values) if value.requires_grad]
    if not tracked:
        return [torch.zeros_like(leaf) for leaf in leaves]
    found = torch.autograd.grad(
        [values[index] for index in tracked],
        leaves,
        None if along is None else [along[index] for index in tracked],
        retain_graph=True,
        create_graph=create_graph,
        allow_unused=True,
    )
    return [torch.zeros_like(leaf) if item is None else item for leaf, item in zip(leaves, found, strict=True)]


def hessian_operator(
    model: nn.Module,
    batch: Any,
    loss: LossSpec = "cross_entropy",
    *,
    where: str = "*",
    mode: Mode | None = None,
    active: Any = None,
    dtype: torch.dtype | None = None,
) -> Operator:
    r"""The loss's Hessian in the parameters as products: ``hessian_operator(model, (x, y))(vector)``.

    .. math:: v \mapsto \nabla^2 L(\theta)\, v

    computed as the derivative of the gradient along the vector.

    Args:
        model: The model; it is left as it is.
        batch: Inputs and targets.
        loss: As for :func:`pliant.spectrum.ggn_spectrum`.
        where: Which trainable parameters, a pattern of names.
        mode: ``"eval"`` or ``"train"``; must be given where the model has batch norm.
        active: The logits that count; ``None``: all.
        dtype: What is computed in; ``None``: the parameters' own, at least float32.

    Returns:
        An :class:`Operator`; vectors have one entry for each parameter, in the order of ``model.named_parameters()``.

    Raises:
        IllegalConfiguration: For a batch, loss or mode that does not fit.
        UnsupportedOp: When applied, where operations of the model have no second derivative.

    Source:
        Pearlmutter, Fast exact multiplication by the Hessian, Neural Computation 6 (1994).

    Example:
        >>> model, x = torch.nn.Linear(3, 1, bias=False), torch.eye(3)
        >>> hessian_operator(model, (x, torch.zeros(3, 1)), "mse")(torch.ones(3)).tolist()  # X^T X / N
        [0.333..., 0.333..., 0.333...]
    """
    return Operator("hessian", Problem(model, batch, loss, where=where, mode=mode, active=active, dtype=dtype))


def ggn_operator(
    model: nn.Module,
    batch: Any,
    loss: LossSpec = "cross_entropy",
    *,
    where: str = "*",
    mode: Mode | None = None,
    active: Any = None,
    dtype: torch.dtype | None = None,
) -> Operator:
    r"""The generalised Gauss-Newton matrix as products; arguments as for :func:`hessian_operator`.

    .. math:: v \mapsto J^\top (\nabla_f^2 L)\, J v

    Source:
        Schraudolph, Fast curvature matrix-vector products for second-order gradient descent, Neural Computation 14
        (2002).

    Example:
        >>> model, x = torch.nn.Linear(3, 1, bias=False), torch.eye(3)
        >>> ggn_operator(model, (x, torch.zeros(3, 1)), "mse")(torch.ones(3)).tolist()
        [0.333..., 0.333..., 0.333...]
    """
    return Operator("ggn", Problem(model, batch, loss, where=where, mode=mode, active=active, dtype=dtype))
