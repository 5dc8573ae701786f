"""Forward passes of Pliant's own leave no trace; their results are those of the model."""

from __future__ import annotations

import copy

import pytest
import torch
import zoo
from torch import nn
from torch._dynamo.testing import CompileCounter
from zoo import ZOO

import pliant
from pliant.forward import call, outputs, relative_change
from pliant.interventions import ReDo


def noisy() -> nn.Module:
    """Batch norm, dropout, and modules in different modes."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3))
    model[3].eval()
    return model


@pytest.mark.parametrize("training", [False, True])
def test_a_call_changes_nothing(training):
    model, x = noisy(), torch.randn(16, 5)
    state, modes = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    random = torch.get_rng_state()
    got = call(model, x, training=training)
    assert torch.equal(torch.get_rng_state(), random)
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    model.train(training)
    want = model(x)  # draws from the same random state
    assert torch.equal(got, want)
    assert training == (not torch.equal(model[1].running_mean, state["1.running_mean"]))  # the plain call does


def test_other_parameters_and_gradients():
    model, x = noisy(), torch.randn(4, 5)
    other = {name: torch.randn_like(p).requires_grad_() for name, p in model.named_parameters()}
    twin = copy.deepcopy(model).eval()
    twin.load_state_dict({**model.state_dict(), **{k: v.detach() for k, v in other.items()}})
    out = call(model, x, other)
    assert torch.allclose(out, twin(x))
    out.sum().backward()
    assert other["0.weight"].grad is not None
    assert model[0].weight.grad is None
    with torch.no_grad():
        assert not call(model, x, other).requires_grad
    partial = call(model, x, {"4.bias": torch.zeros(3)})
    assert torch.allclose(partial, call(model, x) - model[4].bias, atol=1e-6)
    with pytest.raises(pliant.IllegalConfiguration, match=r"no parameter or buffer 'nothing'"):
        call(model, x, {"nothing": torch.zeros(3)})


def test_a_module_with_two_names_gets_its_own_weights_back():
    layer = nn.Linear(5, 5)
    model, weight = nn.Sequential(layer, nn.ReLU(), layer), layer.weight
    out = call(model, torch.ones(1, 5), {"0.weight": torch.eye(5), "0.bias": torch.ones(5)})
    assert out.tolist() == [[3.0] * 5]
    assert layer.weight is weight
    assert model[2].weight is weight


def test_tied_parameters_are_replaced_together():
    model = nn.ModuleDict({"a": nn.Linear(4, 4, bias=False), "b": nn.Linear(4, 4, bias=False)})
    model["b"].weight = model["a"].weight
    model.forward = lambda x: model["b"](model["a"](x))
    assert torch.equal(call(model, torch.ones(1, 4), {"a.weight": 2 * torch.eye(4)}), torch.full((1, 4), 4.0))


def test_nobody_records_it():
    """Neither the statistics of an intervention nor a monitor: training mode and gradients make no difference."""
    ends = []
    for disturbed in (False, True):
        model = ZOO["mlp"].model()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        handle = pliant.attach(model, optimizer, ReDo(tau=0.9, every=1), example_inputs=torch.randn(2, 5))
        watch = pliant.monitor(model, optimizer, ["effective_rank"], units=handle.units, every=1)
        ctx = handle._contexts[0][0]
        for step in range(4):
            optimizer.zero_grad()
            loss = zoo.loss_of(model(ZOO["mlp"].batch(8, seed=step)))
            if disturbed:
                ctx.call(100 * ZOO["mlp"].batch(32, seed=50 + step), training=True)
            loss.backward()
            optimizer.step()
        ends.append((copy.deepcopy(model.state_dict()), watch.latest, list(handle.events)))
    assert all(torch.equal(a, b) for a, b in zip(ends[0][0].values(), ends[1][0].values(), strict=True))
    assert ends[0][1] == ends[1][1]
    assert ends[0][2] == ends[1][2]
    assert ends[0][2]


def test_modes_and_hooks_survive_a_model_that_raises():
    model = noisy()
    with pytest.raises(RuntimeError):
        call(model, torch.randn(4, 7))
    assert not model[3].training
    assert model[1].training
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    handle = pliant.attach(model, optimizer, ReDo(tau=1.0, every=1), example_inputs=torch.randn(4, 5))
    zoo.loss_of(model(torch.randn(8, 5))).backward()
    optimizer.step()
    assert handle.num_resets


def test_a_compiled_module_is_not_compiled_again():
    model, x = noisy(), torch.randn(8, 5)
    counter = CompileCounter()
    model.compile(backend=counter)
    model(x)
    graphs = counter.frame_count
    call(model, x)
    call(model, x, training=True)
    model(x)
    assert counter.frame_count == graphs


def test_the_relative_change_of_outputs():
    before = [torch.tensor([2.0, -4.0]), torch.tensor([10.0])]
    after = [torch.tensor([2.0, -3.0]), torch.tensor([11.0])]
    assert float(relative_change(before, after)) == 0.25
    assert float(relative_change(before, before)) == 0
    with pytest.raises(pliant.IllegalConfiguration, match="no floating-point output"):
        relative_change([], [])
    model = noisy()
    (out,) = outputs(model, torch.randn(3, 5))
    assert not out.requires_grad
