"""What one look at a model saw."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from pliant.units import UnitGraph

__all__ = ["GroupObservation", "Observation"]


@dataclass(frozen=True)
class GroupObservation:
    """What the units of one group did on the batch; row *n* of each matrix is the same sample.

    Attributes:
        name: The group's name.
        act_NU: Activations, ``[N, U]``; batch, time and space are samples, padded ones are left out.
        derivative_NU: :math:`f'(z)` of each unit's activation function, ``[N, U]``, or ``None``.
        grad_NU: Gradient of the loss with respect to the activations, ``[N, U]``, or ``None``.
        incoming_gradient_U: Mean absolute gradient of the loss with respect to each unit's incoming weights, ``[U]``,
            or ``None``.
        num_samples: Samples that the batch held, of which N were kept.
        missing: ``"derivatives"`` or ``"gradients"`` to the reason why there are none.

    Example:
        >>> import torch
        >>> from pliant.observation import observe
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> labels = torch.randint(2, (16,))
        >>> inputs, entropy = torch.randn(16, 4), torch.nn.functional.cross_entropy
        >>> seen = observe(model, inputs, lambda outputs: entropy(outputs, labels))
        >>> group = seen.groups["0"]
        >>> group.act_NU.shape, group.derivative_NU.shape, group.num_samples
        (torch.Size([16, 8]), torch.Size([16, 8]), 16)
    """

    name: str
    act_NU: Tensor
    derivative_NU: Tensor | None
    grad_NU: Tensor | None
    incoming_gradient_U: Tensor | None
    num_samples: int
    missing: Mapping[str, str] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Number of units, U."""
        return self.act_NU.shape[-1]


@dataclass(frozen=True)
class Observation:
    """What :func:`observe` saw. Tensors are copies without a graph, in float32 (float64 of a float64 model).

    Attributes:
        groups: Group name to what its units did.
        unseen: Groups that were not observed, and why.
        loss: The loss on the batch, ``None`` without one.
        outputs: The floating-point outputs of the model.
        logits_NC: The first output with at least two dimensions, as samples x classes (or x dimensions), padded
            samples left out; ``None`` where there is none.
        logits_grad_NC: Gradient of the loss with respect to them; ``None`` without a loss, or where the loss does not
            depend on them.
        is_classification: Whether the loss takes a softmax of the outputs; ``None`` without a loss.
        gradients: Parameter name to the gradient of the loss; only those that have one.
        weights: Name to every parameter.
        trainable: Names of the parameters that require gradients in the model.
        num_examples: Examples in the batch: the first dimension of the first input.
        training: Whether the model ran in training mode; ``None`` if every module ran in its own.
        units: The unit groups.

    Example:
        >>> import torch
        >>> from pliant.observation import observe
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> labels = torch.randint(2, (16,))
        >>> inputs, entropy = torch.randn(16, 4), torch.nn.functional.cross_entropy
        >>> seen = observe(model, inputs, lambda outputs: entropy(outputs, labels))
        >>> sorted(seen.groups), seen.unseen, seen.loss > 0
        (['0'], {}, True)
    """

    groups: Mapping[str, GroupObservation]
    unseen: Mapping[str, str]
    loss: float | None
    outputs: tuple[Tensor, ...] = field(repr=False)
    logits_NC: Tensor | None = field(repr=False)
    logits_grad_NC: Tensor | None = field(repr=False)
    is_classification: bool | None
    gradients: Mapping[str, Tensor] = field(repr=False)
    weights: Mapping[str, Tensor] = field(repr=False)
    trainable: frozenset[str] = field(repr=False)
    num_examples: int
    training: bool | None
    units: UnitGraph = field(repr=False)
