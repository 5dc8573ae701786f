"""The layers of steps that are written by hand: they update at once, or let the updates of a block of steps wait."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, final

import torch
from torch import Tensor
from torch.nn import functional as F

from pliant.bench.fused_updates import PlainSGD, Update

__all__ = ["LARGE", "LARGE_FIRST", "Direct", "Layer", "Postponed", "PostponedFirst"]

LARGE_FIRST, LARGE = 32_768, 262_144
"""Weights of a layer, of one member, from which on it pays to let updates wait: the first layer, and the others."""

_SPLIT = 4
"""Parts of a large matrix that is multiplied with one vector."""


class Layer(Protocol):
    """What a layer does in a step; ``rows`` are those of the step in what a block of steps keeps."""

    def begin(self, x_SRI: Tensor | None) -> None:
        """A block of steps begins; the inputs of all of them, ``[S, R, I]``, are known to the first layer."""

    def forward(self, act_SBI: Tensor, into_SBO: Tensor, rows: slice) -> None:
        """Write the layer's outputs."""

    def backward(self, delta_SBO: Tensor, into_SBI: Tensor, rows: slice) -> None:
        """Write the gradient with respect to the layer's inputs; called before :meth:`learn`."""

    def learn(self, delta_SBO: Tensor, act_SBI: Tensor, rows: slice) -> None:
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

    def begin(self, x_SRI: Tensor | None) -> None:
        """See :class:`Layer`."""

    def forward(self, act_SBI: Tensor, into_SBO: Tensor, rows: slice) -> None:
        """See :class:`Layer`."""
        self.forward_product(self.bias, act_SBI, into_SBO)

    def backward(self, delta_SBO: Tensor, into_SBI: Tensor, rows: slice) -> None:
        """See :class:`Layer`."""
        self.backward_product(delta_SBO, into_SBI)

    def learn(self, delta_SBO: Tensor, act_SBI: Tensor, rows: slice) -> None:
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
    """

    def __init__(self, weight: Tensor, bias: Tensor, sgd: PlainSGD, num_rows: int) -> None:
        self.weight, self.turned, self.flat_bias, self.bias = weight, weight.mT, bias, bias.unsqueeze(1)
        self.forward_product, self.backward_product = _product_of(weight), _product_back(weight)
        self.sgd = sgd
        self.moves = weight.new_zeros(weight.shape[0], num_rows, weight.shape[1])
        self.inputs = weight.new_zeros(weight.shape[0], num_rows, weight.shape[2])

    def begin(self, x_SRI: Tensor | None) -> None:
        """See :class:`Layer`."""
        self.moves.zero_()

    def forward(self, act_SBI: Tensor, into_SBO: Tensor, rows: slice) -> None:
        """See :class:`Layer`."""
        self.forward_product(self.bias, act_SBI, into_SBO)
        if rows.start:
            near = torch.bmm(act_SBI, self.inputs[:, : rows.start].mT).add_(1)
            into_SBO.baddbmm_(near, self.moves[:, : rows.start], alpha=-1)

    def backward(self, delta_SBO: Tensor, into_SBI: Tensor, rows: slice) -> None:
        """See :class:`Layer`."""
        self.backward_product(delta_SBO, into_SBI)
        if rows.start:
            near = torch.bmm(delta_SBO, self.moves[:, : rows.start].mT)
            into_SBI.baddbmm_(near, self.inputs[:, : rows.start], alpha=-1)

    def learn(self, delta_SBO: Tensor, act_SBI: Tensor, rows: slice) -> None:
        """See :class:`Layer`."""
        self.sgd.scale(delta_SBO, self.moves[:, rows])
        self.inputs[:, rows] = act_SBI

    def end(self) -> None:
        """See :class:`Layer`."""
        self.weight.baddbmm_(self.moves.mT, self.inputs, alpha=-1)
        self.flat_bias.sub_(self.moves.sum(1))


@final
class PostponedFirst(Postponed):
    """The first layer, whose inputs are known beforehand: it reads its weights once in a block as well."""

    def begin(self, x_SRI: Tensor | None) -> None:
        """See :class:`Layer`."""
        assert x_SRI is not None
        self.moves.zero_()
        self.inputs = x_SRI
        self.outputs = torch.baddbmm(self.bias, x_SRI, self.turned)
        self.near = torch.bmm(x_SRI, x_SRI.mT).add_(1)

    def forward(self, act_SBI: Tensor, into_SBO: Tensor, rows: slice) -> None:
        """See :class:`Layer`."""
        torch.baddbmm(self.outputs[:, rows], self.near[:, rows], self.moves, alpha=-1, out=into_SBO)

    def learn(self, delta_SBO: Tensor, act_SBI: Tensor, rows: slice) -> None:
        """See :class:`Layer`."""
        self.sgd.scale(delta_SBO, self.moves[:, rows])


def _product_of(weight_SOI: Tensor) -> Callable[[Tensor, Tensor, Tensor], None]:
    """What writes ``bias + act W^T``, given bias ``[S, 1, O]``, act ``[S, B, I]`` and where to.

    A product of one large matrix with one vector reads memory at half its speed in the libraries; several smaller ones
    side by side do not.
    """
    num_members, size, width = weight_SOI.shape
    turned = weight_SOI.mT
    split = size * width >= LARGE and size % _SPLIT == 0 and weight_SOI.is_contiguous()
    blocks = weight_SOI.view(num_members * _SPLIT, size // _SPLIT, width) if split else weight_SOI

    def product(bias_S1O: Tensor, act_SBI: Tensor, into_SBO: Tensor) -> None:
        if act_SBI.shape[1] == 1 and split:
            columns = act_SBI.mT.unsqueeze(1).expand(-1, _SPLIT, -1, -1).reshape(-1, width, 1)
            torch.add(bias_S1O, torch.bmm(blocks, columns).view(num_members, 1, size), out=into_SBO)
        else:
            torch.baddbmm(bias_S1O, act_SBI, turned, out=into_SBO)

    return product


def _product_back(weight_SOI: Tensor) -> Callable[[Tensor, Tensor], None]:
    """What writes ``delta W``, given delta ``[S, B, O]`` and where to.

    Behind a ReLU most of delta may be zero, exactly: of a large matrix only the other rows are read. A sum of rows with
    weights is what embedding bags are, and these read memory faster than products of matrices do.
    """
    num_members, size, width = weight_SOI.shape
    sparse = size * width >= LARGE and weight_SOI.is_contiguous()
    table = weight_SOI.view(num_members * size, width) if sparse else weight_SOI
    first = torch.zeros(1, dtype=torch.int64)

    def product(delta_SBO: Tensor, into_SBI: Tensor) -> None:
        if delta_SBO.shape[1] > 1 or not sparse:
            torch.bmm(delta_SBO, weight_SOI, out=into_SBI)
            return
        flat = delta_SBO.reshape(-1)
        rows = flat.nonzero().view(-1)
        starts = first
        if num_members > 1:
            ends = (delta_SBO.view(num_members, size) != 0).sum(1).cumsum(0)
            starts = torch.cat([first, ends[:-1]])
        sums = F.embedding_bag(rows, table, starts, mode="sum", per_sample_weights=flat[rows])
        into_SBI.copy_(sums.unsqueeze(1))

    return product
