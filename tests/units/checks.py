"""An independent permutation check: plain PyTorch, nothing of the package's own ``verify``."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from zoo_base import call

from pliant.units import TensorSlice


def generic_copy(model: nn.Module, seed: int = 0) -> nn.Module:
    """A float64 deep copy with random parameters and buffers (positive variances) and no dropout."""
    other = copy.deepcopy(model).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in other.parameters():
            scale = 1.0 if parameter.ndim < 2 else parameter[0].numel() ** -0.5
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * scale)
        for buffer in other.buffers():
            if buffer.is_floating_point():
                buffer.copy_(torch.rand(buffer.shape, generator=generator, dtype=torch.float64) + 0.5)
    if hasattr(other, "set_experts_implementation"):
        other.set_experts_implementation("eager")  # a loop over the experts; the grouped kernel has no float64
    for module in other.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(module, (nn.MultiheadAttention, nn.RNNBase)):
            module.dropout = 0.0
        for name, value in vars(module).items():  # rates that modules keep as numbers
            if (name == "rate" or "dropout" in name) and isinstance(value, float):
                setattr(module, name, 0.0)
    return other


class Wide(TorchFunctionMode):
    """Casts to float32 inside a model (norms, softmax, rotary angles) give float64."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        def wide(item: Any) -> Any:
            return torch.float64 if item is torch.float32 else item

        if func is Tensor.float:
            return args[0].double()
        return func(*map(wide, args), **{key: wide(value) for key, value in (kwargs or {}).items()})


def flat(output: Any) -> list[Tensor]:
    if isinstance(output, dict):  # of a Hugging Face output: what it was trained for, not its caches
        return [output[key] for key in ("loss", "logits") if output.get(key) is not None]
    return list(output) if isinstance(output, (tuple, list)) else [output]


def outputs(model: nn.Module, x: Any) -> list[Tensor]:
    """Outputs in both modes; running statistics are put back."""
    saved = {name: buffer.clone() for name, buffer in model.named_buffers()}
    result = []
    for mode in (False, True):
        model.train(mode)
        with torch.no_grad(), Wide():
            result.extend(item.clone() for item in flat(call(model, x)))
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                buffer.copy_(saved[name])
    return result


def permute_(model: nn.Module, pieces: Iterable[TensorSlice], order: Tensor) -> None:
    """Permute units in place: unit u becomes what unit ``order[u]`` was."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    with torch.no_grad():
        for piece in pieces:
            tensor, table = tensors[piece.name], torch.tensor(piece.table)
            tensor = tensor if piece.at is None else tensor.select(*piece.at)
            moved = tensor.movedim(piece.dim, 0)
            new = moved.clone()
            new[table.flatten()] = moved[table[order].flatten()]
            tensor.copy_(new.movedim(0, piece.dim))


def change(reference: list[Tensor], other: list[Tensor]) -> float:
    return max(float((a - b).abs().max() / a.abs().max()) for a, b in zip(reference, other, strict=True))


def derangement(size: int, seed: int = 3) -> Tensor:
    shuffled = torch.randperm(size, generator=torch.Generator().manual_seed(seed))
    order = torch.empty_like(shuffled)
    order[shuffled] = shuffled.roll(1)
    return order
