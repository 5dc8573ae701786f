r"""Certificates: are the weights on a manifold that gradient descent cannot leave?

*Incoming-equitable* weights (the sums of incoming weights from each block are equal for all units of a block) make
the activations in a block equal; *outgoing-equitable* ones, with that, the gradients of the activations. Both
together make every gradient block-constant, so that a step along it keeps both conditions: the cloning manifold.
The difference to block-constant weights then stays what it was: a trajectory is confined to one *leaf*.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pliant.errors import IllegalConfiguration
from pliant.manifolds.linearity import transformed_tensors
from pliant.manifolds.partition import Partition
from pliant.manifolds.projection import KINDS, Distance, distance, residual
from pliant.manifolds.structure import Kind, block_structure, tensors_of

__all__ = ["Certificate", "Condition", "certificate"]


@dataclass(frozen=True)
class Condition:
    """One condition on one tensor.

    Attributes:
        tensor: Name of the parameter or buffer.
        condition: ``"incoming"``, ``"outgoing"``, ``"block_constant"`` or ``"leaf"``.
        defect: Largest absolute violation by any entry, relative to the tensor's largest absolute entry.
        holds: Whether that is within the tolerance.

    Example:
        >>> import pliant
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1)).double()
        >>> _ = nn.init.ones_(model[2].weight)
        >>> wide = pliant.manifolds.clone(model, 2, torch.randn(3, 2).double())
        >>> with torch.no_grad():
        ...     _ = wide.model[2].weight[0, 0].mul_(2)  # the activations stay equal, what reads them does not
        >>> certificate(wide.model, wide.partition).failures
        (Condition(tensor='2.weight', condition='outgoing', defect=0.25, holds=False),)
    """

    tensor: str
    condition: str
    defect: float
    holds: bool


@dataclass(frozen=True)
class Certificate:
    """The verdict on a model's weights; ``print`` gives a table of what fails.

    Attributes:
        kind: What was checked.
        conditions: Every condition, tensor by tensor.
        tolerance: Largest relative defect that counts as rounding.
        distance: Distance to the manifold; for a leaf, to the cloning manifold.

    Example:
        >>> import pliant
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1)).double()
        >>> _ = nn.init.ones_(model[0].bias)
        >>> wide = pliant.manifolds.clone(model, 2, torch.randn(3, 2).double())
        >>> certificate(wide.model, wide.partition).holds
        True
        >>> with torch.no_grad():
        ...     _ = wide.model[0].bias[0].add_(1)  # 2 beside 1: both are 0.5 away from their mean
        >>> print(certificate(wide.model, wide.partition))
        both: does not hold (distance 7.07e-01)
          0.bias: incoming by 2.5e-01
    """

    kind: str
    conditions: tuple[Condition, ...]
    tolerance: float
    distance: Distance

    @property
    def holds(self) -> bool:
        """Whether every condition holds, up to rounding."""
        return all(condition.holds for condition in self.conditions)

    @property
    def failures(self) -> tuple[Condition, ...]:
        """The conditions that do not hold."""
        return tuple(condition for condition in self.conditions if not condition.holds)

    def __str__(self) -> str:
        head = f"{self.kind}: {'holds' if self.holds else 'does not hold'} (distance {self.distance.total:.2e})"
        return "\n".join([head, *(f"  {c.tensor}: {c.condition} by {c.defect:.1e}" for c in self.failures)])


def certificate(
    model: nn.Module,
    partition: Partition,
    kind: Kind | Literal["leaf"] = "both",
    *,
    reference: Mapping[str, Tensor] | None = None,
    example_inputs: Any = None,
    tolerance: float = 1e-12,
) -> Certificate:
    """Check the conditions of a manifold on the weights alone.

    ``"both"`` certifies the cloning manifold: with it, with weights that multiply activations as they are, and with
    nothing random in the forward pass, every gradient on any data stays tangent to it.
    :func:`~pliant.manifolds.trap_test` measures the same on a batch.

    Args:
        model: The model; float64 for the tolerance to mean rounding.
        partition: The partition of its units; at least one block of two units.
        kind: ``"incoming"``, ``"outgoing"``, ``"both"``, ``"block_constant"``; or ``"leaf"``: on the cloning manifold
            and with the same difference to block-constant weights as ``reference``.
        reference: For ``"leaf"``: the state dict of a point on it.
        example_inputs: One small batch. With it the model is run to find the tensors that it does not use as they are
            (:func:`transformed_tensors`: standardised or normalised weights); of these block-constancy is asked as
            well, because sums of their entries prove nothing. Without it, of parametrised ones only.
        tolerance: Largest defect, relative to the largest entry of the tensor, that counts as rounding.

    Returns:
        The certificate.

    Raises:
        IllegalConfiguration: If the partition does not fit the model or has no block of two units, or a leaf is asked
            for without a reference.

    Example:
        >>> import pliant
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1)).double()
        >>> wide = pliant.manifolds.clone(model, 2, torch.randn(3, 2).double())
        >>> certificate(wide.model, wide.partition, "block_constant").holds
        True
        >>> with torch.no_grad():
        ...     _ = wide.model[0].weight[0, 0].add_(1e-6)
        >>> [failure.tensor for failure in certificate(wide.model, wide.partition).failures]
        ['0.weight']
    """
    if kind != "leaf" and kind not in KINDS:
        raise IllegalConfiguration(f"kind={kind!r}: there are {', '.join(map(repr, [*KINDS, 'leaf']))}.")
    if partition.is_trivial:
        raise IllegalConfiguration(
            "every block of the partition is a single unit, so that there is nothing to certify: any network is on "
            "that manifold."
        )
    if kind == "leaf" and reference is None:
        raise IllegalConfiguration('kind="leaf" compares with a point of the leaf: give reference=, its state dict.')
    tensors, found = tensors_of(model), []
    wanted: list[Kind] = ["incoming", "outgoing"] if kind in ("both", "leaf") else [kind]  # type: ignore[list-item]
    strict = {name for name in tensors if ".parametrizations." in name or name.endswith(_REPARAMETRISED)}
    if example_inputs is not None:
        strict |= set(transformed_tensors(model, partition, example_inputs))
    for name, blocks in block_structure(model, partition).items():
        value = tensors[name].detach().double()
        for one in wanted:
            defect = _relative(blocks.off(value, one), value)
            found.append(Condition(name, one, defect, defect <= tolerance))
        if name in strict and "block_constant" not in wanted:
            defect = _relative(blocks.off(value, "block_constant"), value)
            found.append(Condition(name, "block_constant", defect, defect <= tolerance))
    if kind == "leaf":
        there = residual(model, partition, state=reference)
        for name, mine in residual(model, partition).items():
            if name not in there:
                raise IllegalConfiguration(f"the reference has no {name!r}.")
            defect = _relative(mine - there[name].to(mine), tensors[name].detach())
            found.append(Condition(name, "leaf", defect, defect <= tolerance))
    return Certificate(kind, tuple(found), tolerance, distance(model, partition, "both" if kind == "leaf" else kind))


_REPARAMETRISED = ("_orig", "weight_g", "weight_v")


def _relative(off: Tensor, value: Tensor) -> float:
    scale = float(value.abs().max()) if value.numel() else 0.0
    worst = float(torch.nan_to_num(off, nan=float("inf")).abs().max()) if off.numel() else 0.0
    return worst / scale if scale else (0.0 if worst == 0 else float("inf"))
