"""Where the tortoise is, when the hare goes back to it, and how the tortoise is evaluated."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import pliant
from pliant import FreshStart, HareAndTortoise, IllegalConfiguration, LayerReset


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))


def attached(method, model=None, optimizer=lambda p: torch.optim.Adam(p, lr=1e-2)):
    model = network() if model is None else model
    item = optimizer(model.parameters())
    return model, item, pliant.attach(model, item, method, example_inputs=torch.randn(6, 4))


def train(model, optimizer, start: int, stop: int) -> None:
    for number in range(start, stop):
        torch.manual_seed(number)
        optimizer.zero_grad()
        (model(torch.randn(6, 4)) - 1).square().mean().backward()
        optimizer.step()


def test_parameters_and_running_statistics_are_averaged_and_counters_are_not():
    model, optimizer, handle = attached(HareAndTortoise(0.75, every=3))
    slow = copy.deepcopy(model.state_dict())
    for number in range(2):
        train(model, optimizer, number, number + 1)
        slow = {name: torch.lerp(value.float(), model.state_dict()[name].float(), 0.25) for name, value in slow.items()}
    tortoise = handle.snapshot("tortoise")
    assert set(tortoise) == set(model.state_dict())
    for name, value in tortoise.items():
        if name != "1.num_batches_tracked":
            assert torch.allclose(value, slow[name]), name
            assert not torch.equal(value, model.state_dict()[name]), name
    moments = copy.deepcopy(optimizer.state_dict())
    assert float(moments["state"][0]["step"]) == 2
    train(model, optimizer, 2, 3)
    tortoise = handle.snapshot("tortoise")
    for name, value in model.state_dict().items():
        assert torch.equal(value, tortoise[name]) == (name != "1.num_batches_tracked"), name
    assert int(model[1].num_batches_tracked) == 3
    state = optimizer.state[model[0].weight]
    assert float(state["step"]) == 3  # the optimizer goes on
    assert state["exp_avg"].any()
    (event,) = handle.events
    assert (event.step, event.action, event.reason) == (3, "assign", "back to the tortoise")


def test_the_tortoise_is_evaluated_beside_the_hare():
    model, optimizer, handle = attached(HareAndTortoise(0.9, every=None))
    train(model, optimizer, 0, 20)
    x = torch.randn(5, 4)
    model.eval()
    tortoise = handle.snapshot("tortoise")
    out = torch.func.functional_call(model, tortoise, (x,))
    other = network().eval()
    other.load_state_dict(tortoise)
    assert torch.equal(out, other(x))
    assert not torch.allclose(out, model(x))
    tortoise["0.weight"].zero_()  # a copy: nothing of the handle's changes
    assert handle.snapshot("tortoise")["0.weight"].any()


def test_each_optimizer_moves_its_own_part_of_the_tortoise():
    model = network()
    optimizers = [torch.optim.SGD(model[:2].parameters(), lr=0.1), torch.optim.SGD(model[3].parameters(), lr=0.1)]
    handle = pliant.attach(model, optimizers, HareAndTortoise(0.5), example_inputs=torch.randn(6, 4))
    before = handle.snapshot("tortoise")
    (model(torch.randn(6, 4)) - 1).square().mean().backward()
    optimizers[1].step()
    after = handle.snapshot("tortoise")
    assert {name for name in after if not torch.equal(after[name], before[name])} == {"3.weight", "3.bias"}
    optimizers[0].step()
    assert not torch.equal(handle.snapshot("tortoise")["1.running_mean"], before["1.running_mean"])


def test_what_is_reset_would_come_back_so_both_are_refused():
    for other in (FreshStart(), LayerReset(), LayerReset("3", every=5)):
        with pytest.raises(IllegalConfiguration, match="brings it back"):
            attached([other, HareAndTortoise()])
        attached([other.null(), HareAndTortoise()])[2].detach()
        attached([other, HareAndTortoise(every=None)])[2].detach()


def test_a_snapshot_that_does_not_exist_or_is_gone_is_refused():
    _, _, handle = attached(HareAndTortoise())
    with pytest.raises(IllegalConfiguration, match=r"none of the methods keeps a network called 'hare'.*'tortoise'"):
        handle.snapshot("hare")
    handle.detach()
    with pytest.raises(IllegalConfiguration, match="detached"):
        handle.snapshot("tortoise")
    _, _, handle = attached(LayerReset())
    with pytest.raises(IllegalConfiguration, match="none at all"):
        handle.snapshot("tortoise")
    _, _, handle = attached([HareAndTortoise(), HareAndTortoise(0.5)])
    with pytest.raises(IllegalConfiguration, match="2 of the methods keep"):
        handle.snapshot("tortoise")


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (HareAndTortoise(decay=1.0), r"decay=1.0 .* in \[0, 1\)"),
        (HareAndTortoise(decay=-0.1), "decay=-0.1"),
        (HareAndTortoise(every=0), "every=0"),
    ],
)
def test_what_cannot_be_is_refused(method, message):
    with pytest.raises(IllegalConfiguration, match=message):
        attached(method)
