"""What optimizers keep per parameter: moments that a reset clears, counters that only a restart touches."""

from __future__ import annotations

from torch import Tensor
from torch.optim import Optimizer

from pliant.errors import IllegalConfiguration, NotYetSupported

__all__ = ["check_optimizer", "moments", "restart"]

_MOMENTS = frozenset(
    [
        *("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "exp_inf"),  # Adam and its kin
        *("momentum_buffer", "square_avg", "grad_avg", "acc_delta", "sum"),  # SGD, RMSprop, Adadelta, Adagrad
    ]
)
"""Element-wise moments for which zero is the initial value."""

_SCALARS = {"mu_product": 1.0}
"""Scalars that do not start at zero (NAdam's running product of momentum coefficients)."""

_REFUSED = ("LBFGS", "Adafactor", "Muon", "ASGD", "Rprop", "SparseAdam")


def check_optimizer(optimizer: Optimizer) -> None:
    """Refuse optimizers whose state cannot be reset unit by unit.

    Raises:
        NotYetSupported: Naming those that work.
    """
    kind = type(optimizer).__name__
    if kind in _REFUSED:
        raise NotYetSupported(
            f"{kind} keeps state that does not belong to single units, so a reset unit cannot start anew. Use SGD, "
            "Adam, AdamW, NAdam, RAdam, Adamax, RMSprop, Adagrad or Adadelta for the parameters that are edited."
        )
    if not isinstance(optimizer, Optimizer):
        raise IllegalConfiguration(
            f"{kind} is not a torch.optim.Optimizer; pass the optimizer whose step() updates the model's parameters."
        )


def moments(optimizer: Optimizer, parameter: Tensor, name: str) -> list[Tensor]:
    """The element-wise moments of a parameter, of the parameter's shape.

    Not everything of that shape may be zeroed (ASGD's ``ax`` is a copy of the weights, Rprop's ``step_size`` must not
    be zero), so moments are known by name and anything else is refused.

    Raises:
        NotYetSupported: If the optimizer keeps other tensors of the parameter's shape.
    """
    found = []
    for key, value in optimizer.state.get(parameter, {}).items():
        if not isinstance(value, Tensor) or value.ndim == 0:
            continue
        if key not in _MOMENTS or value.shape != parameter.shape:
            raise NotYetSupported(
                f"{type(optimizer).__name__} keeps a state {key!r} of shape {tuple(value.shape)} for {name!r}, and how "
                f"to reset it for single units is not known. Known moments are: {', '.join(sorted(_MOMENTS))}."
            )
        found.append(value)
    return found


def restart(optimizer: Optimizer, parameter: Tensor, name: str) -> None:
    """Put a parameter's whole state back to where it was before its first step: moments and scalar counters.

    Raises:
        NotYetSupported: As :func:`moments`.
    """
    for value in moments(optimizer, parameter, name):
        value.zero_()
    for key, value in optimizer.state.get(parameter, {}).items():
        if isinstance(value, Tensor) and value.ndim == 0:
            value.fill_(_SCALARS.get(key, 0.0))
