"""A vision transformer, at any size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor, nn

from pliant.bench.models.convnet import as_images, check_image
from pliant.bench.models.sequence import TransformerBlock
from pliant.errors import IllegalConfiguration

__all__ = ["ViT"]


@final
class ViT(nn.Module):
    """Patches with learned places, blocks of attention and a GELU layer, and a head on the mean over all places.

    Args:
        num_inputs: values per example; must be those of ``image``.
        num_outputs: logits per example.
        image: channels, height and width.
        patch: side of a patch; divides height and width.
        width: of the residual stream.
        heads: attention heads; divide ``width``.
        hidden: units of the GELU layer in each block.
        layers: blocks.

    Shapes: ``[B, *image]`` or ``[B, num_inputs]`` ``-> [B, num_outputs]``.

    Raises:
        IllegalConfiguration: sizes that are not positive or do not fit.

    Source: Dosovitskiy et al. (2021), An image is worth 16x16 words; the mean in place of a class token, as in Beyer et
        al. (2022), Better plain ViT baselines for ImageNet-1k, arXiv:2205.01580.

    >>> ViT(64, 10, image=(1, 8, 8), patch=2, width=16, heads=2, hidden=32, layers=1)(torch.rand(5, 64)).shape
    torch.Size([5, 10])
    """

    def __init__(
        self,
        num_inputs: int,
        num_outputs: int,
        image: Sequence[int] = (3, 32, 32),
        patch: int = 4,
        width: int = 64,
        heads: int = 4,
        hidden: int = 128,
        layers: int = 4,
    ) -> None:
        super().__init__()
        depth, high, wide = self.image = check_image("ViT", image, num_inputs)
        if min(num_outputs, patch, width, heads, hidden, layers) < 1 or width % heads or high % patch or wide % patch:
            raise IllegalConfiguration(
                f"ViT: positive sizes; heads={heads} must divide width={width}, and patch={patch} {self.image}"
            )
        self.patches = nn.Conv2d(depth, width, patch, stride=patch)
        self.places = nn.Parameter(0.02 * torch.randn((high // patch) * (wide // patch), width))
        self.blocks = nn.ModuleList(
            TransformerBlock(width, heads, hidden, causal=False, activation=nn.GELU()) for _ in range(layers)
        )
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of each image."""
        x_BTD = self.patches(as_images(x, self.image)).flatten(2).transpose(1, 2) + self.places
        for block in self.blocks:
            x_BTD = block(x_BTD)
        logits: Tensor = self.head(self.norm(x_BTD).mean(1))
        return logits
