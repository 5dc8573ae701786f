"""Residual networks for small images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, final

from torch import Tensor, nn
from torch.nn import functional as F

from pliant.bench.models.convnet import as_images, check_image
from pliant.errors import IllegalConfiguration

__all__ = ["BasicBlock", "ResNet"]


@final
class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions with batch normalisation, and a shortcut that is projected where the size changes.

    Args:
        num_inputs: channels coming in.
        num_outputs: channels going out.
        stride: of the first convolution and of the shortcut.
    """

    def __init__(self, num_inputs: int, num_outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(num_inputs, num_outputs, 3, stride=stride, padding=1)
        self.bn1 = nn.BatchNorm2d(num_outputs)
        self.conv2 = nn.Conv2d(num_outputs, num_outputs, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(num_outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or num_inputs != num_outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(num_inputs, num_outputs, 1, stride=stride), nn.BatchNorm2d(num_outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Residual branch and shortcut, added and rectified."""
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


@final
class ResNet(nn.Module):
    """ResNet-18 in its form for 32 x 32 images: 3 x 3 stem of stride 1, no max-pooling, a bias in every convolution.

    Each stage has twice the channels of the one before it, and half the resolution. Initialisation, as published:
    He normal for convolutions, ``N(0, 1 / fan_in)`` for the output layer, zero biases; :attr:`init` reproduces it.

    Args:
        num_inputs: values per example; must be those of ``image``.
        num_outputs: logits per example.
        width: channels of the first stage.
        blocks: blocks of each stage.
        image: channels, height and width.

    Shapes: ``[B, *image]`` or ``[B, num_inputs]`` ``-> [B, num_outputs]``; a stack has a leading axis of members.

    Raises:
        IllegalConfiguration: sizes that do not fit.

    Source: He et al. (2016), arXiv:1512.03385; the form for class-incremental CIFAR-100: Dohare et al. (2024), Nature
        632, 768-774.

    >>> import torch
    >>> model = ResNet(3 * 8 * 8, 5, width=4, blocks=(1, 1), image=(3, 8, 8))
    >>> model(torch.rand(2, 3, 8, 8)).shape
    torch.Size([2, 5])
    """

    init: ClassVar[Mapping[str, str]] = {"head.*": "lecun_normal", "*": "kaiming_normal"}

    def __init__(
        self,
        num_inputs: int,
        num_outputs: int,
        width: int = 64,
        blocks: Sequence[int] = (2, 2, 2, 2),
        image: Sequence[int] = (3, 32, 32),
    ) -> None:
        super().__init__()
        depth, height, side = check_image("ResNet", image, num_inputs)
        if not blocks or min(width, num_outputs, *blocks) < 1:
            raise IllegalConfiguration(f"ResNet: width={width} and blocks={tuple(blocks)} must be positive")
        self.image = (depth, height, side)
        self.conv = nn.Conv2d(depth, width, 3, padding=1)
        self.bn = nn.BatchNorm2d(width)
        stages: list[nn.Module] = []
        before = width
        for number, count in enumerate(blocks):
            size = width * 2**number
            for index in range(count):
                stages.append(BasicBlock(before, size, 2 if number > 0 and index == 0 else 1))
                before = size
        self.blocks = nn.Sequential(*stages)
        self.head = nn.Linear(before, num_outputs)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight, nonlinearity="linear" if module is self.head else "relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Stem, blocks, the mean over positions, and the output layer."""
        x = F.relu(self.bn(self.conv(as_images(x, self.image))))
        pooled: Tensor = self.blocks(x).mean((-2, -1))
        outputs: Tensor = self.head(pooled)
        return outputs
