r"""What an optimizer keeps, for a wider or a narrower copy of the network.

By symmetry, the gradients of the copies of a weight are equal. A copy that receives a share :math:`1/k` of its
unit's adjoint has the gradient :math:`g/k`; so has every moment that is linear in the gradient, and one that is
quadratic has :math:`1/k^2`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.optim import Optimizer, RMSprop

from pliant.errors import IllegalConfiguration, NotYetSupported
from pliant.optimizer_state import check_optimizer

__all__ = ["POWERS", "scaled_optimizer"]

POWERS: Mapping[str, int] = {
    "momentum_buffer": 1, "exp_avg": 1, "grad_avg": 1, "exp_inf": 1, "prev": 1,
    "exp_avg_sq": 2, "max_exp_avg_sq": 2, "square_avg": 2, "sum": 2,
    "acc_delta": 0, "step_size": 0,  # in units of the weights' updates
}  # fmt: skip
"""State tensors by name, with the power of the gradient that they are made of."""


def scaled_optimizer(
    optimizer: Optimizer,
    model: nn.Module,
    other: nn.Module,
    convert: Callable[[str, Tensor], Tensor],
    rates: Mapping[str, Tensor],
) -> Optimizer:
    """A copy of an optimizer that trains another model, with state to match.

    Args:
        optimizer: The optimizer of ``model``; it is not changed.
        model: The model that it trains.
        other: The model that the copy trains, with the same parameter names.
        convert: Parameter name and a tensor of the old shape to one of the new shape.
        rates: Parameter name to the new gradient over the old one, entry by entry.

    Raises:
        IllegalConfiguration: If the optimizer trains something that is no parameter of the model.
        NotYetSupported: For state whose dependence on the gradient is not known.
    """
    check_optimizer(optimizer)
    new = dict(other.named_parameters())
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    owned = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if strange := [tuple(p.shape) for p in owned if id(p) not in names]:
        raise IllegalConfiguration(f"the optimizer trains a tensor of shape {strange[0]} that is not in the model.")
    memo = {id(parameter): new[names[id(parameter)]] for parameter in owned}
    made = copy.deepcopy(optimizer, memo)
    for parameter in owned:
        name = names[id(parameter)]
        for key, value in made.state.get(new[name], {}).items():
            if not isinstance(value, Tensor) or value.ndim == 0 or parameter.ndim == 0:
                continue
            if key not in POWERS or value.shape != parameter.shape:
                raise NotYetSupported(
                    f"{type(optimizer).__name__} keeps a state {key!r} of shape {tuple(value.shape)} for {name!r}, and "
                    f"how it depends on the gradient is not known. Known are: {', '.join(POWERS)}."
                )
            with torch.no_grad():
                converted = convert(name, value)
                made.state[new[name]][key] = converted * (rates[name].to(converted) ** _power(optimizer, key))
    return made


def _power(optimizer: Optimizer, key: str) -> int:
    """RMSprop's momentum is of steps, which are free of the gradient's scale but for its epsilon."""
    return 0 if isinstance(optimizer, RMSprop) and key == "momentum_buffer" else POWERS[key]
