"""Which samples of a batch count: padded positions do not, and of very many only some are kept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pliant.errors import IllegalConfiguration
from pliant.units.group import Tap

__all__ = ["Masks", "kept_rows", "row_mask"]


class Masks:
    """The padding of a batch: of an encoder and of a decoder, where these differ.

    Args:
        model: The model.
        inputs: Its inputs; of a mapping, ``attention_mask`` and ``decoder_attention_mask`` are read.
        given: A mask ``[B, T]`` for everything instead, true where a position counts.
    """

    def __init__(self, model: nn.Module, inputs: Any, given: Tensor | None) -> None:
        if given is not None and (not isinstance(given, Tensor) or given.ndim != 2):
            raise IllegalConfiguration("mask must be a tensor of batch x positions, true where a position counts.")
        found = [given, given]
        if given is None and isinstance(inputs, Mapping):
            found = [_two_dimensional(inputs.get(name)) for name in ("attention_mask", "decoder_attention_mask")]
            both = any(str(name).startswith("decoder_") for name in inputs)
            if not both and not getattr(getattr(model, "config", None), "is_encoder_decoder", False):
                found[1] = found[0]
        self._plain, self._decoder = (None if mask is None else mask.detach().bool() for mask in found)

    def of(self, name: str) -> Tensor | None:
        """The mask for a group of this name."""
        return self._decoder if "decoder" in name.split(".") else self._plain

    def of_output(self) -> Tensor | None:
        """The mask for what the model returns."""
        return self._decoder


def _two_dimensional(value: Any) -> Tensor | None:
    return value if isinstance(value, Tensor) and value.ndim == 2 else None


def row_mask(lead: torch.Size, mask: Tensor | None) -> Tensor | None:
    """Which samples count, flattened, for a tensor whose other axes have the sizes ``lead``.

    Returns:
        Bool ``[prod(lead)]``, or ``None`` where the mask does not apply: another layout, a pooled sequence.

    Example:
        >>> row_mask(torch.Size([1, 3, 2]), torch.tensor([[True, True, False]]))
        tensor([ True,  True,  True,  True, False, False])
    """
    if mask is None:
        return None
    if lead[:2] == mask.shape:
        shaped = mask
    elif lead[:2] == mask.T.shape:
        shaped = mask.T
    elif len(lead) == 1 and lead[0] == mask.numel() and mask.shape[1] > 1:
        return mask.flatten()
    else:
        return None
    return shaped.reshape(*shaped.shape, *(1 for _ in lead[2:])).expand(lead).flatten()


def kept_rows(values: list[Tensor], tap: Tap, mask: Tensor | None, limit: int) -> Tensor:
    """The rows of the matrix of samples x units that are kept, as positions, in order.

    Args:
        values: The tapped tensors, one for each run of the module.
        tap: Where they come from.
        mask: The padding.
        limit: How many to keep at most; of more, a random choice that is always the same.
    """
    width, start, chosen = len(tap.table[0]), 0, []
    for value in values:
        lead = value.movedim(tap.dim, -1).shape[:-1]
        counts = row_mask(lead, mask)
        rows = torch.arange(lead.numel()) if counts is None else counts.cpu().nonzero().flatten()
        chosen.append((rows[:, None] * width + torch.arange(width)).flatten() + start)
        start += lead.numel() * width
    rows = torch.cat(chosen)
    if len(rows) > limit:
        generator = torch.Generator().manual_seed(len(rows))
        rows = rows[torch.randperm(len(rows), generator=generator)[:limit].sort().values]
    return rows
