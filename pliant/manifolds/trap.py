r"""The trap test: does the gradient, and does what the optimizer makes of it, leave the manifold?

The normal share of a vector :math:`g` is :math:`\rho = \lVert (I-P)g \rVert / \lVert g \rVert`, with :math:`P` the
projection onto the directions along the manifold. On a cloning manifold it is zero up to rounding for every loss and
every batch. Zero on one batch says that this step stays; that is all it says.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pliant.errors import IllegalConfiguration
from pliant.manifolds.partition import Partition
from pliant.manifolds.projection import Distance, distance
from pliant.manifolds.structure import Kind, block_structure
from pliant.observation import Observation, observe
from pliant.units import UnitGraph
from pliant.units.verify import random_rates

__all__ = ["NormalShare", "TrapTest", "UnitSpread", "refuse_dropout", "refuse_random", "trap_test"]


@dataclass(frozen=True)
class NormalShare:
    """How much of a vector over all parameters points away from a manifold.

    Attributes:
        share: Norm of the normal part over the norm, in [0, 1]; 0 for a vector of zeros.
        norm: Norm of the whole vector.
        tensors: Parameter name to the norm of its normal part over the norm of the whole vector.

    Example:
        >>> import pliant
        >>> _ = torch.manual_seed(0)
        >>> model, x = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)).double(), torch.randn(8, 2).double()
        >>> wide = pliant.manifolds.clone(model, 2, x)
        >>> for size in (0.0, 0.1):
        ...     if size:
        ...         _ = wide.model.load_state_dict(pliant.manifolds.kicked(wide.model, wide.partition, size))
        ...     found = trap_test(wide.model, wide.partition, x, lambda y: (y - 1).square().mean()).gradient
        ...     print(found.share < 1e-12, found.norm > 0.1, list(found.tensors))
        True True ['0.weight', '0.bias', '2.weight']
        False True ['0.weight', '0.bias', '2.weight']
    """

    share: float
    norm: float
    tensors: Mapping[str, float] = field(repr=False)


@dataclass(frozen=True)
class UnitSpread:
    """How different the units of a block are, on a batch.

    Attributes:
        forward: Largest range of an activation within a block, relative to the group's largest activation.
        backward: The same of the gradients of the activations; ``None`` where they cannot be seen.

    Example:
        >>> import pliant
        >>> model, x = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 1)).double(), torch.randn(8, 2).double()
        >>> _ = nn.init.ones_(model[2].weight)
        >>> wide = pliant.manifolds.clone(model, 2, x)
        >>> with torch.no_grad():
        ...     _ = wide.model[2].weight[0, 0].mul_(2)  # read by 1 and by 0.5: equal activations, unequal gradients
        >>> spread = trap_test(wide.model, wide.partition, x, lambda y: y.square().mean()).spread["0"]
        >>> spread.forward < 1e-12, round(spread.backward, 9)
        (True, 0.5)
    """

    forward: float
    backward: float | None


@dataclass(frozen=True)
class TrapTest:
    """What one batch shows.

    Attributes:
        gradient: Normal share of the gradient.
        update: Normal share of the optimizer's next step; ``None`` without an optimizer.
        samples: Largest normal share of the gradient of a single sample; ``None`` unless it was asked for.
        spread: Group name to the range of activations and their gradients within its blocks.
        distance: Distance of the weights to the manifold.
        tolerance: Largest share that counts as rounding.

    Example:
        >>> import pliant
        >>> _ = torch.manual_seed(0)
        >>> model, x = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)).double(), torch.randn(8, 2).double()
        >>> wide = pliant.manifolds.clone(model, 2, x)
        >>> adam = torch.optim.Adam(wide.model.parameters())
        >>> found = trap_test(wide.model, wide.partition, x, lambda y: y.square().mean(), optimizer=adam)
        >>> found.stays, found.gradient.share < 1e-12, found.update.share < 1e-9
        (True, True, True)
        >>> _ = wide.model.load_state_dict(pliant.manifolds.kicked(wide.model, wide.partition, 1e-3))
        >>> trap_test(wide.model, wide.partition, x, lambda y: y.square().mean()).stays  # near is not trapped
        False
    """

    gradient: NormalShare
    update: NormalShare | None
    samples: float | None
    spread: Mapping[str, UnitSpread]
    distance: Distance
    tolerance: float

    @property
    def stays(self) -> bool:
        """Whether the weights are on the manifold, and this step leaves them there, up to rounding."""
        shares = [self.gradient.share, self.update.share if self.update else 0.0, self.samples or 0.0]
        return all(value <= self.tolerance for value in [*shares, self.distance.relative])

    def __str__(self) -> str:
        place = (
            "on the manifold"
            if self.distance.relative <= self.tolerance
            else (
                f"off the manifold by {self.distance.total:.2e} (relative {self.distance.relative:.1e}); "
                "near is not trapped"
            )
        )
        parts = [f"normal share of the gradient {self.gradient.share:.1e}"]
        parts += [f"of the update {self.update.share:.1e}"] if self.update else []
        parts += [f"of single samples at most {self.samples:.1e}"] if self.samples is not None else []
        return f"{place}; {', '.join(parts)}"


def trap_test(
    model: nn.Module,
    partition: Partition,
    inputs: Any,
    loss: Callable[[Any], Tensor] | None = None,
    *,
    optimizer: Optimizer | None = None,
    kind: Kind = "both",
    samples: Iterable[tuple[Any, Callable[[Any], Tensor]]] = (),
    tolerance: float = 1e-9,
) -> TrapTest:
    """The normal share of the gradient on a batch, and of the update that the optimizer would make.

    Nothing is changed: the optimizer's step is made on copies.

    Args:
        model: The model, in the mode in which it trains.
        partition: Its blocks.
        inputs: A batch, as for :func:`pliant.observation.observe`.
        loss: From the model's output to a scalar; ``None`` where the output has a loss.
        optimizer: Its optimizer.
        kind: Which manifold.
        samples: Single samples, each with its own loss: the share is then taken of each, too, which certifies more than
            that of their mean.
        tolerance: Largest share that counts as rounding.

    Returns:
        The shares.

    Raises:
        IllegalConfiguration: If the partition does not fit or is trivial, or something in the forward pass is random.

    Example:
        >>> import pliant
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)).double()
        >>> x = torch.randn(8, 2).double()
        >>> wide = pliant.manifolds.clone(model, 2, x)
        >>> trap_test(wide.model, wide.partition, x, lambda output: output.square().mean()).stays
        True
    """
    if partition.is_trivial:
        raise IllegalConfiguration("every block of the partition is a single unit: no direction leads away.")
    block_structure(model, partition)  # refuses a partition of another model
    refuse_random(model, inputs)
    seen = observe(model, inputs, loss, units=partition.units, where="*,*:residual")
    gradients = _gradients(seen)
    singles = [_gradients(observe(model, one, own, units=UnitGraph(()))) for one, own in samples]
    shares = [normal_share(model, partition, single, kind).share for single in singles]
    update = None
    if optimizer is not None:
        update = normal_share(model, partition, _update(model, optimizer, gradients), kind)
    return TrapTest(
        normal_share(model, partition, gradients, kind),
        update,
        max(shares, default=None),
        _spread(seen, partition),
        distance(model, partition, kind),
        tolerance,
    )


def normal_share(model: nn.Module, partition: Partition, vector: Mapping[str, Tensor], kind: Kind) -> NormalShare:
    """The normal share of a vector over parameters, by name; parameters without blocks have no normal part."""
    blocks = block_structure(model, partition)
    norm = sum(float(torch.linalg.vector_norm(v.double())) ** 2 for v in vector.values()) ** 0.5
    off = {
        n: float(torch.linalg.vector_norm(blocks[n].off(v.double(), kind))) for n, v in vector.items() if n in blocks
    }
    total = sum(value**2 for value in off.values()) ** 0.5
    return NormalShare(total / norm if norm else 0.0, norm, {n: v / norm if norm else 0.0 for n, v in off.items()})


def refuse_random(model: nn.Module, inputs: Any) -> None:
    """Refuse a model whose forward pass draws: independent masks are different for clones, and hide what is tested.

    Raises:
        IllegalConfiguration: Naming the modules.
    """
    refuse_dropout(model)
    outputs = []
    for seed in (0, 1):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            outputs.append(observe(model, inputs, units=UnitGraph(())).outputs)
    if any(not torch.equal(a, b) for a, b in zip(*outputs, strict=True)):
        raise IllegalConfiguration(
            f"two forward passes of {type(model).__name__} on the same batch differ: something in it is random "
            "(dropout as a function, noise), and treats clones differently. Turn it off for this test."
        )


def refuse_dropout(model: nn.Module) -> None:
    """Refuse dropout modules that are on.

    Raises:
        IllegalConfiguration: Naming the modules.
    """
    found = [f"{path or type(model).__name__} ({key}={rate})" for path, key, rate in random_rates(model)]
    if found:
        raise IllegalConfiguration(
            f"dropout is on in {', '.join(found)}: it treats clones differently, so that no condition can hold. "
            "Set its rate to 0 or the model to evaluation mode for this test; pliant.manifolds.audit measures what "
            "dropout does."
        )


def _gradients(seen: Observation) -> dict[str, Tensor]:
    return {name: value for name, value in seen.gradients.items() if name in seen.trainable}


def _update(model: nn.Module, optimizer: Optimizer, gradients: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What one step of a copy of the optimizer adds to a copy of the parameters."""
    copied = copy.deepcopy(model)
    after = dict(copied.named_parameters())
    memo = {id(p): after[name] for name, p in model.named_parameters()}
    stepper = copy.deepcopy(optimizer, memo)
    for name, parameter in after.items():
        parameter.grad = gradients[name].to(parameter) if name in gradients else None
    stepper.step()
    return {name: after[name].detach() - p.detach() for name, p in model.named_parameters()}


def _spread(seen: Observation, partition: Partition) -> dict[str, UnitSpread]:
    result = {}
    for name in partition.labels:
        if name in seen.groups:
            group = seen.groups[name]
            labels = torch.tensor(partition.of(name))
            grad = group.grad_NU
            result[name] = UnitSpread(_range(group.act_NU, labels), None if grad is None else _range(grad, labels))
    return result


def _range(values_NU: Tensor, labels: Tensor) -> float:
    scale = float(values_NU.abs().max()) if values_NU.numel() else 0.0
    if not scale:
        return 0.0
    index = labels.to(values_NU.device).expand_as(values_NU)
    top = torch.zeros_like(values_NU).scatter_reduce_(1, index, values_NU, "amax", include_self=False)
    low = torch.zeros_like(values_NU).scatter_reduce_(1, index, values_NU, "amin", include_self=False)
    return float((top - low).max()) / scale
