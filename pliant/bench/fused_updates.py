"""How weights move in steps that are written by hand: SGD, momentum, Adam, and whatever steps by itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, final

import torch
from torch import Tensor

if TYPE_CHECKING:
    from pliant.rounds import ByHand

__all__ = ["Gradients", "Part", "PlainSGD", "Update", "is_plain_sgd", "member_view", "update_of"]

_SMALL = 4096
"""Weights of a layer up to which a second pass over them costs less than a call of the matrix product."""


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


class Update(Protocol):
    """How a layer's weights and biases move, given the gradient behind it ``[S, B, O]`` and its input ``[S, B, I]``."""

    def begin(self) -> None:
        """A step begins: read the settings anew, since schedules change them."""

    def layer(self, index: int, delta_SBO: Tensor, input_SBI: Tensor) -> None:
        """Update one layer; the last one comes first."""


@final
class PlainSGD:
    """Plain SGD of all members at once; each may have its own step size.

    ``W <- (1 - lr * decay) W - lr * delta^T x`` is one operation on W, and no gradient is ever written.
    """

    def __init__(self, layers: Sequence[tuple[Tensor, Tensor]], parts: Sequence[Part]) -> None:
        self.layers, self.parts = layers, parts
        self.counts = [part.members.stop - part.members.start for part in parts]
        self.known: list[tuple[float, float]] = []
        self.rate = self.keep = 0.0
        self.rate_S: Tensor | None = None
        self.scaling = layers[0][0].new_zeros(())
        self.biases = [bias.unsqueeze(1) for _, bias in layers]
        self.keep_S: Tensor | None = None

    def begin(self) -> None:
        """See :class:`Update`."""
        groups = [part.optimizer.param_groups[0] for part in self.parts]  # others once a state was loaded
        found = [(float(group["lr"]), float(group["weight_decay"])) for group in groups]
        if found == self.known:
            return
        self.known, self.rate_S, self.keep_S = found, None, None
        rates = [rate for rate, _ in found]
        keeps = [1 - rate * decay for rate, decay in found]
        self.rate, self.keep = rates[0], keeps[0]
        like = self.layers[0][0]
        if len(set(rates)) > 1:
            self.rate_S = _repeated(rates, self.counts, like)
        self.scaling = like.new_tensor(self.rate) if self.rate_S is None else self.rate_S
        if len(set(keeps)) > 1:
            self.keep_S = _repeated(keeps, self.counts, like)

    @property
    def decays(self) -> bool:
        """Whether weights decay by themselves."""
        return any(part.optimizer.param_groups[0]["weight_decay"] for part in self.parts)

    def scale(self, delta_SBO: Tensor, into_SBO: Tensor) -> None:
        """The gradient times the step size."""
        torch.mul(delta_SBO, self.scaling, out=into_SBO)  # by a tensor: a number would be made one at every call

    def layer(self, index: int, delta_SBO: Tensor, input_SBI: Tensor) -> None:
        """See :class:`Update`."""
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
        of_bias = delta_SBO if delta_SBO.shape[1] == 1 else delta_SBO.sum(1, keepdim=True)
        self.biases[index].add_(of_bias, alpha=-rate)


@final
class _Momentum:
    """SGD with momentum; the buffer takes the gradient in without another tensor for it."""

    def __init__(self, layers: Sequence[tuple[Tensor, Tensor]], part: Part, single: bool) -> None:
        self.layers, self.part, self.single = layers, part, single

    def begin(self) -> None:
        """See :class:`Update`."""
        group = self.part.optimizer.param_groups[0]  # another one once a state was loaded
        self.rate, self.mu = float(group["lr"]), float(group["momentum"])
        self.decay = float(group["weight_decay"])

    def layer(self, index: int, delta_SBO: Tensor, input_SBI: Tensor) -> None:
        """See :class:`Update`."""
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
        return member_view(state["momentum_buffer"], self.single)


@final
class _Adam:
    """Adam and AdamW; the first moment takes the gradient in directly, and at batch size 1 the second does, too."""

    def __init__(self, layers: Sequence[tuple[Tensor, Tensor]], part: Part, single: bool, decoupled: bool) -> None:
        self.layers, self.part, self.single, self.decoupled = layers, part, single, decoupled
        self.spare = [torch.empty_like(weight) for weight, _ in layers]
        self.spare_bias = [torch.empty_like(bias) for _, bias in layers]

    def begin(self) -> None:
        """See :class:`Update`."""
        group = self.part.optimizer.param_groups[0]  # another one once a state was loaded
        self.rate, self.eps = float(group["lr"]), float(group["eps"])
        self.beta1, self.beta2 = (float(beta) for beta in group["betas"])
        self.keep = 1 - self.rate * float(group["weight_decay"]) if self.decoupled else 1.0

    def layer(self, index: int, delta_SBO: Tensor, input_SBI: Tensor) -> None:
        """See :class:`Update`."""
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
        mean, square = (member_view(state[name], self.single) for name in ("exp_avg", "exp_avg_sq"))
        return mean, square, float(state["step"])


@final
class Gradients:
    """Any other optimizer: the gradients are written where it looks for them, and it steps by itself."""

    def __init__(self, layers: Sequence[tuple[Tensor, Tensor]], part: Part, single: bool) -> None:
        self.part, self.single = part, single
        self.gradients = [torch.empty_like(parameter) for parameter in part.parameters]
        self.views = [member_view(gradient, single) for gradient in self.gradients]

    def begin(self) -> None:
        """See :class:`Update`."""
        for parameter, gradient in zip(self.part.parameters, self.gradients, strict=True):
            parameter.grad = gradient

    def layer(self, index: int, delta_SBO: Tensor, input_SBI: Tensor) -> None:
        """See :class:`Update`."""
        torch.bmm(delta_SBO.mT, input_SBI, out=self.views[2 * index])
        torch.sum(delta_SBO, 1, out=self.views[2 * index + 1])


def update_of(part: Part, layers: Sequence[tuple[Tensor, Tensor]], single: bool) -> Update:
    """The update of some members; plain SGD is done for all parts together, see :class:`FusedMLP`."""
    optimizer, group = part.optimizer, part.optimizer.param_groups[0]
    if type(optimizer) is torch.optim.SGD and _is_plain(group, "maximize", "nesterov", "dampening"):
        return _Momentum(layers, part, single)
    if type(optimizer) is torch.optim.Adam and _is_plain(group, "maximize", "amsgrad", "weight_decay"):
        return _Adam(layers, part, single, decoupled=False)
    if type(optimizer) is torch.optim.AdamW and _is_plain(group, "maximize", "amsgrad"):
        return _Adam(layers, part, single, decoupled=True)
    return Gradients(layers, part, single)


def _is_plain(group: dict[str, Any], *names: str) -> bool:
    return not any(group[name] for name in names) and not group.get("decoupled_weight_decay", False)


def is_plain_sgd(part: Part) -> bool:
    """Whether some members are trained by SGD without momentum; their weights may decay."""
    optimizer, group = part.optimizer, part.optimizer.param_groups[0]
    return type(optimizer) is torch.optim.SGD and _is_plain(group, "maximize", "nesterov", "dampening", "momentum")


def member_view(tensor: Tensor, single: bool) -> Tensor:
    """A tensor of a stack as it is; one of a single model as that of a stack of one."""
    return tensor.unsqueeze(0) if single else tensor


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
