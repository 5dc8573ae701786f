"""The convolutional network of Continual ImageNet, at any size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, final

from torch import Tensor, nn

from pliant.errors import IllegalConfiguration

__all__ = ["ConvNet"]


@final
class ConvNet(nn.Module):
    """Convolutions, each with ReLU and 2 x 2 max-pooling, then linear layers with ReLU between them.

    With its defaults: 3 -> 32 (5 x 5) -> 64 (3 x 3) -> 128 (3 x 3), 512 -> 128 -> 128 -> outputs, no padding, and
    PyTorch's own initialisation; 177,218 parameters for two outputs.

    Args:
        num_inputs: values per example; must be those of ``image``.
        num_outputs: logits per example.
        channels: output channels of the convolutions.
        kernels: their kernel sizes, one each.
        hidden: widths of the hidden linear layers; may be empty.
        image: channels, height and width.

    Attributes:
        new_head: how the output layer starts where a stream asks for a new one: with zeros, as published.

    Shapes: ``[B, *image]`` or ``[B, num_inputs]`` ``-> [B, num_outputs]``; a stack has a leading axis of members.

    Raises:
        IllegalConfiguration: sizes that do not fit, or an image that is too small for the convolutions.

    Source: the network of Continual ImageNet, Dohare et al. (2024), Nature 632, 768-774.

    >>> model = ConvNet(3 * 32 * 32, 2)
    >>> sum(parameter.numel() for parameter in model.parameters())
    177218
    """

    new_head: ClassVar[str] = "zero"

    def __init__(
        self,
        num_inputs: int,
        num_outputs: int,
        channels: Sequence[int] = (32, 64, 128),
        kernels: Sequence[int] = (5, 3, 3),
        hidden: Sequence[int] = (128, 128),
        image: Sequence[int] = (3, 32, 32),
    ) -> None:
        super().__init__()
        depth, height, width = check_image("ConvNet", image, num_inputs)
        if not channels or len(channels) != len(kernels) or min(*channels, *kernels, *hidden, num_outputs) < 1:
            raise IllegalConfiguration(
                f"ConvNet: needs positive channels and as many kernels, got {tuple(channels)} and {tuple(kernels)}"
            )
        self.image = (depth, height, width)
        layers: list[tuple[str, nn.Module]] = []
        for number, (size, kernel) in enumerate(zip(channels, kernels, strict=True)):
            height, width = (height - kernel + 1) // 2, (width - kernel + 1) // 2
            if min(height, width) < 1:
                raise IllegalConfiguration(
                    f"ConvNet: images of {self.image} are too small for kernels {tuple(kernels)}"
                )
            layers += [
                (f"conv_{number}", nn.Conv2d(depth, size, kernel)),
                (f"relu_{number}", nn.ReLU()),
                (f"pool_{number}", nn.MaxPool2d(2)),
            ]
            depth = size
        layers.append(("flatten", nn.Flatten()))
        size = depth * height * width
        for number, wide in enumerate(hidden):
            layers += [(f"hidden_{number}", nn.Linear(size, wide)), (f"hidden_relu_{number}", nn.ReLU())]
            size = wide
        for name, layer in layers:
            self.add_module(name, layer)
        self.head = nn.Linear(size, num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Apply all layers in order."""
        x = as_images(x, self.image)
        for layer in self.children():
            x = layer(x)
        return x


def check_image(model: str, image: Sequence[int], num_inputs: int) -> tuple[int, int, int]:
    """Return channels, height and width.

    Raises:
        IllegalConfiguration: not three positive sizes, or not those of ``num_inputs`` values.
    """
    if len(image) != 3 or min(image) < 1 or math.prod(image) != num_inputs:
        raise IllegalConfiguration(
            f"{model}: image={tuple(image)} should be channels, height and width of {num_inputs} values; give the "
            "stream's own, for example image=(1, 28, 28)"
        )
    depth, height, width = image
    return depth, height, width


def as_images(x: Tensor, image: tuple[int, int, int]) -> Tensor:
    """Flat examples ``[..., C * H * W]`` as images ``[..., C, H, W]``; images stay as they are."""
    return x if tuple(x.shape[-3:]) == image else x.reshape(*x.shape[:-1], *image)
