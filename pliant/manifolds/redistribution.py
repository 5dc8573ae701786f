"""Moving on the cloning manifold, away from plain copies: the same function, other weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from pliant.errors import IllegalConfiguration
from pliant.manifolds.partition import Partition
from pliant.manifolds.structure import block_structure, tensors_of

__all__ = ["redistributed"]


def redistributed(
    model: nn.Module,
    partition: Partition,
    *,
    scale: float = 0.3,
    seed: int = 0,
    only: str | None = None,
    state: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    r"""A point of the cloning manifold on another leaf: block sums stay, the entries inside each block move.

    To every tensor with blocks on both sides comes a random matrix whose block sums over rows and over columns are
    zero, :math:`R = P_C Z - P_{BC} Z`. Activations and gradients of a network on the manifold stay what they are.

    Args:
        model: The model; it is not changed.
        partition: Its blocks.
        scale: Norm of the change of each tensor, relative to that of the tensor.
        seed: Seed of :math:`Z`.
        only: Move this tensor alone.
        state: Other values than the model's own, by name.

    Returns:
        Tensor name to tensor, of all parameters and buffers, for ``load_state_dict(..., strict=False)``.

    Raises:
        IllegalConfiguration: If no tensor has blocks on both sides: then the cloning manifold is its only leaf.

    Example:
        >>> import pliant
        >>> model = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 1)).double()
        >>> x = torch.randn(3, 2).double()
        >>> wide = pliant.manifolds.clone(model, 2, x)
        >>> _ = wide.model.load_state_dict(redistributed(wide.model, wide.partition), strict=False)
        >>> check = pliant.manifolds.certificate
        >>> check(wide.model, wide.partition).holds, check(wide.model, wide.partition, "block_constant").holds
        (True, False)
        >>> torch.allclose(wide.model(x), model(x), atol=1e-12)
        True
    """
    if not scale > 0:
        raise IllegalConfiguration(f"scale={scale}: it must be above zero.")
    generator = torch.Generator().manual_seed(seed)
    blocks = block_structure(model, partition)
    values = tensors_of(model) if state is None else state
    state = {name: tensor.detach().clone() for name, tensor in values.items()}
    moved = False
    for name, own in blocks.items():
        if only not in (None, name):
            continue
        value = state[name]
        noise = torch.randn(value.shape, generator=generator, dtype=torch.float64).to(value)
        on = noise - own.off(noise, "both")
        free = on - own.mean(on, "receiving", "sending", "shared")
        length = float(torch.linalg.vector_norm(free))
        if own.is_buffer or length <= 1e-9 * float(torch.linalg.vector_norm(noise)):
            continue
        state[name] = value + free * (scale * float(torch.linalg.vector_norm(value)) / length)
        moved = True
    if not moved:
        raise IllegalConfiguration(
            "no tensor has blocks of two units or more on both of its sides, so that the cloning manifold of this "
            "partition has only block-constant weights."
        )
    return state
