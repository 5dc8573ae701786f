"""Losses as functions of a model's outputs, with their curvature there."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from pliant.errors import IllegalConfiguration

__all__ = ["IGNORED", "Curvature", "LossSpec", "Target", "make_target"]

IGNORED = -100
"""A class index that marks a position without a target, as in :func:`torch.nn.functional.cross_entropy`."""

LossSpec = str | Callable[[Tensor, Any], Tensor]
Curvature = Callable[[Tensor], Tensor]


class Target(Protocol):
    r"""What outputs ``[N, P, C]`` (samples, positions, components) are compared with."""

    @property
    def name(self) -> str:
        """The loss, for tables."""

    @property
    def valid(self) -> Tensor | None:
        """Which positions count, bool ``[N, P]``, or ``None`` for all."""

    def loss(self, out_NPC: Tensor) -> Tensor:
        """The loss of the batch: ``[]``."""

    def product(self, out_NPC: Tensor, vector_NPC: Tensor) -> Tensor:
        r"""The loss's Hessian in the outputs times a vector: ``[N, P, C]``."""

    def factor(self, out_NPC: Tensor) -> Tensor:
        r"""``[N, P, C, Q]`` whose blocks :math:`F F^\top` are the loss's Hessian in the outputs of each position."""


class CrossEntropy:
    """Mean over the positions that have a target."""

    name = "cross_entropy"

    def __init__(self, labels_NP: Tensor, dtype: torch.dtype) -> None:
        self.labels, valid = labels_NP, labels_NP != IGNORED
        self.count = int(valid.sum())
        self.valid = None if self.count == labels_NP.numel() else valid
        self.weight = (valid.to(dtype) / max(self.count, 1)).unsqueeze(-1)

    def loss(self, out_NPC: Tensor) -> Tensor:
        """The mean of the negative log-probabilities."""
        return functional.cross_entropy(out_NPC.flatten(0, 1), self.labels.flatten(), ignore_index=IGNORED)

    def product(self, out_NPC: Tensor, vector_NPC: Tensor) -> Tensor:
        r"""``diag(p) - p p^T`` without the matrix."""
        p = out_NPC.softmax(-1)
        scaled = p * vector_NPC
        return (scaled - p * scaled.sum(-1, keepdim=True)) * self.weight

    def factor(self, out_NPC: Tensor) -> Tensor:
        r"""Of rank C - 1, and so wide: :math:`\operatorname{diag}(\sqrt p)\,Q` with :math:`Q^\top \sqrt p = 0`.

        Q is taken from the Householder reflection that maps the last axis onto minus :math:`\sqrt p`.
        """
        root = out_NPC.softmax(-1).sqrt()
        num = root.shape[-1]
        # The reflection of e to -root, for e the last axis: no difference of nearly equal numbers.
        axis = root.clone()
        axis[..., -1] += 1
        scale = 1 / (1 + root[..., -1])
        identity = torch.eye(num, dtype=root.dtype, device=root.device)
        reflection = identity - scale[..., None, None] * axis.unsqueeze(-1) * axis.unsqueeze(-2)
        weighted: Tensor = root.unsqueeze(-1) * reflection[..., :-1]
        return weighted * self.weight.sqrt().unsqueeze(-1)


class HalfSquares:
    """Half the squared error, summed over components and averaged over samples, so that its Hessian is 1/N."""

    name = "mse"
    valid: Tensor | None = None

    def __init__(self, wanted_NPC: Tensor | None, count: int) -> None:
        self.wanted, self.count = wanted_NPC, count

    def loss(self, out_NPC: Tensor) -> Tensor:
        r""":math:`\frac{1}{2N}\sum \|f - y\|^2`."""
        error = out_NPC if self.wanted is None else out_NPC - self.wanted
        value: Tensor = error.square().sum() / (2 * self.count)
        return value

    def product(self, out_NPC: Tensor, vector_NPC: Tensor) -> Tensor:
        """Divided by N."""
        return vector_NPC / self.count

    def factor(self, out_NPC: Tensor) -> Tensor:
        """A multiple of the identity."""
        num = out_NPC.shape[-1]
        identity = torch.eye(num, dtype=out_NPC.dtype, device=out_NPC.device) / math.sqrt(self.count)
        return identity.expand(*out_NPC.shape, num)


class AnyLoss:
    """A function of the user's: its curvature by automatic differentiation, sample by sample."""

    valid: Tensor | None = None

    def __init__(self, function: Callable[[Tensor, Any], Tensor], targets: Any, shape: torch.Size) -> None:
        self.function, self.targets, self.shape = function, targets, shape
        self.name = getattr(function, "__name__", type(function).__name__)

    def loss(self, out_NPC: Tensor) -> Tensor:
        """The function's value."""
        value = self.function(out_NPC.reshape(self.shape), self.targets)
        if not isinstance(value, Tensor) or value.numel() != 1:
            shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise IllegalConfiguration(
                f"loss={self.name} returned {shape}; it must return one number, the loss of the whole batch."
            )
        return value.reshape(())

    def product(self, out_NPC: Tensor, vector_NPC: Tensor) -> Tensor:
        """The derivative of the gradient along the vector."""
        with torch.enable_grad():
            leaf = out_NPC.detach().requires_grad_()
            gradient: Tensor = torch.autograd.grad(self.loss(leaf), leaf, create_graph=True)[0]
            if not gradient.requires_grad:  # a loss that is linear in the outputs
                return torch.zeros_like(out_NPC)
            product: Tensor = torch.autograd.grad(gradient, leaf, vector_NPC)[0]
            return product

    def factor(self, out_NPC: Tensor) -> Tensor:
        """The square root of each sample's block, from its eigenvectors."""
        num = out_NPC.shape[-1]
        identity = torch.eye(num, dtype=out_NPC.dtype, device=out_NPC.device)
        blocks = torch.stack([self.product(out_NPC, row.expand_as(out_NPC)) for row in identity], -1)
        generator = torch.Generator().manual_seed(0)
        probe = torch.randn(out_NPC.shape, generator=generator, dtype=torch.float32).to(out_NPC)
        whole, apart = self.product(out_NPC, probe), (blocks @ probe.unsqueeze(-1)).squeeze(-1)
        tolerance = 1e3 * torch.finfo(out_NPC.dtype).eps
        if bool((whole - apart).norm() > tolerance * whole.norm().clamp(min=torch.finfo(whole.dtype).tiny)):
            raise IllegalConfiguration(
                f"loss={self.name} couples the samples of a batch, so that its curvature has no block per sample. Use "
                "ggn_spectrum(..., method='lanczos') or hessian_spectrum."
            )
        values, vectors = torch.linalg.eigh((blocks + blocks.mT) / 2)
        if bool((values < -tolerance * values.abs().amax().clamp(min=torch.finfo(values.dtype).tiny)).any()):
            raise IllegalConfiguration(
                f"loss={self.name} is not convex in the outputs here (smallest curvature {float(values.min()):.3g}), "
                "so that its Gauss-Newton matrix has no Gram form. Use ggn_spectrum(..., method='lanczos') or "
                "hessian_spectrum."
            )
        root: Tensor = vectors * values.clamp(min=0).sqrt().unsqueeze(-2)
        return root


def make_target(
    loss: LossSpec, out: Tensor, targets: Any, active: Tensor | None, num_logits: int
) -> tuple[Target, Callable[[Tensor], Tensor]]:
    """The loss of a batch, and how the model's output (active logits only) becomes ``[N, P, C]``.

    Args:
        loss: ``"cross_entropy"``, ``"mse"`` or a function of output and targets.
        out: The model's output on the batch, with the active logits alone.
        targets: The batch's targets; ``None`` for ``"mse"`` means zeros (the NTK needs none).
        active: Which of the logits these are, or ``None`` for all.
        num_logits: How many the model has.

    Raises:
        IllegalConfiguration: Where shapes or types do not fit, or a target is none of the active classes.
    """
    if callable(loss):
        shape = out.shape
        return AnyLoss(loss, targets, shape), lambda value: value.reshape(shape[0], 1, -1)
    if loss == "mse":
        return _squares(out, targets), lambda value: value.reshape(value.shape[0], 1, -1)
    if loss != "cross_entropy":
        raise IllegalConfiguration(f"loss={loss!r} is not known; it is 'cross_entropy', 'mse' or a function.")
    if not isinstance(targets, Tensor) or targets.is_floating_point() or targets.dtype == torch.bool:
        kind = targets.dtype if isinstance(targets, Tensor) else type(targets).__name__
        raise IllegalConfiguration(
            f"the targets of loss='cross_entropy' are {kind}; pass class indices (int64), or a function as the loss."
        )
    if out.ndim >= 2 and targets.shape == out.shape[:-1]:
        arrange: Callable[[Tensor], Tensor] = lambda value: value.reshape(value.shape[0], -1, value.shape[-1])  # noqa: E731
    elif out.ndim >= 3 and targets.shape == (out.shape[0], *out.shape[2:]) and active is None:
        arrange = lambda value: value.flatten(2).mT  # noqa: E731  # classes second, as PyTorch's losses have them
    else:
        raise IllegalConfiguration(
            f"outputs of shape {tuple(out.shape)} and targets of shape {tuple(targets.shape)} do not fit together: "
            "targets must have the outputs' shape without that of the classes."
        )
    labels = targets.reshape(targets.shape[0], -1).to(out.device)
    labels = _among(labels, active, num_logits if active is None and arrange(out).shape[-1] == num_logits else None)
    target = CrossEntropy(labels, out.dtype)
    if target.count == 0:
        raise IllegalConfiguration(f"no position of the batch has a target (all are {IGNORED}); nothing is measured.")
    if arrange(out).shape[-1] < 2:
        raise IllegalConfiguration(
            "cross-entropy needs two logits or more; with one it is constant and has no curvature."
        )
    return target, arrange


def _squares(out: Tensor, targets: Any) -> HalfSquares:
    if targets is None:
        return HalfSquares(None, out.shape[0])
    if not isinstance(targets, Tensor) or targets.numel() != out.numel() or targets.shape[:1] != out.shape[:1]:
        shape = tuple(targets.shape) if isinstance(targets, Tensor) else type(targets).__name__
        raise IllegalConfiguration(
            f"outputs of shape {tuple(out.shape)} and targets ({shape}) do not fit together for loss='mse'."
        )
    return HalfSquares(targets.to(out).reshape(out.shape[0], 1, -1), out.shape[0])


def _among(labels: Tensor, active: Tensor | None, num_logits: int | None) -> Tensor:
    """Labels as positions among the active classes."""
    counted = labels[labels != IGNORED]
    if active is None:
        if (
            num_logits is not None
            and counted.numel()
            and not 0 <= int(counted.min()) <= int(counted.max()) < num_logits
        ):
            raise IllegalConfiguration(
                f"targets go from {int(counted.min())} to {int(counted.max())}, but the model has {num_logits} logits."
            )
        return labels
    missing = sorted(set(counted.tolist()) - set(active.tolist()))
    if missing:
        raise IllegalConfiguration(
            f"the batch has targets of class {', '.join(map(str, missing[:5]))}, which are not among the "
            f"{len(active)} active logits. Leave these samples out, or add the classes to active=..."
        )
    place = torch.full((int(active.max()) + 1,), IGNORED, dtype=torch.long, device=labels.device)
    place[active.to(labels.device)] = torch.arange(len(active), device=labels.device)
    return torch.where(labels == IGNORED, labels, place[labels.clamp(min=0)])
