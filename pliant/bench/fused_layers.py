"""The layers of steps that are written by hand: they update at once, or let the updates of a block of steps wait."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, final

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pliant.bench.fused_updates import PlainSGD, Update

__all__ = ["LARGE", "LARGE_FIRST", "LONG", "Active", "Direct", "Layer", "Postponed", "PostponedFirst"]

LARGE_FIRST, LARGE = 32_768, 262_144
"""Weights of a layer, of one member, from which on it pays to let updates wait: the first layer, and the others."""

LONG = 16
"""Steps of a block from which on a transposed copy of a large layer's weights is worth the making."""

_SPLIT = 4
"""Parts of a large matrix that is multiplied with one vector."""


@final
class Active:
    """Where a vector of each member is not zero, found when it is first asked for.

    Args:
        act_S1I: the vectors. Behind a ReLU the gradient is zero wherever the activation is, so both share one of these.
    """

    __slots__ = ("_act_S1I", "_found")

    def __init__(self, act_S1I: Tensor) -> None:
        self._act_S1I = act_S1I
        self._found: tuple[Tensor, Tensor] | None = None

    def rows(self) -> tuple[Tensor, Tensor]:
        """Indices into all members' entries side by side, and where each member's begin."""
        if self._found is None:
            # NumPy finds them in a seventh of the time: it does not branch at every entry.
            there_SI = self._act_S1I.numpy().reshape(self._act_S1I.shape[0], -1) != 0
            starts = np.zeros(len(there_SI), dtype=np.int64)
            np.cumsum(there_SI[:-1].sum(1), out=starts[1:])
            self._found = torch.from_numpy(there_SI.reshape(-1).nonzero()[0]), torch.from_numpy(starts)
        return self._found


class Layer(Protocol):
    """What a layer does in a step; ``place`` is the number of the step in its block."""

    def begin(self, x_SRI: Tensor) -> None:
        """A block of steps begins, with these inputs of the first layer, those of all steps: R rows for each member."""

    def forward(self, act_SBI: Tensor, into_SBO: Tensor, place: int, active: Active) -> None:
        """Write the layer's outputs; ``active`` are its inputs that are not zero."""

    def backward(self, delta_SBO: Tensor, into_SBI: Tensor, place: int, active: Active) -> None:
        """Write the gradient with respect to the layer's inputs; called before :meth:`learn`.

        ``active`` are the outputs behind which the gradient may not be zero.
        """

    def learn(self, delta_SBO: Tensor, act_SBI: Tensor, place: int) -> None:
        """Update the layer, or note what is to be done."""

    def end(self) -> None:
        """The block ends: the weights must be what they should be."""


@final
class Direct:
    """Updates its weights in every step."""

    def __init__(
        self, index: int, weight: Tensor, bias: Tensor, updates: Sequence[tuple[slice | None, Update]]
    ) -> None:
        self.index, self.updates = index, updates
        self.weight, self.bias = weight, bias.unsqueeze(1)
        self.forward_product, self.backward_product = _product_of(weight), _product_back(weight)

    def begin(self, x_SRI: Tensor) -> None:
        """See :class:`Layer`."""

    def forward(self, act_SBI: Tensor, into_SBO: Tensor, place: int, active: Active) -> None:
        """See :class:`Layer`."""
        self.forward_product(self.bias, act_SBI, into_SBO)

    def backward(self, delta_SBO: Tensor, into_SBI: Tensor, place: int, active: Active) -> None:
        """See :class:`Layer`."""
        self.backward_product(delta_SBO, into_SBI, active)

    def learn(self, delta_SBO: Tensor, act_SBI: Tensor, place: int) -> None:
        """See :class:`Layer`."""
        for members, update in self.updates:
            if members is None:
                update.layer(self.index, delta_SBO, act_SBI)
            else:
                update.layer(self.index, delta_SBO[members], act_SBI[members])

    def end(self) -> None:
        """See :class:`Layer`."""


class Postponed:
    r"""Plain SGD in which the updates of a block of steps wait, and are done as one product at its end.

    With what has waited, ``D`` (gradients times step size) and ``H`` (inputs), the weights of a step are
    :math:`W - D^\top H`, so its outputs are :math:`x W^\top + b - (x H^\top + 1) D` and the gradient behind it is
    :math:`\delta W - (\delta D^\top) H`: the same step in another order of summation, which reads the weights where
    they would be read and written.

    In a long block of steps with one example each, a transposed copy of the weights is made at the beginning. With
    it the forward pass, too, reads only what is behind active units.

    Args:
        weight: ``[S, O, I]``.
        bias: ``[S, O]``.
        sgd: says how far weights move.
        batch: examples of a step.
        max_size: steps of the longest block.
    """

    def __init__(self, weight: Tensor, bias: Tensor, sgd: PlainSGD, batch: int, max_size: int) -> None:
        self.weight, self.flat_bias, self.bias = weight, bias, bias.unsqueeze(1)
        self.forward_product, self.backward_product = _product_of(weight), _product_back(weight)
        self.sgd, self.batch = sgd, batch
        self.room_for_moves = weight.new_zeros(weight.shape[0], max_size * batch, weight.shape[1])
        self.moves_of = torch.split(self.room_for_moves, batch, 1)  # each step's
        self.make_room(max_size)

    def make_room(self, max_size: int) -> None:
        """Buffers that a first layer can do without."""
        weight = self.weight
        self.room_for_inputs = weight.new_zeros(weight.shape[0], max_size * self.batch, weight.shape[2])
        self.inputs_of = torch.split(self.room_for_inputs, self.batch, 1)
        self.transposed: Tensor | None = None
        self.is_transposed = False

    def begin(self, x_SRI: Tensor) -> None:
        """See :class:`Layer`."""
        num_rows = x_SRI.shape[1]
        self.moves = self.room_for_moves[:, :num_rows].zero_()
        self.inputs = self.room_for_inputs[:, :num_rows]
        self.is_transposed = self.batch == 1 and num_rows >= LONG
        if self.is_transposed:
            self.transpose()

    def transpose(self) -> None:
        """Copy the weights as they are now."""
        if self.transposed is None:
            num_members, size, width = self.weight.shape
            self.transposed = self.weight.new_empty(num_members, width, size)
            self.transposed_product = _product_back(self.transposed)
        for into_IO, weight_OI in zip(self.transposed, self.weight, strict=True):  # two axes at a time: a faster copy
            into_IO.copy_(weight_OI.T)

    def forward(self, act_SBI: Tensor, into_SBO: Tensor, place: int, active: Active) -> None:
        """See :class:`Layer`."""
        if self.is_transposed:
            self.transposed_product(act_SBI, into_SBO, active)
            into_SBO.add_(self.bias)
        else:
            self.forward_product(self.bias, act_SBI, into_SBO)
        if place:
            known = slice(place * self.batch)
            near = torch.bmm(act_SBI, self.inputs[:, known].mT).add_(1)
            into_SBO.baddbmm_(near, self.moves[:, known], alpha=-1)

    def backward(self, delta_SBO: Tensor, into_SBI: Tensor, place: int, active: Active) -> None:
        """See :class:`Layer`."""
        self.backward_product(delta_SBO, into_SBI, active)
        if place:
            known = slice(place * self.batch)
            near = torch.bmm(delta_SBO, self.moves[:, known].mT)
            into_SBI.baddbmm_(near, self.inputs[:, known], alpha=-1)

    def learn(self, delta_SBO: Tensor, act_SBI: Tensor, place: int) -> None:
        """See :class:`Layer`."""
        self.sgd.scale(delta_SBO, self.moves_of[place])
        self.inputs_of[place].copy_(act_SBI)

    def end(self) -> None:
        """See :class:`Layer`."""
        self.weight.baddbmm_(self.moves.mT, self.inputs, alpha=-1)
        self.flat_bias.sub_(self.moves.sum(1))


@final
class PostponedFirst(Postponed):
    """The first layer, whose inputs are known beforehand: it reads its weights once in a block as well."""

    def make_room(self, max_size: int) -> None:
        """None is needed."""

    def begin(self, x_SRI: Tensor) -> None:
        """See :class:`Layer`."""
        self.moves = self.room_for_moves[:, : x_SRI.shape[1]].zero_()
        self.inputs = x_SRI
        self.outputs_of = torch.split(torch.baddbmm(self.bias, x_SRI, self.weight.mT), self.batch, 1)
        self.near_of = torch.split(torch.bmm(x_SRI, x_SRI.mT).add_(1), self.batch, 1)

    def forward(self, act_SBI: Tensor, into_SBO: Tensor, place: int, active: Active) -> None:
        """See :class:`Layer`."""
        torch.baddbmm(self.outputs_of[place], self.near_of[place], self.moves, alpha=-1, out=into_SBO)

    def learn(self, delta_SBO: Tensor, act_SBI: Tensor, place: int) -> None:
        """See :class:`Layer`."""
        self.sgd.scale(delta_SBO, self.moves_of[place])

    def end(self) -> None:
        """See :class:`Layer`."""
        super().end()
        del self.inputs, self.outputs_of, self.near_of  # the inputs are a view of a whole chunk of the data


def _product_of(weight_SOI: Tensor) -> Callable[[Tensor, Tensor, Tensor], None]:
    """What writes ``bias + act W^T``, given bias ``[S, 1, O]``, act ``[S, B, I]`` and where to.

    A product of one large matrix with one vector reads memory at half its speed in the libraries; several smaller ones
    side by side do not.
    """
    num_members, size, width = weight_SOI.shape
    transposed = weight_SOI.mT
    split = size * width >= LARGE and size % _SPLIT == 0 and weight_SOI.is_contiguous()
    blocks = weight_SOI.view(num_members * _SPLIT, size // _SPLIT, width) if split else weight_SOI

    def product(bias_S1O: Tensor, act_SBI: Tensor, into_SBO: Tensor) -> None:
        if act_SBI.shape[1] == 1 and split:
            columns = act_SBI.mT.unsqueeze(1).expand(-1, _SPLIT, -1, -1).reshape(-1, width, 1)
            torch.add(bias_S1O, torch.bmm(blocks, columns).view(num_members, 1, size), out=into_SBO)
        else:
            torch.baddbmm(bias_S1O, act_SBI, transposed, out=into_SBO)

    return product


def _product_back(weight_SOI: Tensor) -> Callable[[Tensor, Tensor, Active], None]:
    """What writes ``delta W``, given delta ``[S, B, O]``, where to, and where delta may not be zero.

    Behind a ReLU most of delta may be zero, exactly: of a large matrix only the other rows are read. A sum of rows with
    weights is what embedding bags are, and these read memory faster than products of matrices do.
    """
    num_members, size, width = weight_SOI.shape
    sparse = size * width >= LARGE and weight_SOI.is_contiguous()
    table = weight_SOI.view(num_members * size, width) if sparse else weight_SOI

    def product(delta_SBO: Tensor, into_SBI: Tensor, active: Active) -> None:
        if delta_SBO.shape[1] > 1 or not sparse:
            torch.bmm(delta_SBO, weight_SOI, out=into_SBI)
            return
        rows, starts = active.rows()
        weights = delta_SBO.reshape(-1).index_select(0, rows)
        into_SBI.copy_(F.embedding_bag(rows, table, starts, mode="sum", per_sample_weights=weights).unsqueeze(1))

    return product
