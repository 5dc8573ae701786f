"""A network for rows of categorical entries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

from torch import Tensor, nn

from pliant.bench.models.mlp import MLP
from pliant.errors import IllegalConfiguration

__all__ = ["EmbeddingMLP"]


@final
class EmbeddingMLP(nn.Module):
    """Every entry is looked up in one table, and a multi-layer perceptron reads the vectors of a row side by side.

    Args:
        num_inputs: ids that may occur, of all fields together.
        num_outputs: outputs.
        num_fields: entries of a row.
        embedding: width of an entry's vector.
        hidden: widths of the hidden layers.

    Shapes: int64 ``[B, num_fields]`` to ``[B, num_outputs]``.

    Raises:
        IllegalConfiguration: a size is not positive.

    >>> import torch
    >>> EmbeddingMLP(1200, 1)(torch.zeros(3, 6, dtype=torch.int64)).shape
    torch.Size([3, 1])
    """

    def __init__(
        self,
        num_inputs: int,
        num_outputs: int,
        num_fields: int = 6,
        embedding: int = 8,
        hidden: Sequence[int] = (64, 64),
    ) -> None:
        super().__init__()
        if min(num_inputs, num_fields, embedding) < 1:
            raise IllegalConfiguration("EmbeddingMLP: num_inputs, num_fields and embedding must be positive")
        self.table = nn.Embedding(num_inputs, embedding)
        nn.init.normal_(self.table.weight, std=0.1)
        self.tower = MLP(num_fields * embedding, num_outputs, hidden)

    def forward(self, ids_BF: Tensor) -> Tensor:
        """Outputs of each row."""
        outputs: Tensor = self.tower(self.table(ids_BF).flatten(1))
        return outputs
