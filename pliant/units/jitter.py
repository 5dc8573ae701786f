"""Generic parameters: random draws that leave no accidental symmetry.

A freshly initialised network is blind to mistakes: constant biases, gammas and running statistics permute for
free, and a zero-initialised branch is invisible. Every check therefore runs on a state in which every parameter and
buffer is a random draw (positive for variances and other non-negative buffers).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["jittered"]


def jittered(
    model: nn.Module, *, seed: int, dtype: torch.dtype | None = None, keep_large: bool = False
) -> dict[str, Tensor]:
    """A random state for every floating-point parameter and buffer, under every one of its names.

    Args:
        model: The module; it is not changed.
        seed: Seed of the draws; the global random state is untouched.
        dtype: Floating-point type of the result; each tensor's own if ``None``.
        keep_large: Take large matrices as they are where their entries look random (writing hundreds of millions of
            numbers takes seconds). The result then shares their memory.

    Returns:
        Name to tensor, of the same shape and device: matrices scaled by the square root of their fan-in, vectors
        around one half with spread, non-negative buffers in [0.5, 1.5]. Integer buffers are copied.
    """
    generator = torch.Generator().manual_seed(seed)
    made: dict[int, Tensor] = {}
    result: dict[str, Tensor] = {}
    buffers = {id(tensor) for tensor in model.buffers()}
    everything = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    for name, tensor in everything:
        if id(tensor) not in made:
            if keep_large and tensor.numel() > _BLOCK and _looks_random(tensor.detach()):
                made[id(tensor)] = tensor.detach()
            else:
                made[id(tensor)] = _draw(tensor.detach(), id(tensor) in buffers, generator, dtype)
        result[name] = made[id(tensor)]
    return result


def _draw(tensor: Tensor, is_buffer: bool, generator: torch.Generator, dtype: torch.dtype | None) -> Tensor:
    if not tensor.dtype.is_floating_point:
        return tensor.clone()
    target = dtype or tensor.dtype
    if tensor.ndim <= 1:
        uniform = torch.rand(tensor.shape, generator=generator, dtype=torch.float64)
        drawn = 0.5 + uniform if is_buffer else 0.25 + uniform * torch.sign(uniform - 0.2)
    elif is_buffer:  # masks, tables of angles: their values carry meaning
        return tensor.to(target).clone()
    elif tensor.numel() <= _BLOCK:
        fan_in = max(tensor[0].numel(), 1)
        drawn = torch.randn(tensor.shape, generator=generator, dtype=torch.float64) / fan_in**0.5
    else:
        drawn = _repeated(tensor, generator, target)
    return drawn.to(device=tensor.device, dtype=target)


_BLOCK = 1_000_003  # a prime, so that no two rows or columns of a usual size begin at the same place


def _looks_random(tensor: Tensor) -> bool:
    """Whether hardly two of some thousand entries are equal, and none is out of proportion."""
    if tensor.dtype not in (torch.float32, torch.float64) or tensor.ndim < 2:
        return False
    some = tensor.flatten()[:: tensor.numel() // 4099] if tensor.is_contiguous() else tensor.new_zeros(2)
    size = some.abs()
    return bool(len(set(some.tolist())) > 0.99 * some.numel() and size.max() < 100 * size.mean())


def _repeated(tensor: Tensor, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
    """A large matrix from one block of random numbers: drawing each of a hundred million takes seconds."""
    block = torch.rand(_BLOCK, generator=generator, dtype=torch.float32).sub_(0.5)
    block.mul_((12 / max(tensor[0].numel(), 1)) ** 0.5)
    return block.to(dtype).repeat(-(-tensor.numel() // _BLOCK))[: tensor.numel()].view(tensor.shape)
