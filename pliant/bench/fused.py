"""Training steps of stacked MLPs written by hand: forward, backward and update in place, without autograd.

At batch size 1 a step through autograd and ``optimizer.step()`` is mostly bookkeeping. Here it is a fixed sequence of
operations on buffers that are made once: for SGD three passes over each weight matrix (forward, backward, update)
and no gradient in memory. Interventions act through the same handle: they are told what the units did, and that a
step was taken. ``docs/engine.md`` says what equals what.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, final

import torch
from torch import Tensor, nn

from pliant.bench.stacked import StackedLinear

if TYPE_CHECKING:
    from pliant.rounds import ByHand

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


_DTYPES = (torch.float32, torch.float64)

_MAX_ROWS = 16
"""Examples whose updates may wait; more cost more than they save."""

_SPLIT = 4
"""Parts of a large matrix that is multiplied with one vector."""

_SMALL = 4096
"""Weights of a layer up to which a second pass over them costs less than a call of the matrix product."""

_LARGE_FIRST, _LARGE = 32_768, 262_144
"""Weights of a layer, of one member, from which on it pays to let updates wait: the first layer, and the others."""


@dataclass(frozen=True)
class Part:
    """Neighbouring members that share an optimizer's settings.

    Attributes:
        members: which.
        parameters: what the optimizer owns: of these members, in the model's order.
        optimizer: theirs.
        follower: what tells their interventions of a step; None: there are none.
        before_step: sets the step size of the coming step; None: it is constant.
    """

    members: slice
    parameters: tuple[Tensor, ...]
    optimizer: torch.optim.Optimizer
    follower: ByHand | None
    before_step: Callable[[], None] | None = None


class _Update(Protocol):
    """How a layer's weights and biases move, given the gradient behind it ``[S, B, O]`` and its input ``[S, B, I]``."""

    def begin(self) -> None:
        """A step begins: read the settings anew, since schedules change them."""

    def layer(self, index: int, delta_SBO: Tensor, input_SBI: Tensor) -> None:
        """Update one layer; the last one comes first."""


@final
class _SGD:
    """Plain SGD of all members at once; each may have its own step size.

    ``W <- (1 - lr * decay) W - lr * delta^T x`` is one operation on W, and no gradient is ever written.
    """

    def __init__(self, layers: Sequence[tuple[Tensor, Tensor]], parts: Sequence[Part]) -> None:
        self.layers, self.parts = layers, parts
        self.groups = [part.optimizer.param_groups[0] for part in parts]
        self.counts = [part.members.stop - part.members.start for part in parts]
        self.known: list[tuple[float, float]] = []
        self.rate = self.keep = 0.0
        self.rate_S: Tensor | None = None
        self.keep_S: Tensor | None = None

    def begin(self) -> None:
        found = [(float(group["lr"]), float(group["weight_decay"])) for group in self.groups]
        if found == self.known:
            return
        self.known, self.rate_S, self.keep_S = found, None, None
        rates = [rate for rate, _ in found]
        keeps = [1 - rate * decay for rate, decay in found]
        self.rate, self.keep = rates[0], keeps[0]
        like = self.layers[0][0]
        if len(set(rates)) > 1:
            self.rate_S = _repeated(rates, self.counts, like)
        if len(set(keeps)) > 1:
            self.keep_S = _repeated(keeps, self.counts, like)

    @property
    def decays(self) -> bool:
        """Whether weights decay by themselves."""
        return any(group["weight_decay"] for group in self.groups)

    def scale(self, delta_SBO: Tensor, into_SBO: Tensor) -> None:
        """The gradient times the step size."""
        torch.mul(delta_SBO, self.rate if self.rate_S is None else self.rate_S, out=into_SBO)

    def layer(self, index: int, delta_SBO: Tensor, input_SBI: Tensor) -> None:
        weight, bias = self.layers[index]
        rate = self.rate
        if self.rate_S is not None:
            delta_SBO, rate = delta_SBO * self.rate_S, 1.0
        keep = self.keep
        if self.keep_S is not None:
            weight.mul_(self.keep_S)
            bias.mul_(self.keep_S[:, :, 0])
            keep = 1.0
        _add_product(weight, delta_SBO, input_SBI, beta=keep, alpha=-rate)
        if keep != 1:
            bias.mul_(keep)
        bias.add_(_over_batch(delta_SBO), alpha=-rate)


@final
class _Momentum:
    """SGD with momentum; the buffer takes the gradient in without another tensor for it."""

    def __init__(self, layers: Sequence[tuple[Tensor, Tensor]], part: Part, single: bool) -> None:
        self.layers, self.part, self.single = layers, part, single
        self.group = part.optimizer.param_groups[0]

    def begin(self) -> None:
        self.rate, self.mu = float(self.group["lr"]), float(self.group["momentum"])
        self.decay = float(self.group["weight_decay"])

    def layer(self, index: int, delta_SBO: Tensor, input_SBI: Tensor) -> None:
        weight, bias = self.layers[index]
        pair = self.part.parameters[2 * index : 2 * index + 2]
        of_weight, of_bias = (self._buffer(parameter) for parameter in pair)
        _add_product(of_weight, delta_SBO, input_SBI, beta=self.mu)
        of_bias.mul_(self.mu).add_(_over_batch(delta_SBO))
        if self.decay:
            of_weight.add_(weight, alpha=self.decay)
            of_bias.add_(bias, alpha=self.decay)
        weight.add_(of_weight, alpha=-self.rate)
        bias.add_(of_bias, alpha=-self.rate)

    def _buffer(self, parameter: Tensor) -> Tensor:
        state = self.part.optimizer.state[parameter]
        if state.get("momentum_buffer") is None:
            state["momentum_buffer"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        return _member_view(state["momentum_buffer"], self.single)


@final
class _Adam:
    """Adam and AdamW; the first moment takes the gradient in directly, and at batch size 1 the second does, too."""

    def __init__(self, layers: Sequence[tuple[Tensor, Tensor]], part: Part, single: bool, decoupled: bool) -> None:
        self.layers, self.part, self.single, self.decoupled = layers, part, single, decoupled
        self.group = part.optimizer.param_groups[0]
        self.spare = [torch.empty_like(weight) for weight, _ in layers]
        self.spare_bias = [torch.empty_like(bias) for _, bias in layers]

    def begin(self) -> None:
        self.rate, self.eps = float(self.group["lr"]), float(self.group["eps"])
        self.beta1, self.beta2 = (float(beta) for beta in self.group["betas"])
        self.keep = 1 - self.rate * float(self.group["weight_decay"]) if self.decoupled else 1.0

    def layer(self, index: int, delta_SBO: Tensor, input_SBI: Tensor) -> None:
        weight, bias = self.layers[index]
        pair = self.part.parameters[2 * index : 2 * index + 2]
        (mean, square, step), (bias_mean, bias_square, bias_step) = (self._moments(parameter) for parameter in pair)
        beta1, beta2, spare = self.beta1, self.beta2, self.spare[index]
        if self.keep != 1:
            weight.mul_(self.keep)
            bias.mul_(self.keep)
        _add_product(mean, delta_SBO, input_SBI, beta=beta1, alpha=1 - beta1)
        if delta_SBO.shape[1] == 1:  # the square of an outer product is the outer product of the squares
            _add_product(square, delta_SBO.square(), input_SBI.square(), beta=beta2, alpha=1 - beta2)
        else:
            torch.bmm(delta_SBO.mT, input_SBI, out=spare)
            square.mul_(beta2).addcmul_(spare, spare, value=1 - beta2)
        gradient = _over_batch(delta_SBO)
        bias_mean.lerp_(gradient, 1 - beta1)
        bias_square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        self._move(weight, mean, square, step, spare)
        self._move(bias, bias_mean, bias_square, bias_step, self.spare_bias[index])

    def _move(self, parameter: Tensor, mean: Tensor, square: Tensor, step: float, spare: Tensor) -> None:
        """``p -= lr / c1 * m / (sqrt(v / c2) + eps)``, with both corrections in the two scalars."""
        root = math.sqrt(1 - self.beta2**step)
        torch.sqrt(square, out=spare)
        spare.add_(self.eps * root)
        parameter.addcdiv_(mean, spare, value=-self.rate * root / (1 - self.beta1**step))

    def _moments(self, parameter: Tensor) -> tuple[Tensor, Tensor, float]:
        state = self.part.optimizer.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            state["exp_avg"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
            state["exp_avg_sq"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        state["step"] += 1
        mean, square = (_member_view(state[name], self.single) for name in ("exp_avg", "exp_avg_sq"))
        return mean, square, float(state["step"])


@final
class _Gradients:
    """Any other optimizer: the gradients are written where it looks for them, and it steps by itself."""

    def __init__(self, layers: Sequence[tuple[Tensor, Tensor]], part: Part, single: bool) -> None:
        self.part, self.single = part, single
        self.gradients = [torch.empty_like(parameter) for parameter in part.parameters]
        self.views = [_member_view(gradient, single) for gradient in self.gradients]

    def begin(self) -> None:
        for parameter, gradient in zip(self.part.parameters, self.gradients, strict=True):
            parameter.grad = gradient

    def layer(self, index: int, delta_SBO: Tensor, input_SBI: Tensor) -> None:
        torch.bmm(delta_SBO.mT, input_SBI, out=self.views[2 * index])
        torch.sum(delta_SBO, 1, out=self.views[2 * index + 1])


def _update_of(part: Part, layers: Sequence[tuple[Tensor, Tensor]], single: bool) -> _Update:
    """The update of some members; plain SGD is done for all parts together, see :class:`FusedMLP`."""
    optimizer, group = part.optimizer, part.optimizer.param_groups[0]
    if type(optimizer) is torch.optim.SGD and _is_plain(group, "maximize", "nesterov", "dampening"):
        return _Momentum(layers, part, single)
    if type(optimizer) is torch.optim.Adam and _is_plain(group, "maximize", "amsgrad", "weight_decay"):
        return _Adam(layers, part, single, decoupled=False)
    if type(optimizer) is torch.optim.AdamW and _is_plain(group, "maximize", "amsgrad"):
        return _Adam(layers, part, single, decoupled=True)
    return _Gradients(layers, part, single)


def _is_plain(group: dict[str, Any], *names: str) -> bool:
    return not any(group[name] for name in names) and not group.get("decoupled_weight_decay", False)


def _is_sgd(part: Part) -> bool:
    optimizer, group = part.optimizer, part.optimizer.param_groups[0]
    return type(optimizer) is torch.optim.SGD and _is_plain(group, "maximize", "nesterov", "dampening", "momentum")


class _Layer(Protocol):
    """What a layer does in a step; ``rows`` are those of the step in what a block of steps keeps."""

    def begin(self, x_SRI: Tensor | None) -> None:
        """A block of steps begins; the inputs of all of them, ``[S, R, I]``, are known to the first layer."""

    def forward(self, act_SBI: Tensor, into_SBO: Tensor, rows: slice) -> None:
        """Write the layer's outputs."""

    def backward(self, delta_SBO: Tensor, into_SBI: Tensor) -> None:
        """Write the gradient with respect to the layer's inputs; called before :meth:`learn`."""

    def learn(self, delta_SBO: Tensor, act_SBI: Tensor, rows: slice) -> None:
        """Update the layer, or note what is to be done."""

    def end(self) -> None:
        """The block ends: the weights must be what they should be."""


@final
class _Direct:
    """Updates its weights in every step."""

    def __init__(
        self, index: int, weight: Tensor, bias: Tensor, updates: Sequence[tuple[slice | None, _Update]]
    ) -> None:
        self.index, self.updates = index, updates
        self.weight, self.bias = weight, bias.unsqueeze(1)
        self.forward_product = _product_of(weight)

    def begin(self, x_SRI: Tensor | None) -> None:
        pass

    def forward(self, act_SBI: Tensor, into_SBO: Tensor, rows: slice) -> None:
        self.forward_product(self.bias, act_SBI, into_SBO)

    def backward(self, delta_SBO: Tensor, into_SBI: Tensor) -> None:
        torch.bmm(delta_SBO, self.weight, out=into_SBI)

    def learn(self, delta_SBO: Tensor, act_SBI: Tensor, rows: slice) -> None:
        for members, update in self.updates:
            if members is None:
                update.layer(self.index, delta_SBO, act_SBI)
            else:
                update.layer(self.index, delta_SBO[members], act_SBI[members])

    def end(self) -> None:
        pass


class _Postponed:
    r"""Plain SGD in which the updates of a block of steps wait, and are done as one product at its end.

    With what has waited, ``D`` (gradients times step size) and ``H`` (inputs), the weights of a step are
    :math:`W - D^\top H`, so its outputs are :math:`x W^\top + b - (x H^\top + 1) D` and the gradient behind it is
    :math:`\delta W - (\delta D^\top) H`: the same step in another order of summation, which reads the weights where
    they would be read and written.
    """

    def __init__(self, weight: Tensor, bias: Tensor, sgd: _SGD, num_rows: int) -> None:
        self.weight, self.turned, self.flat_bias, self.bias = weight, weight.mT, bias, bias.unsqueeze(1)
        self.forward_product = _product_of(weight)
        self.sgd = sgd
        self.moves = weight.new_zeros(weight.shape[0], num_rows, weight.shape[1])
        self.inputs = weight.new_zeros(weight.shape[0], num_rows, weight.shape[2])

    def begin(self, x_SRI: Tensor | None) -> None:
        self.moves.zero_()

    def forward(self, act_SBI: Tensor, into_SBO: Tensor, rows: slice) -> None:
        self.forward_product(self.bias, act_SBI, into_SBO)
        if rows.start:
            near = torch.bmm(act_SBI, self.inputs[:, : rows.start].mT).add_(1)
            into_SBO.baddbmm_(near, self.moves[:, : rows.start], alpha=-1)

    def backward(self, delta_SBO: Tensor, into_SBI: Tensor) -> None:
        torch.bmm(delta_SBO, self.weight, out=into_SBI)
        near = torch.bmm(delta_SBO, self.moves.mT)
        into_SBI.baddbmm_(near, self.inputs, alpha=-1)

    def learn(self, delta_SBO: Tensor, act_SBI: Tensor, rows: slice) -> None:
        self.sgd.scale(delta_SBO, self.moves[:, rows])
        self.inputs[:, rows] = act_SBI

    def end(self) -> None:
        self.weight.baddbmm_(self.moves.mT, self.inputs, alpha=-1)
        self.flat_bias.sub_(self.moves.sum(1))


@final
class _PostponedFirst(_Postponed):
    """The first layer, whose inputs are known beforehand: it reads its weights once in a block as well."""

    def begin(self, x_SRI: Tensor | None) -> None:
        assert x_SRI is not None
        self.moves.zero_()
        self.inputs = x_SRI
        self.outputs = torch.baddbmm(self.bias, x_SRI, self.turned)
        self.near = torch.bmm(x_SRI, x_SRI.mT).add_(1)

    def forward(self, act_SBI: Tensor, into_SBO: Tensor, rows: slice) -> None:
        torch.baddbmm(self.outputs[:, rows], self.near[:, rows], self.moves, alpha=-1, out=into_SBO)

    def learn(self, delta_SBO: Tensor, act_SBI: Tensor, rows: slice) -> None:
        self.sgd.scale(delta_SBO, self.moves[:, rows])


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
            (_member_view(m.weight.detach(), self._single), _member_view(m.bias.detach(), self._single)) for m in linear
        ]
        for parameter in model.parameters():
            parameter.grad = None
        names = [name for name, _ in model.named_children()][::2]
        self._readers = names[1:]  # the modules that read each hidden layer
        self._buffers: dict[int, tuple[list[Tensor], list[Tensor]]] = {}
        self._blocks: dict[tuple[int, int], list[_Layer]] = {}
        self._updates: list[tuple[slice | None, _Update]] = []
        self._steppers: list[Callable[[], Any] | None] = [None] * len(parts)
        self._sgd: _SGD | None = None
        if not leave_gradients and all(_is_sgd(part) for part in parts):
            sgd = _SGD(self._tensors, parts)
            self._updates.append((None, sgd))
            if postpone and not sgd.decays:
                self._sgd = sgd
        else:
            for number, part in enumerate(parts):
                self._add_update(number, part, leave_gradients)
        self._direct: list[_Layer] = [
            _Direct(index, *tensors, self._updates) for index, tensors in enumerate(self._tensors)
        ]

    def _add_update(self, number: int, part: Part, leave_gradients: bool) -> None:
        tensors, members = self._tensors, None
        if len(self._parts) > 1:
            members = part.members
            tensors = [(weight[members], bias[members]) for weight, bias in tensors]
        update = _Gradients(tensors, part, self._single) if leave_gradients else _update_of(part, tensors, self._single)
        self._updates.append((members, update))
        if isinstance(update, _Gradients):
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
            size = self._size_of_block(num_steps - done, batch)
            layers = self._layers_of(size, batch)
            if size > 1:
                rows = x_KSBI[done : done + size].transpose(0, 1).flatten(1, 2)
                for layer in layers:
                    layer.begin(rows)
            for k in range(size):
                at = done + k
                self._step(layers, inputs[at], outputs[at], at, gradient, slice(k * batch, (k + 1) * batch))
                if k == size - 1:
                    for layer in layers:
                        layer.end()
                for part, step in zip(self._parts, self._steppers, strict=True):
                    if step is not None:
                        step()
                    elif part.follower is not None:
                        part.follower.step()
            done += size

    def _size_of_block(self, left: int, batch: int) -> int:
        """How many steps may wait with their updates: until somebody looks at the weights, or there are enough."""
        if self._sgd is None or batch * 2 > _MAX_ROWS:
            return 1
        size = min(left, _MAX_ROWS // batch)
        for follower in self._followers:
            size = min(size, follower.num_quiet_steps)
        return size

    def _layers_of(self, size: int, batch: int) -> list[_Layer]:
        if size == 1:
            return self._direct
        if (size, batch) not in self._blocks:
            assert self._sgd is not None
            found: list[_Layer] = []
            for index, (weight, bias) in enumerate(self._tensors):
                large = weight[0].numel() >= (_LARGE if index else _LARGE_FIRST)
                kind = _Postponed if index else _PostponedFirst
                found.append(kind(weight, bias, self._sgd, size * batch) if large else self._direct[index])
            if all(layer is direct for layer, direct in zip(found, self._direct, strict=True)):
                self._sgd = None  # no layer is worth it
            self._blocks[size, batch] = found
        return self._blocks[size, batch]

    def _step(
        self,
        layers: Sequence[_Layer],
        x_SBI: Tensor,
        out_SBC: Tensor,
        number: int,
        gradient: Callable[[int, Tensor], Tensor],
        rows: slice,
    ) -> None:
        """One step, but for what comes after the update."""
        hidden, deltas = self._at_size(x_SBI.shape[1])
        act = x_SBI
        for layer, into in zip(layers, (*hidden, out_SBC), strict=True):
            layer.forward(act, into, rows)
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
        for index in range(len(layers) - 1, 0, -1):
            layer, read, below = layers[index], hidden[index - 1], deltas[index - 1]
            layer.backward(delta, below)
            layer.learn(delta, read, rows)
            torch.ops.aten.threshold_backward.grad_input(below, read, 0, grad_input=below)
            delta = below
        layers[0].learn(delta, x_SBI, rows)

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


def _member_view(tensor: Tensor, single: bool) -> Tensor:
    return tensor.unsqueeze(0) if single else tensor


def _product_of(weight_SOI: Tensor) -> Callable[[Tensor, Tensor, Tensor], None]:
    """What writes ``bias + act W^T``, given bias ``[S, 1, O]``, act ``[S, B, I]`` and where to.

    A product of one large matrix with one vector reads memory at half its speed in the libraries; several smaller ones
    side by side do not.
    """
    num_members, size, width = weight_SOI.shape
    turned = weight_SOI.mT
    split = size * width >= _LARGE and size % _SPLIT == 0 and weight_SOI.is_contiguous()
    blocks = weight_SOI.view(num_members * _SPLIT, size // _SPLIT, width) if split else weight_SOI

    def product(bias_S1O: Tensor, act_SBI: Tensor, into_SBO: Tensor) -> None:
        if act_SBI.shape[1] == 1 and split:
            columns = act_SBI.mT.unsqueeze(1).expand(-1, _SPLIT, -1, -1).reshape(-1, width, 1)
            torch.add(bias_S1O, torch.bmm(blocks, columns).view(num_members, 1, size), out=into_SBO)
        else:
            torch.baddbmm(bias_S1O, act_SBI, turned, out=into_SBO)

    return product


def _add_product(
    target_SOI: Tensor, delta_SBO: Tensor, input_SBI: Tensor, *, beta: float = 1.0, alpha: float = 1.0
) -> None:
    """``target <- beta * target + alpha * delta^T input``, in place.

    An outer product is no product of matrices to the libraries: element by element it is faster, by far where the
    matrices are small.
    """
    if delta_SBO.shape[1] == 1 and (beta == 1 or target_SOI[0].numel() < _SMALL):
        if beta != 1:
            target_SOI.mul_(beta)
        target_SOI.addcmul_(delta_SBO.mT, input_SBI, value=alpha)
    else:
        target_SOI.baddbmm_(delta_SBO.mT, input_SBI, beta=beta, alpha=alpha)


def _over_batch(delta_SBO: Tensor) -> Tensor:
    return delta_SBO.squeeze(1) if delta_SBO.shape[1] == 1 else delta_SBO.sum(1)


def _repeated(values: Sequence[float], counts: Sequence[int], like: Tensor) -> Tensor:
    """A value for each part as one for each member, ``[S, 1, 1]``."""
    repeated = [value for value, count in zip(values, counts, strict=True) for _ in range(count)]
    return torch.tensor(repeated, dtype=like.dtype, device=like.device).view(-1, 1, 1)
