"""Training steps of stacked MLPs written by hand: forward, backward and update in place, without autograd.

At batch size 1 a step through autograd and ``optimizer.step()`` is mostly bookkeeping. Here it is a fixed sequence of
operations on buffers that are made once: for SGD at most three passes over each weight matrix (forward, backward,
update) and no gradient in memory. Interventions act through the same handle: they are told what the units did, and
that a step was taken. ``docs/engine.md`` says what equals what.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, final

import torch
from torch import Tensor, nn

from pliant.bench.fused_layers import LARGE, LARGE_FIRST, Active, Direct, Layer, Postponed, PostponedFirst
from pliant.bench.fused_updates import Gradients, Part, PlainSGD, Update, is_plain_sgd, member_view, update_of
from pliant.bench.stacked import StackedLinear

__all__ = ["FusedMLP", "Part", "can_fuse", "steps_by_hand"]

_WITHOUT_GRADIENTS = frozenset(
    [
        *("ContinualBackprop", "ReDo", "SelfNormalizedReset", "L2", "L2Init", "ShrinkAndPerturb", "WeightClipping"),
        *("WeightNoise", "FreshStart", "LayerReset", "OptimizerReset", "Parseval", "SpectralRegularisation"),
        *("HareAndTortoise", "NormalizeAndProject", "FIRE"),
    ]
)
"""Interventions that read no gradients and add nothing to the loss: they can follow steps that leave none."""


def steps_by_hand(methods: Sequence[Any]) -> bool:
    """Whether interventions can follow a training step that leaves no gradients behind; unknown ones cannot."""
    return all(
        type(method).__name__ in _WITHOUT_GRADIENTS
        and type(method).__module__.startswith("pliant.")
        and not method.changes_gradients
        and not method.needs_penalty
        for method in methods
    )


def can_fuse(model: nn.Module) -> bool:
    """Whether a model is linear layers with biases and ReLU between them, in sequence, trained whole, on a CPU."""
    if not isinstance(model, nn.Sequential) or type(model).forward is not nn.Sequential.forward:
        return False
    layers = list(model)
    linear = (type(layers[0]),) if layers and type(layers[0]) in (nn.Linear, StackedLinear) else ()
    if not linear or len(layers) % 2 == 0 or len({id(layer) for layer in layers}) != len(layers):
        return False
    if any(type(layer) not in linear or layer.bias is None for layer in layers[::2]):
        return False
    if any(type(layer) is not nn.ReLU for layer in layers[1::2]):
        return False
    return all(p.requires_grad and p.device.type == "cpu" and p.dtype in _DTYPES for p in model.parameters())


_behind_relu = torch.ops.aten.threshold_backward.grad_input  # looked up once: three look-ups are a third of its time

_DTYPES = (torch.float32, torch.float64)

_MAX_ROWS, _MAX_ROWS_OF_LARGE = 32, 64
"""Examples whose updates may wait, in networks with a large first layer alone and in others."""

_MIN_SIZE = 4
"""Steps of a block, where it may be as long as that, from which on it pays to let updates wait."""


def longest_block(max_rows: int, batch: int) -> int:
    """Steps of the longest block: a power of two, of which the batches of a chunk are a multiple.

    >>> longest_block(64, 1), longest_block(64, 3), longest_block(16, 16)
    (64, 16, 1)
    """
    return 1 << (max_rows // batch).bit_length() - 1


@final
class FusedMLP:
    """The training steps of an MLP, single or stacked, by hand.

    Args:
        model: see :func:`can_fuse`.
        parts: the members in order, by optimizer; each optimizer has one parameter group.
        leave_gradients: leave them where optimizers and interventions look for them, and let the optimizer step by
            itself; needed unless :func:`steps_by_hand`.
        postpone: let updates of large layers wait where nobody looks at the weights in between.
    """

    def __init__(
        self, model: nn.Sequential, parts: Sequence[Part], *, leave_gradients: bool = False, postpone: bool = True
    ) -> None:
        linear: list[Any] = list(model)[::2]
        self._single = type(linear[0]) is nn.Linear
        self._parts = tuple(parts)
        self._followers = [part.follower for part in parts if part.follower is not None]
        self._tensors = [
            (member_view(m.weight.detach(), self._single), member_view(m.bias.detach(), self._single)) for m in linear
        ]
        for parameter in model.parameters():
            parameter.grad = None
        names = [name for name, _ in model.named_children()][::2]
        self._readers = names[1:]  # the modules that read each hidden layer
        self._buffers: dict[int, tuple[list[Tensor], list[Tensor]]] = {}
        self._blocks: dict[int, list[Layer]] = {}
        self._updates: list[tuple[slice | None, Update]] = []
        self._steppers: list[Callable[[], Any] | None] = [None] * len(parts)
        self._sgd: PlainSGD | None = None
        large = any(weight[0].numel() >= LARGE for weight, _ in self._tensors[1:])
        self._max_rows = _MAX_ROWS_OF_LARGE if large else _MAX_ROWS
        if not leave_gradients and all(is_plain_sgd(part) for part in parts):
            sgd = PlainSGD(self._tensors, parts)
            self._updates.append((None, sgd))
            if postpone and not sgd.decays:
                self._sgd = sgd
        else:
            for number, part in enumerate(parts):
                self._add_update(number, part, leave_gradients)
        self._direct: list[Layer] = [
            Direct(index, *tensors, self._updates) for index, tensors in enumerate(self._tensors)
        ]

    def _add_update(self, number: int, part: Part, leave_gradients: bool) -> None:
        tensors, members = self._tensors, None
        if len(self._parts) > 1:
            members = part.members
            tensors = [(weight[members], bias[members]) for weight, bias in tensors]
        update = Gradients(tensors, part, self._single) if leave_gradients else update_of(part, tensors, self._single)
        self._updates.append((members, update))
        if isinstance(update, Gradients):
            self._steppers[number] = part.optimizer.step

    @torch.no_grad()
    def run(self, x_KSBI: Tensor, out_KSBC: Tensor, gradient: Callable[[int, Tensor], Tensor]) -> None:
        """Training steps of all members.

        Args:
            x_KSBI: the batches of K steps.
            out_KSBC: the outputs before each update are written here.
            gradient: from the number of a step and its outputs to the gradient with respect to them.
        """
        num_steps, batch = x_KSBI.shape[0], x_KSBI.shape[2]
        inputs, outputs = x_KSBI.unbind(0), out_KSBC.unbind(0)
        done = 0
        while done < num_steps:
            size = self._size_of_block(done, num_steps - done, batch)
            layers = self._layers_of(size, batch)
            if size > 1:
                rows = x_KSBI[done : done + size].transpose(0, 1).flatten(1, 2)
                for layer in layers:
                    layer.begin(rows)
            for k in range(size):
                at = done + k
                self._step(layers, inputs[at], outputs[at], at, gradient, k)
                if k == size - 1:
                    for layer in layers:
                        layer.end()
                for part, step in zip(self._parts, self._steppers, strict=True):
                    if step is not None:
                        step()
                    elif part.follower is not None:
                        part.follower.step()
            done += size

    def _size_of_block(self, done: int, left: int, batch: int) -> int:
        """How many steps may wait with their updates: until somebody looks at the weights, or there are enough.

        Blocks end where those of the greatest length do, so that it does not matter where chunks of the data end.
        """
        if self._sgd is None or batch * _MIN_SIZE > self._max_rows:
            return 1
        longest = longest_block(self._max_rows, batch)
        size = min(left, longest - done % longest)
        for follower in self._followers:
            size = min(size, follower.num_quiet_steps)
        return size

    def _layers_of(self, size: int, batch: int) -> list[Layer]:
        if size == 1:
            return self._direct
        if batch not in self._blocks:
            assert self._sgd is not None
            found: list[Layer] = []
            for index, (weight, bias) in enumerate(self._tensors):
                if weight[0].numel() < (LARGE if index else LARGE_FIRST):
                    found.append(self._direct[index])
                else:
                    kind = Postponed if index else PostponedFirst
                    found.append(kind(weight, bias, self._sgd, batch, longest_block(self._max_rows, batch)))
            if all(layer is direct for layer, direct in zip(found, self._direct, strict=True)):
                self._sgd = None  # no layer is worth it
            self._blocks[batch] = found
        return self._blocks[batch]

    def _step(
        self,
        layers: Sequence[Layer],
        x_SBI: Tensor,
        out_SBC: Tensor,
        number: int,
        gradient: Callable[[int, Tensor], Tensor],
        place: int,
    ) -> None:
        """One step, but for what comes after the update."""
        hidden, deltas = self._at_size(x_SBI.shape[1])
        act, active = x_SBI, [Active(act) for act in (x_SBI, *hidden)]
        for layer, into, inputs in zip(layers, (*hidden, out_SBC), active, strict=True):
            layer.forward(act, into, place, inputs)
            if into is not out_SBC:
                into.relu_()
                act = into
        for part in self._parts:
            if part.before_step is not None:
                part.before_step()
            if part.follower is not None and part.follower.listens:
                self._tell(part, hidden)
        for _, update in self._updates:
            update.begin()
        delta = gradient(number, out_SBC)
        active.append(Active(delta))
        for index in range(len(layers) - 1, 0, -1):
            layer, read, below = layers[index], hidden[index - 1], deltas[index - 1]
            layer.backward(delta, below, place, active[index + 1])
            layer.learn(delta, read, place)
            _behind_relu(below, read, 0, grad_input=below)
            delta = below
        layers[0].learn(delta, x_SBI, place)

    def _tell(self, part: Part, hidden: Sequence[Tensor]) -> None:
        """Let the interventions hear what the units did; the buffers are written again, so they get copies."""
        assert part.follower is not None
        for name, act in zip(self._readers, hidden, strict=True):
            copied = (act[0] if self._single else act[part.members]).clone()
            part.follower.hear(name, copied)

    def _at_size(self, batch: int) -> tuple[list[Tensor], list[Tensor]]:
        if batch not in self._buffers:
            like = self._tensors[0][0]
            shapes = [(weight.shape[0], batch, weight.shape[1]) for weight, _ in self._tensors[:-1]]
            self._buffers[batch] = ([like.new_empty(s) for s in shapes], [like.new_empty(s) for s in shapes])
        return self._buffers[batch]
