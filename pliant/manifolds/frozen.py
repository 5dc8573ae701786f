r"""Frozen units, and what still moves them.

Where the derivative of a unit's activation function is zero on all samples, no gradient reaches its incoming weights:
:math:`\partial L/\partial \theta_{in} = \sum_n \delta_n f'(z_n)\, x_n = 0`. That is said of the samples that were
seen. Layers before the unit may move and wake it, and so may other data. The outgoing weights of a saturated tanh
still train, as a bias; those of a unit that gives zero do not.

An optimizer with a memory goes on moving a unit that has just frozen, for a while; weight decay moves it for ever.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from pliant.errors import IllegalConfiguration, NotYetSupported
from pliant.metrics import dead_mask, frozen_mask, gradient_dormant_mask
from pliant.observation import Observation, observe
from pliant.units import UnitGraph, UnitGroup

__all__ = ["FrozenGroup", "FrozenUnits", "drift_after_freezing", "frozen_in", "frozen_units"]


@dataclass(frozen=True)
class FrozenGroup:
    """Three different things that are often called frozen, unit by unit, ``[U]`` each.

    Attributes:
        frozen: :math:`|f'(z)|` within the tolerance on all samples: no gradient reaches the incoming weights.
        zero: The activation is exactly zero on all samples: no gradient reaches the outgoing weights.
        small_gradient: The mean absolute gradient of the incoming weights is small beside that of the other units;
            this depends on the loss, and says nothing about being trapped. ``None`` without a loss.
        num_parameters: Incoming weights and biases of frozen units.
        leakage: Largest :math:`|f'(z)|` of a unit counted as frozen; zero means exactly frozen on these samples.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))
        >>> with torch.no_grad():
        ...     _ = model[0].bias.copy_(torch.tensor([100.0, -100.0, 0.0]))
        >>> group = frozen_units(model, torch.randn(8, 2)).groups["0"]
        >>> group.frozen.tolist(), group.zero.tolist()  # saturated at 1 and -1: what reads these units still trains
        ([True, True, False], [False, False, False])
        >>> group.num_parameters, group.leakage  # two weights and a bias each
        (6, 0.0)
    """

    frozen: Tensor = field(repr=False)
    zero: Tensor = field(repr=False)
    small_gradient: Tensor | None = field(repr=False)
    num_parameters: int
    leakage: float


@dataclass(frozen=True)
class FrozenUnits:
    """What one batch shows; ``print`` gives a table.

    Attributes:
        groups: By name.
        unseen: Groups whose derivative is not known, with the reason.
        num_samples: Group name to the number of samples seen.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 1))
        >>> with torch.no_grad():
        ...     _ = model[0].bias.copy_(torch.tensor([-100.0, 100.0, 100.0])), model[2].bias.fill_(-1000.0)
        >>> seen = frozen_units(model, torch.randn(8, 2))
        >>> {name: int(group.frozen.sum()) for name, group in seen.groups.items()}, seen.num_samples
        ({'0': 1, '2': 3}, {'0': 8, '2': 8})
        >>> seen.num_parameters  # a unit with 2 weights and a bias, and three with 3 weights and a bias
        15
    """

    groups: Mapping[str, FrozenGroup]
    unseen: Mapping[str, str]
    num_samples: Mapping[str, int]

    @property
    def num_parameters(self) -> int:
        """Number of parameters that no gradient reaches because their unit is frozen."""
        return sum(group.num_parameters for group in self.groups.values())

    def __str__(self) -> str:
        rows = [f"{'group':<32} {'frozen':>8} {'zero':>8} {'small gradient':>15} {'parameters':>11} {'leakage':>9}"]
        for name, group in self.groups.items():
            units, small = len(group.frozen), group.small_gradient
            rows.append(
                f"{name:<32} {int(group.frozen.sum()):>4}/{units:<3} {int(group.zero.sum()):>4}/{units:<3} "
                f"{'-' if small is None else f'{int(small.sum())}/{units}':>15} {group.num_parameters:>11} "
                f"{group.leakage:>9.1e}"
            )
        return "\n".join([*rows, *(f"{name}: not seen, {reason}" for name, reason in self.unseen.items())])


def frozen_units(
    model: nn.Module,
    inputs: Any,
    loss: Callable[[Any], Tensor] | None = None,
    *,
    units: UnitGraph | None = None,
    tolerance: float = 0.0,
    where: str = "*",
) -> FrozenUnits:
    """The units whose activation function is flat on all samples of a batch.

    Independent of the scale of the loss and of the size of the batch. Nothing is changed.

    Args:
        model: The model, in the mode in which it trains.
        inputs: A batch.
        loss: From the output to a scalar, for the column on gradients only.
        units: The unit graph, if known.
        tolerance: Largest :math:`|f'(z)|` that counts as flat, in the derivative's own units. 0 for ReLU; a smooth
            activation is never exactly flat, and what is below a tolerance leaks that much.
        where: Which groups.

    Returns:
        The units, group by group.

    Raises:
        IllegalConfiguration: If the tolerance is negative.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
        >>> with torch.no_grad():
        ...     _ = model[0].bias.copy_(torch.tensor([-100.0, 100.0, 100.0]))
        >>> seen = frozen_units(model, torch.randn(8, 2))
        >>> seen.groups["0"].frozen.tolist(), seen.num_parameters
        ([True, False, False], 3)
    """
    return frozen_in(observe(model, inputs, loss, units=units, where=where), tolerance=tolerance)


def frozen_in(seen: Observation, *, tolerance: float = 0.0) -> FrozenUnits:
    """The same of a look that has been taken already.

    Args:
        seen: What :func:`pliant.observation.observe` saw.
        tolerance: As for :func:`frozen_units`.

    Returns:
        The units, group by group.

    Raises:
        IllegalConfiguration: If the tolerance is negative.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 1))
        >>> with torch.no_grad():
        ...     _ = model[0].weight.zero_(), model[0].bias.copy_(torch.tensor([0.0, 3.0]))
        >>> seen = observe(model, torch.randn(8, 2))  # one look, two tolerances: the derivative of tanh at 3 is 0.00987
        >>> [frozen_in(seen, tolerance=tolerance).groups["0"].frozen.tolist() for tolerance in (0.0, 0.01)]
        [[False, False], [False, True]]
    """
    if not tolerance >= 0:
        raise IllegalConfiguration(f"tolerance={tolerance}: it must be 0 or more.")
    groups, unseen, samples = {}, dict(seen.unseen), {}
    for name, group in seen.groups.items():
        if group.derivative_NU is None:
            unseen[name] = group.missing.get("derivatives", "its derivative is not known")
            continue
        frozen = frozen_mask(group.derivative_NU, tolerance)
        small = group.incoming_gradient_U
        worst = group.derivative_NU.abs().amax(0)[frozen]
        each = _incoming_parameters(seen.units[name], seen.weights)
        groups[name] = FrozenGroup(
            frozen,
            dead_mask(group.act_NU),
            None if small is None else gradient_dormant_mask(small),
            each * int(frozen.sum()),
            float(worst.max()) if len(worst) else 0.0,
        )
        samples[name] = group.num_samples
    return FrozenUnits(groups, unseen, samples)


def _incoming_parameters(group: UnitGroup, weights: Mapping[str, Tensor]) -> int:
    """Number of incoming weights and biases of one unit."""
    return sum(
        piece.width * weights[piece.name].numel() // weights[piece.name].shape[piece.dim]
        for piece in group.role("incoming")
        if piece.name in weights
    )


def drift_after_freezing(optimizer: Optimizer, parameter: Tensor, *, steps: int | None = None) -> Tensor:
    r"""How far an optimizer still moves a parameter whose gradient is zero from now on.

    Heavy-ball momentum: :math:`-\eta \frac{\mu}{1-\mu} b` in the limit (Nesterov: another factor :math:`\mu`). Adam:
    the exact sum over its remaining steps; about :math:`-\eta \frac{\rho}{1-\rho} m_0/\sqrt{v_0}` with
    :math:`\rho = \beta_1/\sqrt{\beta_2}`, when the bias corrections have gone and :math:`\epsilon` is small. Coupled
    decay under SGD is a linear recursion of weight and buffer, decoupled decay a shrinking weight: both end at zero
    weights, however long the unit has been frozen.

    Args:
        optimizer: The optimizer, with the state that it has now.
        parameter: One of its parameters.
        steps: Number of further steps; ``None``: the limit.

    Returns:
        The displacement, of the parameter's shape, entry by entry; it holds for the entries whose gradient is zero.

    Raises:
        IllegalConfiguration: If the optimizer does not own the parameter.
        NotYetSupported: For optimizers other than SGD, Adam and AdamW, and for coupled decay under Adam, whose steps
            no closed form describes.

    Example:
        >>> weight = nn.Parameter(torch.zeros(1))
        >>> optimizer = torch.optim.SGD([weight], lr=0.1, momentum=0.9)
        >>> weight.grad = torch.ones(1)
        >>> optimizer.step()
        >>> drift_after_freezing(optimizer, weight)
        tensor([-0.9000])
    """
    options = next((g for g in optimizer.param_groups if any(p is parameter for p in g["params"])), None)
    if options is None:
        raise IllegalConfiguration(f"the optimizer does not own the parameter of shape {tuple(parameter.shape)}.")
    if steps is not None and steps < 0:
        raise IllegalConfiguration(f"steps={steps}: give 0 or more, or None for the limit.")
    state = optimizer.state.get(parameter, {})
    value = parameter.detach()
    decay, lr = float(options.get("weight_decay", 0.0)), float(options["lr"])
    if options.get("maximize"):
        raise NotYetSupported("maximize=True: the drift of an optimizer that climbs is not known.")
    if type(optimizer) is SGD:
        return _drift_of_sgd(value, state.get("momentum_buffer"), lr, decay, options, steps)
    if type(optimizer) in (Adam, AdamW):
        decoupled = type(optimizer) is AdamW or bool(options.get("decoupled_weight_decay"))
        if decay and not decoupled:
            raise NotYetSupported(
                "weight decay coupled into Adam's gradient: the step is the sign of the weight, more or less, for "
                "ever, and no closed form describes it. Simulate it with a zero gradient."
            )
        return _drift_of_adam(value, state, lr, decay, options, steps)
    raise NotYetSupported(
        f"{type(optimizer).__name__}: what it does to a parameter without gradient is known for SGD, Adam and AdamW."
    )


def _drift_of_sgd(
    value: Tensor, buffer: Tensor | None, lr: float, decay: float, options: Mapping[str, Any], steps: int | None
) -> Tensor:
    mu, nesterov, damp = float(options["momentum"]), bool(options["nesterov"]), float(options["dampening"])
    is_first = buffer is None and mu != 0
    buffer = torch.zeros_like(value) if buffer is None else buffer
    if steps is None:
        if decay:
            return -value
        return -lr * mu / (1 - mu) * (mu if nesterov else 1.0) * buffer
    # one step: b' = mu b + (1 - damp) decay w;  w' = w - lr (b', or decay w + mu b' for Nesterov)
    gain = (1 - damp) * decay if mu else decay
    step = torch.tensor(
        [[1 - lr * (decay + mu * gain), -lr * mu * mu], [gain, mu]]
        if nesterov
        else [[1 - lr * gain, -lr * mu], [gain, mu]],
        dtype=torch.float64,
    )
    power = torch.linalg.matrix_power(step, steps)
    if is_first and steps and damp:  # the first buffer is the gradient itself, without dampening
        start = torch.tensor([[1 - lr * decay, 0.0], [decay, 0.0]], dtype=torch.float64)
        power = torch.linalg.matrix_power(step, steps - 1) @ start
    return (float(power[0, 0]) - 1) * value + float(power[0, 1]) * buffer


def _drift_of_adam(
    value: Tensor, state: Mapping[str, Any], lr: float, decay: float, options: Mapping[str, Any], steps: int | None
) -> Tensor:
    if steps is None and decay:
        return -value
    keep = 1 - lr * decay
    if not state:
        return value * (keep**steps - 1) if steps is not None else torch.zeros_like(value)
    one, two = (float(beta) for beta in options["betas"])
    eps, done = float(options["eps"]), float(state["step"])
    first, second = state["exp_avg"].double(), state["exp_avg_sq"].double()
    top = state["max_exp_avg_sq"].double() if options.get("amsgrad") else None
    if steps is None:
        rho = max(one / math.sqrt(two), one) if top is None else one
        if not rho < 1:
            raise NotYetSupported(f"betas={options['betas']}: the steps of a frozen weight do not fade.")
        steps = math.ceil(math.log(1e-17) / math.log(rho)) if rho else 1
    moved = value.double()
    for t in range(1, steps + 1):
        fade = 1 - two ** (done + t)
        root = ((two**t * second if top is None else torch.maximum(top, two**t * second)) / fade).sqrt() + eps
        moved = moved * keep - lr * one**t / (1 - one ** (done + t)) * first / root
    return (moved - value.double()).to(value)
