"""An optimizer that forgets goes on as a new one would; its clock alone can start again; weights are never touched."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import pliant
from pliant import IllegalConfiguration, NoEffect, NotYetSupported, OptimizerReset

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9),
    "sgd_dampened": lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9, dampening=0.5),
    "adam": lambda p: torch.optim.Adam(p, lr=1e-2, amsgrad=True),
    "adam_fused": lambda p: torch.optim.Adam(p, lr=1e-2, fused=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2),
    "nadam": lambda p: torch.optim.NAdam(p, lr=1e-2),
    "radam": lambda p: torch.optim.RAdam(p, lr=1e-2),
    "adamax": lambda p: torch.optim.Adamax(p, lr=1e-2),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1e-3, momentum=0.9, centered=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=1e-2, lr_decay=0.1, initial_accumulator_value=0.3),
    "adadelta": lambda p: torch.optim.Adadelta(p, lr=0.5),
    "asgd": lambda p: torch.optim.ASGD(p, lr=1e-2, t0=2),
    "rprop": lambda p: torch.optim.Rprop(p, lr=1e-3),
    "adafactor": lambda p: torch.optim.Adafactor(p, lr=1e-2),
}


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2)).double()


def train(model, optimizer, start: int, stop: int) -> None:
    for number in range(start, stop):
        torch.manual_seed(number)
        optimizer.zero_grad()
        (model(torch.randn(6, 4).double()) - 1).square().mean().backward()
        optimizer.step()


def attached(method, optimizer: str = "adam", model=None):
    model = network() if model is None else model
    item = OPTIMIZERS[optimizer](model.parameters())
    return model, item, pliant.attach(model, item, method, example_inputs=torch.randn(3, 4).double())


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_afterwards_it_goes_on_as_a_new_optimizer(optimizer):
    model, item, handle = attached(OptimizerReset(), optimizer)
    train(model, item, 0, 5)
    before = copy.deepcopy(model.state_dict())
    handle.task_boundary()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    other = copy.deepcopy(model)
    new = OPTIMIZERS[optimizer](other.parameters())
    train(model, item, 5, 10)
    train(other, new, 5, 10)
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.allclose(p, q, rtol=1e-10, atol=1e-12)
    (event,) = handle.events
    assert (event.action, event.tensors) == ("restart", ("0.weight", "0.bias", "2.weight", "2.bias"))


def test_the_clock_alone_makes_the_steps_that_follow_a_change_small():
    """Adam-Rel: with its moments, but t = 1, the update is m_1 / (1 - beta1) over sqrt(v_1 / (1 - beta2))."""
    model, item, handle = attached(OptimizerReset(part="step"))
    train(model, item, 0, 50)
    handle.task_boundary()
    weight = model[2].weight
    state = {key: value.clone() for key, value in item.state[weight].items()}
    assert float(state["step"]) == 0
    assert state["exp_avg"].any()
    before = weight.detach().clone()
    train(model, item, 50, 51)
    m = 0.9 * state["exp_avg"] + 0.1 * weight.grad
    v = 0.999 * state["exp_avg_sq"] + 0.001 * weight.grad.square()
    v = torch.maximum(v, state["max_exp_avg_sq"])
    expected = before - 0.01 * (m / 0.1) / ((v / 0.001).sqrt() + 1e-8)
    assert torch.allclose(weight, expected, rtol=1e-9)


def test_moments_alone_keep_the_clock():
    model, item, handle = attached(OptimizerReset(part="moments"))
    train(model, item, 0, 5)
    handle.task_boundary()
    for state in item.state.values():
        assert float(state["step"]) == 5
        assert not state["exp_avg"].any()
        assert not state["exp_avg_sq"].any()


def test_nadam_and_asgd_take_what_they_compute_from_the_clock_with_it():
    for optimizer, key, first in (("nadam", "mu_product", 1.0), ("asgd", "mu", 1.0), ("asgd", "eta", 0.01)):
        model, item, handle = attached(OptimizerReset(part="step"), optimizer)
        train(model, item, 0, 9)
        assert float(item.state[model[0].weight][key]) != first
        handle.task_boundary()
        assert float(item.state[model[0].weight][key]) == pytest.approx(first)


def test_where_and_when():
    model, item, handle = attached(OptimizerReset(every=3, where="2"))
    train(model, item, 0, 2)
    handle.task_boundary()
    train(model, item, 2, 4)
    assert float(item.state[model[0].weight]["step"]) == 4
    assert float(item.state[model[2].weight]["step"]) == 1
    assert [event.step for event in handle.events] == [3]
    assert OptimizerReset().needs_boundary
    assert not OptimizerReset(every=3).needs_boundary
    assert not OptimizerReset().null().needs_boundary


def test_before_the_first_step_there_is_nothing_to_forget():
    model, item, handle = attached(OptimizerReset())
    handle.task_boundary()
    train(model, item, 0, 1)
    assert float(item.state[model[0].weight]["step"]) == 1


def test_an_optimizer_that_keeps_nothing_is_left_out_if_another_does():
    model = network()
    optimizers = [torch.optim.SGD(model[0].parameters(), lr=0.1), torch.optim.Adam(model[2].parameters())]
    handle = pliant.attach(model, optimizers, OptimizerReset(), example_inputs=torch.randn(3, 4).double())
    model(torch.randn(6, 4).double()).sum().backward()
    for item in optimizers:
        item.step()
    handle.task_boundary()
    assert float(optimizers[1].state[model[2].weight]["step"]) == 0


@pytest.mark.parametrize(
    ("method", "optimizer", "error", "message"),
    [
        (OptimizerReset(every=0), "adam", IllegalConfiguration, "every=0"),
        (OptimizerReset(part="time"), "adam", IllegalConfiguration, "'all', 'moments', 'step' or 'none'"),
        (OptimizerReset(where="head"), "adam", NoEffect, "where='head'"),
        (OptimizerReset(part="step"), "sgd", NoEffect, "SGD makes the same update at whatever step"),
        (OptimizerReset(part="step"), "rmsprop", NoEffect, "RMSprop makes the same update at whatever step"),
    ],
)
def test_what_would_do_nothing_is_refused(method, optimizer, error, message):
    with pytest.raises(error, match=message):
        attached(method, optimizer)


def test_plain_sgd_is_refused():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(NoEffect, match="SGD without momentum keeps no state"):
        pliant.attach(model, optimizer, OptimizerReset(), example_inputs=torch.randn(3, 4).double())


def test_unknown_state_is_refused_before_anything_changes():
    class Strange(torch.optim.SGD):
        def step(self, closure=None):
            super().step(closure)
            for group in self.param_groups:
                for parameter in group["params"]:
                    self.state[parameter].setdefault("memory", torch.ones(3, 3))

    model = network()
    item = Strange(model.parameters(), lr=0.1, momentum=0.9)
    handle = pliant.attach(model, item, OptimizerReset(), example_inputs=torch.randn(3, 4).double())
    train(model, item, 0, 2)
    before = item.state[model[0].weight]["momentum_buffer"].clone()
    with pytest.raises(NotYetSupported, match="'memory'"):
        handle.task_boundary()
    assert torch.equal(item.state[model[0].weight]["momentum_buffer"], before)
