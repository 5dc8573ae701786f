r"""What optimizers keep per parameter, and what it is for an entry that has just been born.

Every element-wise state of ``torch.optim`` is known by name, with the value that a new entry starts from: most start
at zero, but Adagrad's ``sum`` starts at its ``initial_accumulator_value``, Rprop's ``step_size`` at the step size,
and ASGD's ``ax``, an average of weights, at the weights. One counter per tensor (``step``) cannot start anew for a
few entries, so Adam's bias correction is not repeated for a unit that is reset: its first update is
:math:`(1-\beta_1)/\sqrt{1-\beta_2}` (3.2 by default) times that of a new Adam.

Schedule-free optimizers keep two points per weight: the base iterate ``z`` and, inside the parameter, either
:math:`y = (1-\beta)z + \beta x` (training) or the average :math:`x` (evaluation). A weight that has just been born has
no past, so :math:`x = y = z`: ``z`` starts as a copy of the weight, and then :math:`x` is one, in both modes. The
weight that the average gives to the next iterate, :math:`c_{k+1}`, counts the steps of the whole parameter group and
goes on. Edits that are no new life (shrinking, noise, clipping) would have to move both points; they are refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import ASGD, LBFGS, SGD, Adafactor, Adagrad, Optimizer, Rprop

from pliant.errors import IllegalConfiguration, NotYetSupported

__all__ = [
    "Fresh",
    "Moment",
    "MomentSpec",
    "RestartPart",
    "check_declared",
    "check_optimizer",
    "check_units",
    "fresh_entries",
    "is_schedule_free",
    "moments",
    "restart",
    "restartable",
]

Fresh = float | complex | Literal["weights"]
"""What a new entry's moment is: a constant, or a copy of the weight."""

MomentSpec = Mapping[str, float | str] | None
"""Names of further moments: to their initial value, ``"weights"`` (a copy of them) or ``"keep"`` (leave alone)."""

RestartPart = Literal["all", "moments", "step"]
"""Which part of a parameter's state starts anew."""

_AT_ZERO = frozenset(
    [
        *("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "exp_inf"),  # Adam and its kin
        *("momentum_buffer", "square_avg", "grad_avg", "acc_delta"),  # SGD, Muon, RMSprop, Adadelta
        "avg_utility",  # UPGD
    ]
)
"""Moments that start at zero, whatever the optimizer: their names say what they are."""

_SCALARS = {"mu_product": 1.0, "mu": 1.0}
"""Scalars that do not start at zero (NAdam's product of momentum coefficients, ASGD's averaging weight)."""

_FACTORED = ("row_var", "col_var")

_SCHEDULE_FREE = frozenset(["AdamWScheduleFree", "RAdamScheduleFree", "SGDScheduleFree"])


@dataclass(frozen=True)
class Moment:
    """One state tensor of a parameter, element by element.

    Attributes:
        value: The tensor, of the parameter's shape.
        fresh: What its entries are for weights that have just been born.
    """

    value: Tensor
    fresh: Fresh


def check_optimizer(optimizer: Optimizer) -> None:
    """Refuse what is no optimizer, and optimizers beside which nothing may edit the weights.

    Raises:
        IllegalConfiguration: If it is no ``torch.optim.Optimizer``.
        NotYetSupported: For LBFGS.
    """
    kind = type(optimizer).__name__
    if type(optimizer).__module__.partition(".")[0] == "schedulefree" and not is_schedule_free(optimizer):
        raise NotYetSupported(
            f"{kind} moves the weights between its points in a way that Pliant does not follow. Use "
            f"{', '.join(sorted(_SCHEDULE_FREE))} of schedulefree."
        )
    if optimizer is None:
        raise IllegalConfiguration(
            "there is no optimizer yet (None). Make it first; a Trainer makes its own when training begins: pass "
            "callbacks=[pliant.huggingface.Protect(methods)] or [pliant.lightning.Protect(methods)] to it."
        )
    if not isinstance(optimizer, Optimizer):
        raise IllegalConfiguration(
            f"{kind} is not a torch.optim.Optimizer; pass the optimizer whose step() updates the model's parameters."
        )
    if isinstance(optimizer, LBFGS):
        raise NotYetSupported(
            f"{kind} keeps the differences between successive weights and gradients of the whole model; any edit would "
            f"make them wrong. {_USE}"
        )


_USE = (
    "Use SGD, Adam, AdamW, NAdam, RAdam, Adamax, RMSprop, Adagrad, Adadelta, ASGD, Rprop, SparseAdam, Muon or a "
    "schedule-free optimizer for the "
    "parameters that are edited."
)


def is_schedule_free(optimizer: object) -> bool:
    """Whether an optimizer keeps the base iterate ``z`` beside a parameter that is an average, or lies between both."""
    kinds = ((kind.__module__.partition(".")[0], kind.__name__) for kind in type(optimizer).__mro__)
    return any(package == "schedulefree" and name in _SCHEDULE_FREE for package, name in kinds)


def check_units(optimizer: Optimizer, parameter: Tensor, name: str) -> None:
    """Refuse, before the first step, an optimizer whose state for a parameter cannot be reset unit by unit.

    Raises:
        NotYetSupported: For Adafactor and parameters of two dimensions or more.
    """
    if isinstance(optimizer, Adafactor) and parameter.ndim > 1:
        raise _factored(optimizer, name)


def check_declared(declared: MomentSpec) -> None:
    """Refuse a declaration of moments that says nothing.

    Raises:
        IllegalConfiguration: Naming the entry.
    """
    for key, fresh in (declared or {}).items():
        if isinstance(fresh, bool) or not (isinstance(fresh, (int, float)) or fresh in ("weights", "keep")):
            raise IllegalConfiguration(
                f"moments={{{key!r}: {fresh!r}}}: give the value that a new entry starts from, such as 0.0, or "
                '"weights" if it starts as a copy of the weights, or "keep" if a reset must not touch it.'
            )


def moments(optimizer: Optimizer, parameter: Tensor, name: str, declared: MomentSpec = None) -> list[Moment]:
    """The element-wise moments of a parameter; none before the optimizer's first step.

    Not everything of the parameter's shape may be zeroed (ASGD's ``ax`` is an average of weights, Rprop's
    ``step_size`` a step size), so moments are known by name, and anything else is refused. Scalars, such as the step
    counter, belong to the whole tensor and are left alone.

    Args:
        optimizer: The optimizer that owns the parameter.
        parameter: The parameter.
        name: Its name, for errors.
        declared: Further names, as the user has declared them.

    Raises:
        NotYetSupported: If the optimizer keeps other state for the parameter.
    """
    found = []
    for key, value in optimizer.state.get(parameter, {}).items():
        fresh = _fresh(optimizer, parameter, key, declared)
        if fresh == "keep" or _is_plain(value) or (fresh is None and isinstance(value, Tensor) and value.ndim == 0):
            continue
        if isinstance(optimizer, Adafactor) and key in _FACTORED:
            raise _factored(optimizer, name)
        if fresh is None or not isinstance(value, Tensor) or value.shape != parameter.shape:
            what = f"of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"({type(value).__name__})"
            raise NotYetSupported(
                f"{type(optimizer).__name__} keeps a state {key!r} {what} for {name!r}, and how to reset it for single "
                "units is not known. If it has one entry per weight, say what a new weight's entry is: "
                f'attach(..., moments={{{key!r}: 0.0}}), or "weights" if it starts as a copy of the weights, or '
                f'"keep" if a reset must not touch it. Known without that: {", ".join(sorted(_AT_ZERO))}.'
            )
        found.append(Moment(value, fresh))
    return found


def fresh_entries(optimizer: Optimizer, parameter: Tensor, key: str, declared: MomentSpec = None) -> Tensor | None:
    """A state of a whole parameter as it is for weights that have just been born, of the parameter's shape.

    Args:
        optimizer: The optimizer that owns the parameter.
        parameter: The parameter, with its new values.
        key: The name of the state.
        declared: Further names, as the user has declared them.

    Returns:
        The entries, or ``None`` if they are not known.

    Example:
        >>> weight = torch.nn.Parameter(torch.ones(2))
        >>> fresh_entries(torch.optim.Adam([weight]), weight, "exp_avg")
        tensor([0., 0.])
    """
    fresh = _fresh(optimizer, parameter, key, declared)
    if fresh is None or fresh == "keep":
        return None
    if isinstance(fresh, str):
        return parameter.detach().clone()
    return torch.full_like(parameter.detach(), fresh)


def restartable(optimizer: Optimizer, parameter: Tensor, name: str, declared: MomentSpec = None) -> list[Moment]:
    """What starts anew when a whole parameter does: its moments, and Adafactor's factors, too.

    Raises:
        NotYetSupported: As :func:`moments`.
    """
    state: dict[str, Any] = optimizer.state.get(parameter, {})
    factors = {key: state[key] for key in _FACTORED if key in state} if isinstance(optimizer, Adafactor) else {}
    skipped: MomentSpec = {**(declared or {}), **dict.fromkeys(factors, "keep")}
    found = moments(optimizer, parameter, name, skipped)
    return found + [Moment(value, 0.0) for value in factors.values()]


def restart(
    optimizer: Optimizer,
    parameter: Tensor,
    name: str,
    declared: MomentSpec = None,
    live: Tensor | None = None,
    *,
    part: RestartPart = "all",
) -> None:
    """Put a parameter's state back to where it was before its first step: moments and scalar counters.

    Tensors are changed in place, because captured graphs and fused kernels hold on to them.

    Args:
        optimizer: The optimizer that owns the parameter.
        parameter: The parameter, with its new values.
        name: Its name, for errors.
        declared: Further names, as the user has declared them.
        live: ``None``, or a device scalar: nothing changes where it is 0.
        part: All of it, the moments only, or only the counters and what is computed from them.

    Raises:
        NotYetSupported: As :func:`moments`; nothing has been changed then.
    """
    state: dict[str, Any] = optimizer.state.get(parameter, {})
    group = _group_of(optimizer, parameter)
    for moment in restartable(optimizer, parameter, name, declared) if part != "step" else ():
        _overwrite(moment.value, parameter if isinstance(moment.fresh, str) else moment.fresh, live)
    for key, value in state.items() if part != "moments" else ():
        first = group["lr"] if isinstance(optimizer, ASGD) and key == "eta" else _SCALARS.get(key, 0.0)
        if isinstance(value, Tensor) and value.ndim == 0 and _fresh(optimizer, parameter, key, declared) is None:
            _overwrite(value, first, live)
        elif isinstance(value, (int, float)) and key == "step" and live is None:  # SparseAdam counts on the host
            state[key] = type(value)(0)
    dampened = isinstance(optimizer, SGD) and group["dampening"] and "momentum_buffer" in state
    if dampened and part != "step" and live is None:
        state["momentum_buffer"] = None  # its first gradient is not dampened: zero is not where it starts


def _overwrite(value: Tensor, fresh: Tensor | complex, live: Tensor | None) -> None:
    new = fresh.detach() if isinstance(fresh, Tensor) else torch.full((), fresh, dtype=value.dtype, device=value.device)
    value.copy_(new if live is None else torch.where(live.to(value.device) > 0, new, value))


def _fresh(optimizer: Optimizer, parameter: Tensor, key: str, declared: MomentSpec) -> Fresh | Literal["keep"] | None:
    """What a new weight's entry of a state is; ``None`` if that is not known."""
    if declared is not None and key in declared:
        return declared[key]  # type: ignore[return-value]
    if key in _AT_ZERO:
        return 0.0
    if isinstance(optimizer, Adagrad) and key == "sum":
        return _both(float(optimizer.defaults["initial_accumulator_value"]), parameter)
    if isinstance(optimizer, ASGD) and key == "ax":
        return "weights"
    if key == "z" and is_schedule_free(optimizer):
        return "weights"
    if isinstance(optimizer, Rprop) and key == "prev":
        return 0.0
    if isinstance(optimizer, Rprop) and key == "step_size":
        group = _group_of(optimizer, parameter)
        return _both(float(group.get("initial_lr", group["lr"])), parameter)  # a scheduler keeps the first one
    if isinstance(optimizer, Adafactor) and key == "variance":
        return 0.0
    return None


def _both(value: float, parameter: Tensor) -> float | complex:
    """For complex weights, PyTorch's optimizers treat the parts as two real numbers."""
    return complex(value, value) if parameter.is_complex() else value


def _group_of(optimizer: Optimizer, parameter: Tensor) -> dict[str, Any]:
    return next(group for group in optimizer.param_groups if any(p is parameter for p in group["params"]))


def _is_plain(value: Any) -> bool:
    """A number or a flag: nothing that could belong to single weights."""
    return value is None or isinstance(value, (bool, int, float, str))


def _factored(optimizer: Optimizer, name: str) -> NotYetSupported:
    return NotYetSupported(
        f"{type(optimizer).__name__} keeps, for {name!r}, only row and column means of the squared gradients, so a "
        "unit's past is mixed into what all other units share, and no edit can take it out: clearing the unit's own "
        "row would make its next update, and by the clipping of the whole tensor everybody else's, wrong by orders "
        f"of magnitude. {_USE}"
    )
