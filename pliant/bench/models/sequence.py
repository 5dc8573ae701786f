"""Networks that predict the next symbol at every place of a passage: a small transformer, and a recurrent one."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pliant.errors import IllegalConfiguration

__all__ = ["CharGRU", "CharTransformer", "TransformerBlock"]


@final
class TransformerBlock(nn.Module):
    """Self-attention and a layer of units, each behind a layer norm and round a shortcut.

    Args:
        width: of the residual stream.
        heads: attention heads; divide ``width``.
        hidden: units of the layer.
        causal: whether a place sees itself and what came before alone.
        activation: of the units; default: ReLU.
    """

    def __init__(
        self, width: int, heads: int, hidden: int, *, causal: bool = True, activation: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.activation = nn.ReLU() if activation is None else activation
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.mix = nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """``[B, T, width] -> [B, T, width]``."""
        seen = self.norm_1(x_BTD)
        query, key, value = (
            layer(seen).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        read = F.scaled_dot_product_attention(query, key, value, is_causal=self.causal)
        x_BTD = x_BTD + self.mix(read.transpose(1, 2).flatten(-2))
        added: Tensor = self.down(self.activation(self.up(self.norm_2(x_BTD))))
        return x_BTD + added


@final
class CharTransformer(nn.Module):
    """A decoder of transformer blocks with learned positions.

    Args:
        num_inputs: symbols that may occur.
        num_outputs: symbols that may be predicted.
        width: of the residual stream.
        heads: attention heads.
        hidden: units of the ReLU layer in each block.
        layers: blocks.
        context: the longest passage.

    Shapes: int64 ``[B, T]`` with T at most ``context`` to logits ``[B, T, num_outputs]``.

    Raises:
        IllegalConfiguration: a size is not positive, or heads do not divide the width.

    >>> CharTransformer(97, 97)(torch.zeros(2, 5, dtype=torch.int64)).shape
    torch.Size([2, 5, 97])
    """

    def __init__(
        self,
        num_inputs: int,
        num_outputs: int,
        width: int = 32,
        heads: int = 2,
        hidden: int = 128,
        layers: int = 1,
        context: int = 32,
    ) -> None:
        super().__init__()
        if min(num_inputs, num_outputs, width, heads, hidden, layers, context) < 1 or width % heads:
            raise IllegalConfiguration(f"CharTransformer: positive sizes, and heads={heads} must divide width={width}")
        self.symbols, self.places = nn.Embedding(num_inputs, width), nn.Embedding(context, width)
        self.blocks = nn.ModuleList(TransformerBlock(width, heads, hidden) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, num_outputs)
        for table in (self.symbols, self.places):
            nn.init.normal_(table.weight, std=0.1)

    def forward(self, ids_BT: Tensor) -> Tensor:
        """Logits of the symbol that follows each place."""
        x_BTD = self.symbols(ids_BT) + self.places(torch.arange(ids_BT.shape[1], device=ids_BT.device))
        for block in self.blocks:
            x_BTD = block(x_BTD)
        logits: Tensor = self.head(self.norm(x_BTD))
        return logits


@final
class CharGRU(nn.Module):
    """An embedding, a gated recurrent layer, a ReLU layer and a head, at every place.

    Args:
        num_inputs: symbols that may occur.
        num_outputs: symbols that may be predicted.
        embedding: width of the embedding.
        width: units of the recurrent layer.
        hidden: units of the ReLU layer.

    Shapes: int64 ``[B, T]`` to logits ``[B, T, num_outputs]``.

    Raises:
        IllegalConfiguration: a size is not positive.

    >>> CharGRU(97, 97)(torch.zeros(2, 5, dtype=torch.int64)).shape
    torch.Size([2, 5, 97])
    """

    def __init__(
        self, num_inputs: int, num_outputs: int, embedding: int = 32, width: int = 64, hidden: int = 128
    ) -> None:
        super().__init__()
        if min(num_inputs, num_outputs, embedding, width, hidden) < 1:
            raise IllegalConfiguration("CharGRU: all sizes must be positive")
        self.symbols = nn.Embedding(num_inputs, embedding)
        self.recurrent = nn.GRU(embedding, width, batch_first=True)
        self.up, self.head = nn.Linear(width, hidden), nn.Linear(hidden, num_outputs)

    def forward(self, ids_BT: Tensor) -> Tensor:
        """Logits of the symbol that follows each place."""
        steps, _ = self.recurrent(self.symbols(ids_BT))
        logits: Tensor = self.head(F.relu(self.up(steps)))
        return logits
