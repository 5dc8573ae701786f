"""Layers with one set of weights per member, side by side; each member's part is what its own layer would compute."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pliant.errors import IllegalConfiguration

__all__ = ["StackedBatchNorm", "StackedConv2d", "StackedLinear", "StackedParameterFree", "stack_layer", "stackable"]


def _stacked(tensors: Sequence[Tensor | None]) -> nn.Parameter | None:
    first = tensors[0]
    if first is None:
        return None
    return nn.Parameter(torch.stack([cast(Tensor, t).detach() for t in tensors]), requires_grad=first.requires_grad)


def _check_alike(name: str, layers: Sequence[nn.Module]) -> None:
    shapes = {tuple((key, tuple(value.shape)) for key, value in layer.state_dict().items()) for layer in layers}
    if len(shapes) != 1:
        raise IllegalConfiguration(f"{name}: members of different shape or bias: {sorted(map(str, shapes))}")


class _StackedLinearFunction(torch.autograd.Function):
    """y_SBO = x_SBI W_SOI^T + b_SO, with the weight gradient formed as ``nn.Linear`` forms it.

    Autograd of ``baddbmm`` computes (x^T dy)^T, whose sum has another order and whose layout must be copied; a
    single ``nn.Linear`` computes dy^T x. The latter is bitwise equal to single runs and saves the copy.
    """

    @staticmethod
    def forward(ctx: Any, x_SBI: Tensor, weight_SOI: Tensor, bias_SO: Tensor | None) -> Tensor:
        ctx.save_for_backward(x_SBI, weight_SOI)
        ctx.has_bias = bias_SO is not None
        if bias_SO is None:
            return torch.bmm(x_SBI, weight_SOI.mT)
        return torch.baddbmm(bias_SO.unsqueeze(1), x_SBI, weight_SOI.mT)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        (grad_SBO,) = grads
        x_SBI, weight_SOI = ctx.saved_tensors
        grad_x = torch.bmm(grad_SBO, weight_SOI) if ctx.needs_input_grad[0] else None
        grad_weight = torch.bmm(grad_SBO.mT, x_SBI) if ctx.needs_input_grad[1] else None
        grad_bias = grad_SBO.sum(1) if ctx.has_bias and ctx.needs_input_grad[2] else None
        return grad_x, grad_weight, grad_bias


@final
class StackedLinear(nn.Module):
    """S linear layers side by side.

    Args:
        layers: the single layers; all alike in shape, dtype and bias.

    Shapes: weight ``[S, O, I]``, bias ``[S, O]``; input ``[S, ..., I]``, output ``[S, ..., O]``. Member s of the
    output depends on member s of input and weights only.

    Raises:
        IllegalConfiguration: the layers differ in shape or bias.

    >>> layers = [nn.Linear(3, 2), nn.Linear(3, 2)]
    >>> x_SBI = torch.rand(2, 5, 3)
    >>> torch.allclose(StackedLinear(layers)(x_SBI)[1], layers[1](x_SBI[1]))
    True
    """

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        super().__init__()
        _check_alike("StackedLinear", layers)
        self.num_members = len(layers)
        self.in_features = layers[0].in_features
        self.out_features = layers[0].out_features
        self.weight = cast(nn.Parameter, _stacked([layer.weight for layer in layers]))
        self.bias = _stacked([layer.bias for layer in layers])

    def forward(self, x_SBI: Tensor) -> Tensor:
        """Apply each member's layer to its own input."""
        if x_SBI.ndim == 3:
            return cast(Tensor, _StackedLinearFunction.apply(x_SBI, self.weight, self.bias))  # type: ignore[no-untyped-call]
        if x_SBI.ndim < 3 or x_SBI.shape[0] != self.num_members:
            raise IllegalConfiguration(
                f"StackedLinear: input of shape {tuple(x_SBI.shape)} should be [{self.num_members}, batch, "
                f"{self.in_features}]"
            )
        y = _StackedLinearFunction.apply(  # type: ignore[no-untyped-call]
            x_SBI.flatten(1, -2), self.weight, self.bias
        )
        return cast(Tensor, y.unflatten(1, x_SBI.shape[1:-1]))

    def extra_repr(self) -> str:
        """Show the sizes, as ``nn.Linear`` does."""
        return (
            f"num_members={self.num_members}, in_features={self.in_features}, "
            f"out_features={self.out_features}, bias={self.bias is not None}"
        )


def _side_by_side(x_SBCHW: Tensor) -> Tensor:
    """Members as groups of channels: ``[S, B, C, ...]`` to ``[B, S * C, ...]``."""
    return x_SBCHW.transpose(0, 1).flatten(1, 2)


def _apart(y_BCHW: Tensor, num_members: int) -> Tensor:
    """The reverse: ``[B, S * C, ...]`` to ``[S, B, C, ...]``, a view."""
    return y_BCHW.view(y_BCHW.shape[0], num_members, -1, *y_BCHW.shape[2:]).transpose(0, 1)


@final
class StackedConv2d(nn.Module):
    """S convolutions side by side, computed as one grouped convolution.

    Args:
        layers: the single layers; all alike.

    Shapes: weight ``[S, O, I / groups, kH, kW]``, bias ``[S, O]``; input ``[S, B, I, H, W]``, output
    ``[S, B, O, H', W']``.

    Raises:
        IllegalConfiguration: the layers differ.

    >>> layers = [nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)]
    >>> x_SBCHW = torch.rand(2, 5, 3, 8, 8)
    >>> torch.allclose(StackedConv2d(layers)(x_SBCHW)[1], layers[1](x_SBCHW[1]), atol=1e-6)
    True
    """

    def __init__(self, layers: Sequence[nn.Conv2d]) -> None:
        super().__init__()
        _check_alike("StackedConv2d", layers)
        first = layers[0]
        if first.padding_mode != "zeros":
            raise IllegalConfiguration(f"StackedConv2d: padding_mode={first.padding_mode!r}; only 'zeros' is stacked")
        self.num_members = len(layers)
        self.stride, self.padding, self.dilation, self.groups = (
            first.stride,
            first.padding,
            first.dilation,
            first.groups,
        )
        self.weight = cast(nn.Parameter, _stacked([layer.weight for layer in layers]))
        self.bias = _stacked([layer.bias for layer in layers])

    def forward(self, x_SBCHW: Tensor) -> Tensor:
        """Apply each member's layer to its own input."""
        if x_SBCHW.ndim != 5 or x_SBCHW.shape[0] != self.num_members:
            raise IllegalConfiguration(
                f"StackedConv2d: input of shape {tuple(x_SBCHW.shape)} should be [{self.num_members}, batch, "
                "channels, height, width]"
            )
        bias = None if self.bias is None else self.bias.flatten()
        y = F.conv2d(
            _side_by_side(x_SBCHW),
            self.weight.flatten(0, 1),
            bias,
            self.stride,
            self.padding,
            self.dilation,
            self.groups * self.num_members,
        )
        return _apart(y, self.num_members)

    def extra_repr(self) -> str:
        """Show the sizes."""
        return f"num_members={self.num_members}, weight={tuple(self.weight.shape)}, bias={self.bias is not None}"


@final
class StackedBatchNorm(nn.modules.batchnorm._NormBase):
    """S batch normalisations side by side: every member has its own statistics.

    Args:
        layers: the single layers, ``nn.BatchNorm1d`` or ``nn.BatchNorm2d``; all alike.

    Shapes: weight, bias and running statistics ``[S, C]``; input and output ``[S, B, C]`` or ``[S, B, C, H, W]``.

    Raises:
        IllegalConfiguration: the layers differ.

    >>> layers = [nn.BatchNorm2d(3), nn.BatchNorm2d(3)]
    >>> x_SBCHW = torch.rand(2, 5, 3, 4, 4)
    >>> torch.allclose(StackedBatchNorm(layers)(x_SBCHW)[1], layers[1](x_SBCHW[1]), atol=1e-6)
    True
    """

    def __init__(self, layers: Sequence[nn.BatchNorm1d | nn.BatchNorm2d]) -> None:
        _check_alike("StackedBatchNorm", layers)
        first = layers[0]
        if first.track_running_stats and first.momentum is None:
            raise IllegalConfiguration("StackedBatchNorm: cumulative averages (momentum=None) are not stacked")
        super().__init__(first.num_features, first.eps, first.momentum, first.affine, first.track_running_stats)
        self.num_members = len(layers)
        if first.affine:
            self.weight = cast(nn.Parameter, _stacked([layer.weight for layer in layers]))
            self.bias = cast(nn.Parameter, _stacked([layer.bias for layer in layers]))
        for name, buffer in first.named_buffers(recurse=False):
            setattr(self, name, torch.stack([getattr(layer, name) for layer in layers]).to(buffer))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise each member by its own statistics."""
        if x.ndim < 3 or x.shape[0] != self.num_members:
            raise IllegalConfiguration(
                f"StackedBatchNorm: input of shape {tuple(x.shape)} should be [{self.num_members}, batch, channels, "
                "...]"
            )
        if self.training and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        mean, variance = self.running_mean, self.running_var
        y = F.batch_norm(
            _side_by_side(x),
            None if mean is None else mean.view(-1),
            None if variance is None else variance.view(-1),
            None if self.weight is None else self.weight.flatten(),
            None if self.bias is None else self.bias.flatten(),
            self.training or mean is None,
            self.momentum or 0.0,
            self.eps,
        )
        return _apart(y, self.num_members)


@final
class StackedParameterFree(nn.Module):
    """A layer without parameters that expects ``[B, ...]``, applied to every member: pooling, or ``nn.Flatten``.

    Args:
        layer: the single layer.
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """Members become part of the batch and come apart again."""
        y: Tensor = self.layer(x.flatten(0, 1))
        return y.view(*x.shape[:2], *y.shape[1:])


_STACKED: dict[type[nn.Module], Callable[[Sequence[Any]], nn.Module]] = {
    nn.Linear: StackedLinear,
    nn.Conv2d: StackedConv2d,
    nn.BatchNorm1d: StackedBatchNorm,
    nn.BatchNorm2d: StackedBatchNorm,
    **dict.fromkeys(
        (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.Flatten), lambda layers: StackedParameterFree(layers[0])
    ),
}


def stackable(module: nn.Module) -> bool:
    """Whether a layer has a stacked form."""
    return type(module) in _STACKED


def stack_layer(layers: Sequence[nn.Module]) -> nn.Module:
    """The stacked form of one layer of each member."""
    return _STACKED[type(layers[0])](layers)
