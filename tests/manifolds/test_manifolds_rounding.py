"""Leaving without a kick: never in exact arithmetic; by rounding, grown as a departure grows, in floating point."""

from __future__ import annotations

import copy
import math
from functools import cache

import pytest
import torch
from nets import stationary, tanh_net
from torch import Tensor, nn

from pliant import manifolds
from pliant.manifolds import Clone, Stability

o = torch.optim

# ---- exact arithmetic
GRID = 2.0**-7
"""Weights are multiples of it, so that float64 has room for every product and sum of a step."""
LR = 2.0**-2
COARSE = GRID / LR


def on_grid(value: Tensor, grid: float) -> Tensor:
    return value.div(grid).round_().mul_(grid)  # the grid is a power of two: division and product are exact


def fixed_point(model: nn.Module, momentum: float = 0.0) -> o.Optimizer:
    """SGD in fixed point: gradients and their mean are rounded, so that every step ends on the grid of the weights."""
    optimizer = o.SGD(model.parameters(), lr=LR, momentum=momentum)
    kept = 2 * COARSE if momentum else COARSE  # half of what is kept is a multiple of the other

    def rounded(*_: object) -> None:
        for parameter in model.parameters():
            parameter.grad = on_grid(parameter.grad, COARSE)

    def shortened(*_: object) -> None:
        for state in optimizer.state.values():
            state["momentum_buffer"] = on_grid(state["momentum_buffer"], kept)

    optimizer.register_step_pre_hook(rounded)
    if momentum:
        optimizer.register_step_post_hook(shortened)
    return optimizer


@cache
def exact() -> tuple[Clone, nn.Module]:
    """Units in fours, and a point of another leaf: every entry is on the grid, every condition holds to the bit."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        base = nn.Sequential(
            nn.Linear(5, 3), nn.LeakyReLU(0.5), nn.Linear(3, 3), nn.LeakyReLU(0.5), nn.Linear(3, 2)
        ).double()
    with torch.no_grad():
        for parameter in base.parameters():
            parameter.copy_(on_grid(2 * parameter, 4 * GRID))  # a quarter of it is on the grid
    wide = manifolds.clone(base, 4, torch.randn(4, 5, dtype=torch.float64))
    leaf = copy.deepcopy(wide.model)
    sign = torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64)
    size = torch.randint(-20, 21, (3, 3), generator=torch.Generator().manual_seed(0)).double()
    with torch.no_grad():
        leaf[2].weight += GRID * torch.kron(size, torch.outer(sign, sign.flip(0)))
    return wide, leaf


def dyadic(step: int):
    """Sixteen samples in quarters, with targets of noise; what is summed over them is a mean without rounding."""
    draws = torch.Generator().manual_seed(step)
    x = torch.randint(-4, 5, (16, 5), generator=draws).double() / 4
    y = torch.randint(-4, 5, (16, 2), generator=draws).double() / 4
    return x, lambda output: (output - y).square().sum() / 32


@pytest.mark.parametrize(
    ("momentum", "steps"), [(0.0, 400), (0.5, 400), pytest.param(0.0, 30_000, marks=pytest.mark.wide)]
)
def test_in_exact_arithmetic_nothing_ever_leaves_and_the_leaf_is_kept_to_the_bit(momentum: float, steps: int):
    wide, leaf = exact()
    assert not manifolds.certificate(leaf, wide.partition, "block_constant").holds
    moved = {}

    def make(model: nn.Module) -> o.Optimizer:
        moved["by"] = model
        return fixed_point(model, momentum)

    found = manifolds.confinement(leaf, wide.partition, dyadic, lambda output: output.sum(), make, steps=steps)
    assert found.distance == 0.0
    assert found.residual_drift == 0.0
    assert found.residual_ratio == 1.0
    for name, parameter in moved["by"].named_parameters():
        assert torch.equal(on_grid(parameter.detach(), GRID), parameter), name  # nothing was rounded on the way
        assert not torch.equal(parameter, dict(leaf.named_parameters())[name])


def test_one_entry_that_is_off_leaves_in_the_same_arithmetic():
    wide, leaf = exact()
    off = copy.deepcopy(leaf)
    with torch.no_grad():
        off[2].weight[0, 0] += 0.25
    found = manifolds.confinement(off, wide.partition, dyadic, lambda output: output.sum(), fixed_point, steps=500)
    assert found.distance > 1.5 * manifolds.distance(off, wide.partition).relative > 0


# ---- floating point
@cache
def curvature() -> Stability:
    wide, x, y = stationary()
    return manifolds.stability(wide.model, wide.partition, (x, y), "mse", steps=1000)


def departed(lr: float, momentum: float, steps: int, every: int, size: float = 0.0) -> manifolds.Escape:
    """Gradient descent on the whole batch from the stationary point, after a kick along the most negative direction."""
    wide, x, y = stationary()
    kick = manifolds.kicked(wide.model, wide.partition, size, direction=curvature().direction) if size else None
    return manifolds.escape(
        wide.model, wide.partition, x, lambda output: (output - y).square().sum(1).mean() / 2,
        lambda m: o.SGD(m.parameters(), lr=lr, momentum=momentum), steps=steps, every=every, kick=kick,
    )  # fmt: skip


def rate_for(growth: float, momentum: float) -> float:
    """The step size at which a departure grows so fast."""
    return (growth + momentum / growth - 1 - momentum) / -curvature().smallest


MOMENTA = [0.0, 0.5, 0.9]


@pytest.mark.parametrize("momentum", MOMENTA)
def test_a_departure_grows_as_curvature_and_momentum_say(momentum: float):
    lr = rate_for(1.08, momentum)
    assert curvature().growth(lr, momentum) == pytest.approx(1.08, rel=1e-12)
    assert departed(lr, momentum, 140, 4, size=1e-8).rate == pytest.approx(math.log(1.08), rel=0.05)


def bound(growth: float, steps: int, dtype: torch.dtype = torch.float64) -> float:
    """Every step rounds each weight once more, and what has been rounded grows."""
    wide, _, _ = stationary()
    norm = math.hypot(*(float(p.detach().norm()) for p in wide.model.parameters()))
    return 8 * torch.finfo(dtype).eps * norm * (growth**steps - 1) / (growth - 1)


@pytest.mark.parametrize("momentum", MOMENTA)
def test_without_a_kick_there_is_rounding_that_grows_no_faster_than_a_departure(momentum: float):
    found = departed(rate_for(1.08, momentum), momentum, 140, 4)
    for step, value in zip(found.steps, found.distances, strict=True):
        assert value <= bound(1.08, step + 1)
    assert max(found.distances) <= 1e-9


@pytest.mark.wide
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_thirty_thousand_steps_stay_where_a_departure_grows_thirtyfold_in_them(momentum: float):
    growth = 30 ** (1 / 30_000)
    found = departed(rate_for(growth, momentum), momentum, 30_000, 3000)
    assert max(found.distances) < 1e-12


def unkicked(dtype: torch.dtype, steps: int) -> list[float]:
    """The distances on the way, in units of the weights' norm, of the network of the measured table."""
    own = tanh_net()
    wide = manifolds.clone(own.model, 3, own.batch, units=own.units)
    model, batch = wide.model.to(dtype), own.batch.to(dtype)
    target = torch.randn(64, 2, generator=torch.Generator().manual_seed(1)).to(dtype)
    optimizer, found = o.SGD(model.parameters(), lr=0.05), []
    for step in range(1, steps + 1):
        rows = torch.randint(0, 64, (16,), generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        (model(batch[rows]) - target[rows]).square().mean().backward()
        optimizer.step()
        if step % (steps // 5) == 0:
            found.append(manifolds.distance(model, wide.partition).relative)
    return found


def test_without_a_kick_gradient_descent_stays_for_long_in_double_precision():
    assert max(unkicked(torch.float64, 1000)) <= 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_in_a_shorter_type_a_few_steps_move_clones_by_no_more_than_rounding(dtype: torch.dtype):
    # copies are not rounded alike wherever they lie in a tensor; how far that grows is in docs/manifolds.md
    assert max(unkicked(dtype, 5)) <= 8 * torch.finfo(dtype).eps
