"""The networks of the studies, in any size, with or without norms and dropout.

MLP, ConvNet, ResNet and ViT as in Joudaki et al. (2025), arXiv 2510.00304, appendix B: a norm before each activation
(in the ViT before attention and MLP), dropout behind it. ``head`` is the last layer of each. Deviations: attention
weights have no dropout of their own, only what attention puts out; the ViT takes the mean over its tokens.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["MINI", "NARROW", "NETWORKS", "NORMS", "PUBLISHED", "ConvNet", "Perceptron", "ResNet", "ViT", "build"]

NORMS = ("none", "batch", "layer")
Sizes = Mapping[str, Mapping[str, Any]]

MINI: Sizes = {
    "mlp": {"hidden": [64, 64, 64]},
    "convnet": {"channels": [16, 32], "hidden": 64},
    "resnet": {"width": 8, "blocks": [1, 1]},
    "vit": {"patch": 4, "width": 32, "depth": 2, "heads": 4, "ratio": 2},
}
NARROW: Sizes = {
    "mlp": {"hidden": [12, 12, 12]},
    "convnet": {"channels": [4, 6], "hidden": 12},
    "resnet": {"width": 4, "blocks": [1]},
    "vit": {"patch": 4, "width": 8, "depth": 1, "heads": 2, "ratio": 2},
}
"""Too small for what they have to learn, so that a clone which leaves has something to gain."""
PUBLISHED: Sizes = {
    "mlp": {"hidden": [128] * 5},
    "convnet": {"channels": [64, 128, 256], "hidden": 512},
    "resnet": {"width": 64, "blocks": [2, 2, 2, 2]},
    "vit": {"patch": 8, "width": 384, "depth": 6, "heads": 6, "ratio": 4},
}


def _flat_norm(kind: str, width: int) -> list[nn.Module]:
    return {"none": [], "batch": [nn.BatchNorm1d(width)], "layer": [nn.LayerNorm(width)]}[kind]


def _image_norm(kind: str, width: int) -> nn.Module:
    if kind == "none":
        return nn.Identity()
    return nn.BatchNorm2d(width) if kind == "batch" else nn.GroupNorm(1, width)


class TokenBatchNorm(nn.BatchNorm1d):
    """Batch norm of each dimension of a token, over examples and tokens."""

    def forward(self, x: Tensor) -> Tensor:
        """``[B, T, D]`` to the same."""
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


def _token_norm(kind: str, width: int) -> nn.Module:
    if kind == "none":
        return nn.Identity()
    return TokenBatchNorm(width) if kind == "batch" else nn.LayerNorm(width)


class Perceptron(nn.Module):
    """Linear layers, each with norm, ReLU and dropout behind it."""

    def __init__(
        self, shape: Sequence[int], num_outputs: int, norm: str, dropout: float, hidden: Sequence[int]
    ) -> None:
        super().__init__()
        widths = [shape[0] * shape[1] * shape[2], *hidden]
        layers: list[nn.Module] = [nn.Flatten()]
        for before, width in itertools.pairwise(widths):
            layers += [nn.Linear(before, width), *_flat_norm(norm, width), nn.ReLU(), nn.Dropout(dropout)]
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(widths[-1], num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]`` to ``[B, num_outputs]``."""
        return self.head(self.body(x))


class ConvNet(nn.Module):
    """3 x 3 convolutions with norm, ReLU, 2 x 2 maxima and dropout; one hidden layer behind them."""

    def __init__(
        self,
        shape: Sequence[int],
        num_outputs: int,
        norm: str,
        dropout: float,
        channels: Sequence[int],
        hidden: int,
    ) -> None:
        super().__init__()
        widths = [shape[0], *channels]
        layers: list[nn.Module] = []
        for before, width in itertools.pairwise(widths):
            layers += [
                nn.Conv2d(before, width, 3, padding=1), _image_norm(norm, width), nn.ReLU(), nn.MaxPool2d(2),
                nn.Dropout(dropout),
            ]  # fmt: skip
        side = 2 ** len(channels)
        size = channels[-1] * (shape[1] // side) * (shape[2] // side)
        layers += [nn.Flatten(), nn.Linear(size, hidden), *_flat_norm(norm, hidden), nn.ReLU(), nn.Dropout(dropout)]
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(hidden, num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]`` to ``[B, num_outputs]``."""
        return self.head(self.body(x))


class Block(nn.Module):
    """Two convolutions and a way round them."""

    def __init__(self, before: int, width: int, stride: int, norm: str, dropout: float) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(before, width, 3, stride, 1), _image_norm(norm, width)
        self.dropout = nn.Dropout(dropout)
        self.conv2, self.norm2 = nn.Conv2d(width, width, 3, 1, 1), _image_norm(norm, width)
        self.short: nn.Module = nn.Identity()
        if stride != 1 or before != width:
            self.short = nn.Sequential(nn.Conv2d(before, width, 1, stride), _image_norm(norm, width))

    def forward(self, x: Tensor) -> Tensor:
        """``[B, before, H, W]`` to ``[B, width, H / stride, W / stride]``."""
        inner = self.dropout(F.relu(self.norm1(self.conv1(x))))
        return F.relu(self.norm2(self.conv2(inner)) + self.short(x))


class ResNet(nn.Module):
    """A residual network with ReLU behind each sum; its width doubles from stage to stage."""

    def __init__(
        self, shape: Sequence[int], num_outputs: int, norm: str, dropout: float, width: int, blocks: Sequence[int]
    ) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(shape[0], width, 3, 1, 1), _image_norm(norm, width)
        layers, before = [], width
        for stage, count in enumerate(blocks):
            for number in range(count):
                now = width * 2**stage
                layers.append(Block(before, now, 2 if stage and not number else 1, norm, dropout))
                before = now
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(before, num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]`` to ``[B, num_outputs]``."""
        return self.head(self.layers(F.relu(self.norm(self.stem(x)))).mean((2, 3)))


class Attention(nn.Module):
    """Self-attention with one matrix for queries, keys and values of all heads."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.dims = width // heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, T, D]`` to the same."""
        batch, tokens, _ = x.shape
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, -1, self.dims).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.proj(mixed.transpose(1, 2).reshape(batch, tokens, -1))


class TransformerBlock(nn.Module):
    """Attention and an MLP, each behind a norm and added to what came in."""

    def __init__(self, width: int, heads: int, hidden: int, norm: str, dropout: float) -> None:
        super().__init__()
        self.norm1, self.attn = _token_norm(norm, width), Attention(width, heads)
        self.norm2, self.fc1, self.fc2 = _token_norm(norm, width), nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.dropout1, self.dropout2 = nn.Dropout(dropout), nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, T, D]`` to the same."""
        x = x + self.dropout1(self.attn(self.norm1(x)))
        return x + self.fc2(self.dropout2(F.gelu(self.fc1(self.norm2(x)))))


class ViT(nn.Module):
    """A transformer on patches."""

    def __init__(
        self,
        shape: Sequence[int],
        num_outputs: int,
        norm: str,
        dropout: float,
        patch: int,
        width: int,
        depth: int,
        heads: int,
        ratio: int,
    ) -> None:
        super().__init__()
        self.patch = nn.Conv2d(shape[0], width, patch, patch)
        tokens = (shape[1] // patch) * (shape[2] // patch)
        self.position = nn.Parameter(torch.randn(1, tokens, width) * 0.02)
        self.blocks = nn.Sequential(
            *(TransformerBlock(width, heads, ratio * width, norm, dropout) for _ in range(depth))
        )
        self.norm = _token_norm(norm, width)
        self.head = nn.Linear(width, num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]`` to ``[B, num_outputs]``."""
        x = self.patch(x).flatten(2).transpose(1, 2) + self.position
        return self.head(self.norm(self.blocks(x)).mean(1))


NETWORKS: Mapping[str, type[nn.Module]] = {"mlp": Perceptron, "convnet": ConvNet, "resnet": ResNet, "vit": ViT}
TITLES = {"mlp": "MLP", "convnet": "ConvNet", "resnet": "ResNet", "vit": "ViT"}


def build(network: str, sizes: Sizes, shape: Sequence[int], num_outputs: int, *, norm: str, dropout: float) -> Any:
    """A fresh network, drawn from PyTorch's global random state.

    Args:
        network: One of ``NETWORKS``.
        sizes: Name to its sizes.
        shape: Of an image, ``[C, H, W]``.
        num_outputs: Number of logits.
        norm: One of ``NORMS``; ``"layer"`` is a norm over channels and places for images.
        dropout: Rate; the modules are there at 0, too.
    """
    return NETWORKS[network](shape, num_outputs, norm, dropout, **sizes[network])
