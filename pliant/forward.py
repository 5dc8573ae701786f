"""Forward passes of Pliant's own: nobody records them, and they leave nothing behind."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pliant.errors import IllegalConfiguration
from pliant.quiet import unrecorded
from pliant.sharded import reshard, sharded_modules
from pliant.units.call import call_with
from pliant.units.export import Inputs, as_call, canonical_names, model_outputs, plain_attention, training_mode
from pliant.units.several import joined

__all__ = ["call", "outputs", "relative_change", "untouched"]


def call(
    model: nn.Module, inputs: Inputs, params: Mapping[str, Tensor] | None = None, *, training: bool = False
) -> Any:
    """Run a model without any trace: no listener hears it, no buffer changes, the random state and modes are restored.

    Gradients follow the surrounding ``torch.no_grad()`` or ``torch.enable_grad()``.

    Args:
        model: The model.
        inputs: A tensor, a tuple of positional inputs, or a mapping of keyword inputs; for several modules, a mapping
            from their names to the inputs of each.
        params: Parameters and buffers by canonical name to be used instead of the model's own; any subset.
        training: Whether the model runs in training mode (batch norm then uses the batch, dropout drops).

    Returns:
        What the model returns.

    Raises:
        IllegalConfiguration: If ``params`` names a tensor that the model does not have.

    Example:
        >>> model = torch.nn.Linear(2, 1)
        >>> call(model, torch.ones(3, 2), {"weight": torch.zeros(1, 2), "bias": torch.ones(1)})
        tensor([[1.],
                [1.],
                [1.]])
    """
    chosen = dict(params or {})
    if unknown := set(chosen) - set(canonical_names(model).values()):
        raise IllegalConfiguration(
            f"{type(model).__name__} has no parameter or buffer {sorted(unknown)[0]!r}; known are canonical names, the "
            "first of a shared tensor."
        )
    buffers = {name: buffer.detach().clone() for name, buffer in model.named_buffers()}
    model, inputs = joined(model, inputs)
    args, kwargs = as_call(inputs)
    with untouched(model, training):
        try:
            return call_with(model, {**buffers, **chosen}, args, kwargs)
        finally:
            if not torch.is_grad_enabled():  # no backward pass will free what the forward has gathered
                reshard(sharded_modules(model))


@contextlib.contextmanager
def untouched(model: nn.Module, training: bool | None) -> Iterator[None]:
    """Forward passes inside are not recorded; modes and the random state are restored after them.

    Parameters and buffers are not: what runs inside uses other ones, see :func:`pliant.units.call.call_with`.

    Args:
        model: The model that runs.
        training: The mode in which it runs; ``None`` leaves every module in its own.
    """
    devices = {tensor.device for tensor in model.parameters() if tensor.device.type != "cpu"}
    kind = next(iter(devices)).type if devices else "cuda"
    mode = contextlib.nullcontext() if training is None else training_mode(model, training)
    with (
        unrecorded(),
        mode,
        plain_attention(),
        torch.random.fork_rng(devices, device_type=kind),
        _uncompiled(),
    ):
        yield


def outputs(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    """The floating-point outputs of a model in evaluation mode, without gradients; see :func:`call`."""
    with torch.no_grad():
        result = call(model, inputs)
    return [leaf.detach().clone() for leaf in model_outputs(result) if leaf.is_floating_point()]


def relative_change(before: list[Tensor], after: list[Tensor]) -> Tensor:
    """Largest change of any output, relative to the largest absolute value of that output before.

    Returns:
        A scalar, float32, on the outputs' device.
    """
    changes = [
        ((b - a).abs().max() / a.abs().max().clamp(min=torch.finfo(a.dtype).tiny)).float()
        for a, b in zip(before, after, strict=True)
        if a.numel()
    ]
    if not changes:
        raise IllegalConfiguration("the model has no floating-point output, so no change can be measured on it.")
    return torch.stack(changes).max()


@contextlib.contextmanager
def _uncompiled() -> Iterator[None]:
    """A compiled module runs eagerly: another mode or other tensors would make it compile again."""
    if "torch._dynamo" not in sys.modules:
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield
