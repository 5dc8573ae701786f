"""Which rows of an embedding training looks up: a count per row, and nothing else."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

import torch
from torch import Tensor, nn

from pliant import quiet
from pliant.errors import IllegalConfiguration

__all__ = ["RowCounter"]


class RowCounter:
    """Counts the indices that an embedding is given in training.

    Forwards in evaluation mode, without gradients, of Pliant's own, and those that a checkpoint runs again in its
    backward pass are not counted. Inside a compiled model the count stays part of the graph.

    Args:
        module: The embedding, called with integer indices.
        into: Where the counts are, int64 ``[rows]``; looked up at every forward, so that a loaded state is found.
        key: Under which name.
    """

    def __init__(self, module: nn.Module, into: MutableMapping[str, Tensor], key: str) -> None:
        self._into, self._key = into, key
        self._hook = module.register_forward_pre_hook(self._hear, with_kwargs=True)

    def _hear(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not module.training or not torch.is_grad_enabled() or quiet.depth:
            return
        if not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1:
            return
        indices = (args[0] if args else kwargs["input"]).detach().reshape(-1).long()
        counts = self._into[self._key]
        if len(counts) != module.weight.shape[0]:
            raise IllegalConfiguration(
                f"{self._key!r} had {len(counts)} rows when pliant was attached and has {module.weight.shape[0]} now: "
                "state = handle.state_dict(), handle.detach(), pliant.tokens.grow_vocabulary(model, optimizer, "
                "num_tokens), attach again, and load the state."
            )
        counts.index_add_(0, indices, torch.ones_like(indices))

    def remove(self) -> None:
        """Remove the hook."""
        self._hook.remove()
