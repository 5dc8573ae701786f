"""The networks that pathologies are planted in, with something to learn: half of them to fit thresholds, half to judge.

No network of the second half is one of the first: the first has activation functions as modules and PyTorch's own
encoder, the second has functional ones, batch norm, attention of its own, and a GPT-2 of ``transformers``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["NETWORKS", "Network"]

CLASSES = 8
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "gelu": F.gelu, "tanh": torch.tanh}
MODULES: dict[str, Callable[[], nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU, "tanh": nn.Tanh}


@dataclass(frozen=True)
class Network:
    """A network, its data, and where its outputs are made.

    Attributes:
        name: What it is called.
        half: ``"fit"`` or ``"judge"``.
        make: Activation function to a network.
        data: Generator and size to a batch.
        head: Name of the module that makes the outputs.
    """

    name: str
    half: str
    make: Callable[[str], nn.Module]
    data: Callable[[torch.Generator, int], Any]
    head: str


def vectors(generator: torch.Generator, size: int) -> tuple[Tensor, Tensor]:
    """Points around the corners of a simplex, with noise."""
    corners = torch.randn(CLASSES, 24, generator=torch.Generator().manual_seed(0))
    labels = torch.randint(CLASSES, (size,), generator=generator)
    return corners[labels] + 1.2 * torch.randn(size, 24, generator=generator), labels


def images(generator: torch.Generator, size: int) -> tuple[Tensor, Tensor]:
    """Patterns under noise, shifted by a few pixels."""
    patterns = torch.randn(CLASSES, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    labels = torch.randint(CLASSES, (size,), generator=generator)
    shifts = torch.randint(-1, 2, (size,), generator=generator)
    shown = torch.stack([patterns[label].roll(int(s), -1) for label, s in zip(labels, shifts, strict=True)])
    return shown + torch.randn(size, 3, 8, 8, generator=generator), labels


def text(generator: torch.Generator, size: int) -> dict[str, Tensor]:
    """Words of a Markov chain."""
    table = torch.randn(24, 24, generator=torch.Generator().manual_seed(2)).mul(2).softmax(-1)
    ids = [torch.randint(24, (size,), generator=generator)]
    for _ in range(15):
        ids.append(torch.multinomial(table[ids[-1]], 1, generator=generator).squeeze(-1))
    rows = torch.stack(ids, -1)
    return {"input_ids": rows, "labels": rows}


def mlp(activation: str) -> nn.Module:
    """Two hidden layers of 64."""
    act = MODULES[activation]
    return nn.Sequential(nn.Linear(24, 64), act(), nn.Linear(64, 64), act(), nn.Linear(64, CLASSES))


def convnet(activation: str) -> nn.Module:
    """Two convolutions with group norm, pooled and flattened into a linear layer."""
    act = MODULES[activation]
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.GroupNorm(1, 32), act(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1), nn.GroupNorm(1, 64), act(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(256, 64), nn.LayerNorm(64), act(), nn.Linear(64, CLASSES),
    )  # fmt: skip


class Encoder(nn.Module):
    """PyTorch's own encoder over patches."""

    def __init__(self, activation: str) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 32, 2, 2)
        layer = nn.TransformerEncoderLayer(32, 4, 64, 0.1, ACTIVATIONS[activation], batch_first=True)
        self.encoder, self.head = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(32, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Classes of an image."""
        return self.head(self.encoder(self.embed(x).flatten(2).transpose(1, 2)).mean(1))


class FunctionalMLP(nn.Module):
    """Three hidden layers, activations as functions."""

    def __init__(self, activation: str) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(24, 96), nn.Linear(96, 64), nn.Linear(64, 64)
        self.head, self.act = nn.Linear(64, CLASSES), ACTIVATIONS[activation]

    def forward(self, x: Tensor) -> Tensor:
        """Classes of a vector."""
        x = F.dropout(self.act(self.fc1(x)), 0.1, self.training)
        return self.head(self.act(self.fc3(self.act(self.fc2(x)))))


class FunctionalConvNet(nn.Module):
    """Batch norm, strides, activations as functions, an average in the end."""

    def __init__(self, activation: str) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(3, 48, 3, padding=1, bias=False), nn.BatchNorm2d(48)
        self.conv2, self.norm2 = nn.Conv2d(48, 64, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(64)
        self.fc, self.head, self.act = nn.Linear(64, 80), nn.Linear(80, CLASSES), ACTIVATIONS[activation]

    def forward(self, x: Tensor) -> Tensor:
        """Classes of an image."""
        x = self.act(self.norm2(self.conv2(self.act(self.norm1(self.conv1(x))))))
        return self.head(self.act(self.fc(x.mean((2, 3)))))


class Block(nn.Module):
    """A pre-norm block with one fused matrix for queries, keys and values."""

    def __init__(self, width: int, hidden: int, activation: str) -> None:
        super().__init__()
        self.norm1, self.qkv, self.proj = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.norm2, self.fc1, self.fc2 = nn.LayerNorm(width), nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.act = ACTIVATIONS[activation]

    def forward(self, x: Tensor) -> Tensor:
        """Tokens to tokens."""
        batch, steps, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).reshape(batch, steps, 3, 4, width // 4).permute(2, 0, 3, 1, 4).unbind(0)
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, steps, width))
        return x + self.fc2(self.act(self.fc1(self.norm2(x))))


class ViT(nn.Module):
    """A vision transformer of three blocks."""

    def __init__(self, activation: str) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 48, 2, 2)
        self.blocks = nn.Sequential(*(Block(48, 96, activation) for _ in range(3)))
        self.norm, self.head = nn.LayerNorm(48), nn.Linear(48, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Classes of an image."""
        return self.head(self.norm(self.blocks(self.patch(x).flatten(2).transpose(1, 2))).mean(1))


def gpt2(activation: str) -> nn.Module:
    """A GPT-2 of two layers; its GELU is written out in eight operations."""
    from transformers import GPT2Config, GPT2LMHeadModel

    name = {"gelu": "gelu_new", "relu": "relu", "tanh": "tanh"}[activation]
    config = GPT2Config(
        n_layer=2, n_head=4, n_embd=48, n_inner=128, vocab_size=24, n_positions=16, bos_token_id=1, eos_token_id=2,
        activation_function=name, tie_word_embeddings=False, loss_type="ForCausalLM",
    )  # fmt: skip
    return GPT2LMHeadModel(config)


NETWORKS = (
    Network("mlp", "fit", mlp, vectors, "4"),
    Network("convnet", "fit", convnet, images, "12"),
    Network("encoder", "fit", Encoder, images, "head"),
    Network("mlp_functional", "judge", FunctionalMLP, vectors, "head"),
    Network("convnet_batch_norm", "judge", FunctionalConvNet, images, "head"),
    Network("vit", "judge", ViT, images, "head"),
    Network("gpt2", "judge", gpt2, text, "lm_head"),
)
