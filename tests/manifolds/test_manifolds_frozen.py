"""Frozen units by the derivative of their activation, and what moves them without a gradient."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from pliant import manifolds
from pliant.errors import IllegalConfiguration, NotYetSupported


def network(activation: nn.Module) -> tuple[nn.Module, torch.Tensor]:
    """Unit 0 is far on the flat left, unit 1 far on the right."""
    model = nn.Sequential(nn.Linear(5, 6), activation, nn.Linear(6, 3)).double()
    with torch.no_grad():
        model[0].bias[:2] = torch.tensor([-400.0, 400.0])
    return model, torch.randn(32, 5).double()


def loss(output: torch.Tensor) -> torch.Tensor:
    return (output - 1).square().mean()


def test_a_dead_relu_is_frozen_on_both_sides_and_a_saturated_tanh_only_on_one():
    relu, x = network(nn.ReLU())
    seen = manifolds.frozen_units(relu, x, loss)
    assert seen.groups["0"].frozen.tolist() == [True] + [False] * 5
    assert seen.groups["0"].zero.tolist() == [True] + [False] * 5
    assert seen.num_parameters == 5 + 1
    tanh, x = network(nn.Tanh())
    found = manifolds.frozen_units(tanh, x, loss).groups["0"]
    assert found.frozen.tolist() == [True, True] + [False] * 4
    assert not found.zero.any()
    assert found.num_parameters == 2 * 6
    for model, units, outgoing in ((relu, [0], False), (tanh, [0, 1], True)):
        loss(model(x)).backward()
        for unit in units:
            assert float(model[0].weight.grad[unit].abs().max()) == 0.0
            assert float(model[0].bias.grad[unit].abs()) == 0.0
            assert (float(model[2].weight.grad[:, unit].abs().max()) > 0) == outgoing


def test_a_smooth_activation_leaks_what_the_tolerance_lets_through():
    model, x = network(nn.Tanh())
    with torch.no_grad():
        model[0].bias[0] = -12.0
    assert manifolds.frozen_units(model, x).groups["0"].frozen.tolist() == [False, True] + [False] * 4
    found = manifolds.frozen_units(model, x, tolerance=1e-3).groups["0"]
    assert found.frozen.tolist() == [True, True] + [False] * 4
    assert 0 < found.leakage <= 1e-3


@pytest.mark.parametrize(("scale", "rows"), [(1e-12, 32), (1.0, 64), (1e12, 32)])
def test_neither_the_scale_of_the_loss_nor_the_batch_size_matters(scale: float, rows: int):
    model, x = network(nn.ReLU())
    seen = manifolds.frozen_units(model, torch.cat([x, x])[:rows], lambda output: scale * loss(output)).groups["0"]
    assert seen.frozen.tolist() == [True] + [False] * 5


def test_small_gradients_are_another_thing():
    model, x = network(nn.Tanh())
    with torch.no_grad():
        model[2].weight[:, 3] = 1e-9  # its gradient is small, and its activation is not flat
    seen = manifolds.frozen_units(model, x, loss).groups["0"]
    assert seen.small_gradient is not None
    assert seen.small_gradient[3]
    assert not seen.frozen[3]


def test_plain_gradient_descent_leaves_a_frozen_unit_where_it_is_to_the_bit():
    model, x = network(nn.ReLU())
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(5):
        optimizer.zero_grad()
        loss(model(x)).backward()
        optimizer.step()
    assert torch.equal(model[0].weight[0], before["0.weight"][0])
    assert not torch.equal(model[0].weight[2], before["0.weight"][2])


MOVED = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, dampening=0.3),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.8, nesterov=True),
    "momentum and decay": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.05),
    "dampening and decay": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, dampening=0.5, weight_decay=0.05),
    "nesterov and decay": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.8, nesterov=True, weight_decay=0.05),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "AMSGrad": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
}


@pytest.mark.parametrize("history", [0, 5])
@pytest.mark.parametrize("name", MOVED)
def test_the_drift_is_what_the_optimizer_does_without_a_gradient(name: str, history: int):
    weight = nn.Parameter(torch.randn(7, dtype=torch.float64))
    optimizer = MOVED[name]([weight])
    for _ in range(history):
        weight.grad = torch.randn(7, dtype=torch.float64)
        optimizer.step()
    start = weight.detach().clone()
    predicted = {steps: manifolds.drift_after_freezing(optimizer, weight, steps=steps) for steps in (0, 1, 2, 25)}
    limit = manifolds.drift_after_freezing(optimizer, weight)
    weight.grad = torch.zeros(7, dtype=torch.float64)
    for step in range(26):
        if step in predicted:
            torch.testing.assert_close(weight.detach() - start, predicted[step], rtol=1e-9, atol=1e-13)
        optimizer.step()
    if "decay" in name or name == "AdamW":
        assert torch.equal(limit, -start)
        return
    for _ in range(500):
        optimizer.step()
    torch.testing.assert_close(weight.detach() - start, limit, rtol=1e-9, atol=1e-13)


def test_the_closed_forms_of_the_limits():
    weight = nn.Parameter(torch.zeros(3, dtype=torch.float64))
    heavy = torch.optim.SGD([weight], lr=0.1, momentum=0.9)
    weight.grad = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)
    heavy.step()
    limit = manifolds.drift_after_freezing(heavy, weight)
    torch.testing.assert_close(limit, -0.1 * 0.9 / (1 - 0.9) * weight.grad, rtol=1e-12, atol=0)
    adam = torch.optim.Adam([weight], lr=0.1, eps=1e-30)
    for _ in range(20_000):  # until the bias corrections have gone
        adam.step()
    state, rho = adam.state[weight], 0.9 / 0.999**0.5
    expected = -0.1 * rho / (1 - rho) * state["exp_avg"] / state["exp_avg_sq"].sqrt()
    torch.testing.assert_close(manifolds.drift_after_freezing(adam, weight), expected, rtol=1e-6, atol=0)


def test_what_has_no_closed_form_is_refused():
    weight = nn.Parameter(torch.zeros(2))
    with pytest.raises(NotYetSupported, match="coupled into Adam"):
        manifolds.drift_after_freezing(torch.optim.Adam([weight], weight_decay=0.1), weight)
    with pytest.raises(NotYetSupported, match="RMSprop"):
        manifolds.drift_after_freezing(torch.optim.RMSprop([weight]), weight)
    with pytest.raises(IllegalConfiguration, match="does not own"):
        manifolds.drift_after_freezing(torch.optim.SGD([weight], lr=0.1), nn.Parameter(torch.zeros(2)))
    with pytest.raises(IllegalConfiguration, match="tolerance=-1"):
        manifolds.frozen_units(*network(nn.ReLU()), tolerance=-1.0)
