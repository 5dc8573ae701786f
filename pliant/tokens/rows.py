"""New values for the rows of some tokens, written by the one writer."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from pliant.edit import Editor
from pliant.sharded import whole
from pliant.tokens.tables import TokenTable

__all__ = ["RowInit", "write_rows"]

RowInit = Literal["mean", "init"]
"""Where fresh rows come from: the mean of other rows and noise, or the tensor's own initial distribution."""


def write_rows(
    edit: Editor, table: TokenTable, chosen: Tensor, like: Tensor, init: RowInit, noise_scale: float, reason: str
) -> tuple[str, ...]:
    r"""Give the rows of some tokens new values, in the embedding and in the output layer; their moments begin anew.

    .. math:: e_t \leftarrow \bar e + \sigma\, s \odot \xi_t, \qquad \xi_t \sim N(0, 1)

    with the mean :math:`\bar e` and the standard deviation :math:`s`, dimension by dimension, of the rows ``like``.

    Args:
        edit: The writer.
        table: Where the rows are.
        chosen: Which tokens, bool ``[tokens]``; the padding row is left alone.
        like: The tokens whose rows the mean is taken of, bool ``[tokens]``; all, if it is none.
        init: ``"mean"``, or ``"init"`` for draws from each tensor's initial distribution.
        noise_scale: :math:`\sigma`; an output bias gets no noise.
        reason: For the event log.

    Returns:
        The names of the tensors that were written: those that an optimizer trains.
    """
    written = []
    for name in (table.weight, table.head, table.bias):
        if not name or name not in edit.owners or not edit.tensors[name].requires_grad:
            continue
        tensor, rows = edit.tensors[name], chosen
        if name == table.weight and table.padding is not None:
            rows = chosen & (torch.arange(len(chosen), device=chosen.device) != table.padding)
        mask = rows.view(-1, *[1] * (tensor.ndim - 1)).expand(tensor.shape)
        values = "init" if init == "init" else _around_the_mean(edit, name, like, noise_scale)
        edit.reset_weights(name, mask, to=values, reason=reason)  # type: ignore[arg-type]
        written.append(name)
    return tuple(written)


def _around_the_mean(edit: Editor, name: str, like: Tensor, noise_scale: float) -> Tensor:
    with torch.no_grad():
        values = edit.writer.whole(name)
        wide = values.to(torch.promote_types(values.dtype, torch.float32))
        weights = torch.where(like.any(), like, torch.ones_like(like)).to(wide)
        weights = weights / weights.sum()
        mean = weights @ wide
        fresh = mean.expand(wide.shape)
        if noise_scale and values.ndim > 1:
            deviation = (weights @ (wide - mean).square()).sqrt()
            fresh = fresh + noise_scale * deviation * whole(edit.draw_normal(edit.tensors[name]))
        return fresh.to(values.dtype)
