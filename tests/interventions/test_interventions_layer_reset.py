"""Which layers are reset, that nothing else is, and that the last layer is found without its name."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import pliant
from pliant import IllegalConfiguration, LayerReset, NoEffect
from pliant.units.depth import depths_by_order


class Backwards(nn.Module):
    """Layers registered in another order than they run in, a shared trunk and two heads."""

    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Linear(8, 1)
        self.policy = nn.Linear(8, 3)
        self.norm = nn.BatchNorm1d(8)
        self.trunk = nn.Linear(5, 8)
        self.first = nn.Linear(4, 5)

    def forward(self, x):
        hidden = torch.relu(self.norm(self.trunk(torch.relu(self.first(x)))))
        return self.policy(hidden), self.value(hidden)


def attached(method, model=None, optimizer=torch.optim.Adam, **kwargs):
    torch.manual_seed(0)
    model = Backwards() if model is None else model
    item = optimizer(model.parameters(), lr=1e-2)
    handle = pliant.attach(model, item, method, example_inputs=torch.randn(6, 4), **kwargs)
    return model, item, handle


def train(model, optimizer, steps: int, start: int = 0) -> None:
    for number in range(start, start + steps):
        torch.manual_seed(number)
        optimizer.zero_grad()
        sum(out.square().mean() for out in model(torch.randn(6, 4))).backward()
        optimizer.step()


def changed(model, before) -> set[str]:
    return {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}


HEADS = {"value.weight", "value.bias", "policy.weight", "policy.bias"}
TRUNK = {"trunk.weight", "trunk.bias", *(f"norm.{leaf}" for leaf in ("weight", "bias", "running_mean", "running_var"))}
ALL = HEADS | TRUNK | {"norm.num_batches_tracked", "first.weight", "first.bias"}


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        (1, HEADS),
        (2, HEADS | TRUNK | {"norm.num_batches_tracked"}),
        (3, ALL),
        ("policy", {"policy.weight", "policy.bias"}),
        ("policy, *.running_mean", {"policy.weight", "policy.bias", "norm.running_mean"}),
        ("*.bias", {"value.bias", "policy.bias", "norm.bias", "trunk.bias", "first.bias"}),
        (0, set()),
    ],
)
def test_the_last_layers_are_those_before_the_outputs_whatever_their_order_and_names(layers, expected):
    model, optimizer, handle = attached(LayerReset(layers))
    train(model, optimizer, 3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    handle.task_boundary()
    assert changed(model, before) == expected
    for name, parameter in model.named_parameters():
        state = optimizer.state[parameter]
        assert float(state["step"]) == (0 if name in expected else 3), name
        assert bool(state["exp_avg_sq"].any()) == (name not in expected), name
    if layers == 2:
        assert torch.equal(model.norm.running_var, torch.ones(8))
        assert torch.equal(model.norm.weight, torch.ones(8))
        assert int(model.norm.num_batches_tracked) == 0


def test_fresh_values_come_from_the_layers_own_distribution():
    model = nn.Sequential(nn.Linear(4, 400), nn.ReLU(), nn.Linear(400, 300))
    model, _, handle = attached(LayerReset(), model)
    with torch.no_grad():
        model[2].weight.fill_(7.0)
    handle.task_boundary()
    weight = model[2].weight.detach()
    assert float(weight.abs().max()) <= 400**-0.5
    assert float(weight.std()) == pytest.approx((400 * 3) ** -0.5, rel=0.02)
    first = weight.clone()
    handle.task_boundary()
    assert not torch.equal(first, model[2].weight)


def test_by_steps_it_needs_no_boundary_and_ignores_them():
    model, optimizer, handle = attached(LayerReset(1, every=4))
    train(model, optimizer, 3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    handle.task_boundary()
    assert not changed(model, before)
    train(model, optimizer, 6, start=3)
    found = [(event.step, event.action, set(event.tensors)) for event in handle.events]
    assert found == [(4, "assign", HEADS), (8, "assign", HEADS)]
    assert LayerReset().needs_boundary
    assert not LayerReset(every=4).needs_boundary
    assert not LayerReset().null().needs_boundary


def test_frozen_parameters_stay_even_where_their_layer_is_reset():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    model[2].weight.requires_grad_(False)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.1)
    handle = pliant.attach(model, optimizer, LayerReset(), example_inputs=torch.randn(3, 4))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    handle.task_boundary()
    assert changed(model, before) == {"2.bias"}


def test_each_optimizer_resets_its_own_layers_and_buffers_once():
    model = Backwards()
    heads = [*model.value.parameters(), *model.policy.parameters()]
    others = [p for p in model.parameters() if all(p is not q for q in heads)]
    optimizers = [torch.optim.SGD(heads, lr=0.1), torch.optim.SGD(others, lr=0.1)]
    handle = pliant.attach(model, optimizers, LayerReset(2, every=2), example_inputs=torch.randn(6, 4))
    sum(out.mean() for out in model(torch.randn(6, 4))).backward()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for _ in range(2):
        optimizers[0].step()
    assert changed(model, before) == HEADS
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for _ in range(2):
        optimizers[1].step()
    assert changed(model, before) == ALL - HEADS - {"norm.weight", "norm.bias"}  # these are back where they were
    assert torch.equal(model.norm.running_mean, torch.zeros(8))
    assert [set(event.tensors) for event in handle.events] == [HEADS, TRUNK | {"norm.num_batches_tracked"}]


def test_declared_units_have_no_graph_and_count_in_the_order_of_registration():
    model = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 2))
    declared = {"0": {"incoming": ["0"], "carried": "1", "outgoing": ["3"]}}
    units = pliant.declare_units(model, torch.randn(3, 4), declared)
    assert not units.depths
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    handle = pliant.attach(model, optimizer, LayerReset(), units=units)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    handle.task_boundary()
    assert changed(model, before) == {"3.weight", "3.bias"}
    found = pliant.find_units(model, torch.randn(3, 4)).depths
    assert depths_by_order(dict(model.named_parameters())) == dict(found)
    stacked = {name: torch.stack([value, value]) for name, value in model.named_parameters()}
    assert depths_by_order(stacked, 2) == dict(found)


@pytest.mark.parametrize(
    ("layers", "every", "error", "message"),
    [
        (-1, None, IllegalConfiguration, "layers=-1"),
        (1, 0, IllegalConfiguration, "every=0"),
        (4, None, IllegalConfiguration, "3 layers with weights: 1: 'value', 'policy'; 2: 'norm', 'trunk'; 3: 'first'"),
        ("head*", None, NoEffect, "layers='head\\*'.*1: 'value', 'policy'"),
    ],
)
def test_what_cannot_be_is_refused_with_what_was_found(layers, every, error, message):
    with pytest.raises(error, match=message):
        attached(LayerReset(layers, every=every))


def test_an_unknown_distribution_is_refused_at_attach():
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head, self.scale = nn.Linear(4, 8), nn.Linear(8, 2), nn.Parameter(torch.ones(2))

        def forward(self, x):
            return self.head(torch.relu(self.body(x))) * self.scale

    with pytest.raises(IllegalConfiguration, match="how 'scale' was initialised is not known"):
        attached(LayerReset(), Scaled())
    _, _, handle = attached(LayerReset(), Scaled(), init={"scale": "ones"})
    handle.task_boundary()
    (event,) = handle.events
    assert set(event.tensors) == {"head.weight", "head.bias", "scale"}
