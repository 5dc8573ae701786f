"""Failures measured in published code, each as a test of its own.

They concern units, moments, norms and monitors; what each test guards against is said in its first line.
"""

from __future__ import annotations

import torch
import zoo
from torch import nn
from torch.nn import functional as F

import pliant
from pliant.interventions import ContinualBackprop, ReDo


def train(model, optimizer, steps, size=16, features=5, seed=0):
    for step in range(steps):
        generator = torch.Generator().manual_seed(1000 * seed + step)
        optimizer.zero_grad()
        zoo.loss_of(model(torch.randn(size, features, generator=generator))).backward()
        optimizer.step()


def test_adam_moments_of_recycled_units_are_cleared():
    """Published: ReDo re-draws weights but leaves Adam's moments (7.0 before, 7.0 after)."""
    model = zoo.ZOO["mlp"].model()
    with torch.no_grad():
        model[0].bias[3] = -100.0  # unit 3 is dead
    optimizer = torch.optim.Adam(model.parameters(), lr=0.0)
    train(model, optimizer, 2)
    for kind in ("exp_avg", "exp_avg_sq"):
        optimizer.state[model[0].weight][kind].fill_(7.0)
    handle = pliant.attach(model, optimizer, ReDo(tau=0.0, every=1, where="0"), example_inputs=torch.randn(2, 5))
    train(model, optimizer, 1)
    assert [event.units for event in handle.events] == [(3,)]
    for kind in ("exp_avg", "exp_avg_sq"):
        moment = optimizer.state[model[0].weight][kind]
        assert not moment[3].any()
        assert (moment[[0, 1, 2, 4, 5, 6, 7]] > 6).all()


def test_a_reborn_filter_takes_no_giant_step():
    """Published: exp_avg kept and exp_avg_sq zeroed makes the next update about a thousand times too large."""
    model = zoo.ZOO["conv_bn_flatten"].model()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    handle = pliant.attach(
        model, optimizer, ContinualBackprop(0.05, maturity_threshold=10), example_inputs=torch.randn(4, 3, 4, 4)
    )
    largest = 0.0
    for step in range(60):
        before = [p.detach().clone() for p in model.parameters()]
        hit = len(handle.events)
        optimizer.zero_grad()
        zoo.loss_of(model(zoo.ZOO["conv_bn_flatten"].batch(8, seed=step))).backward()
        optimizer.step()
        if len(handle.events) == hit:  # a step without resets: all change is the optimizer's
            largest = max(
                largest, *(float((p.detach() - q).abs().max()) for p, q in zip(model.parameters(), before, strict=True))
            )
    assert handle.num_resets
    assert largest < 5e-3  # Adam moves an entry by about its step size


def test_the_fresh_weights_are_trained():
    """Published: a reset layer is a new tensor that the optimizer never sees."""
    model = zoo.ZOO["mlp"].model()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    pointers = [(id(p), p.data_ptr()) for p in model.parameters()]
    handle = pliant.attach(model, optimizer, ReDo(tau=1.0, every=3), example_inputs=torch.randn(2, 5))
    train(model, optimizer, 3)
    assert handle.num_resets
    assert [(id(p), p.data_ptr()) for p in model.parameters()] == pointers
    after_reset = [p.detach().clone() for p in model.parameters()]
    handle.detach()
    train(model, optimizer, 2, seed=1)
    assert all(not torch.equal(p, q) for p, q in zip(model.parameters(), after_reset, strict=True))


def test_resets_come_after_the_step_and_not_inside_backward():
    """Published: resets inside a backward hook, so the old unit's gradient is applied to the new weights."""
    model = zoo.ZOO["mlp"].model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    handle = pliant.attach(model, optimizer, ReDo(tau=1.0, every=1, where="0"), example_inputs=torch.randn(2, 5))
    x = torch.randn(16, 5)
    plain = [p.detach().clone().requires_grad_() for p in model.parameters()]
    names = [name for name, _ in model.named_parameters()]
    zoo.loss_of(torch.func.functional_call(model, dict(zip(names, plain, strict=True)), (x,))).backward()
    optimizer.zero_grad()
    zoo.loss_of(model(x)).backward()
    for p, q in zip(model.parameters(), plain, strict=True):
        assert torch.equal(p, q)  # backward changed no weight
        assert torch.equal(p.grad, q.grad)  # and every gradient is that of the old network
    optimizer.step()
    assert len(handle.events) == 1
    for event in handle.events:
        for piece in handle.units[event.group].role("outgoing"):
            columns = dict(model.named_parameters())[piece.name].index_select(piece.dim, torch.tensor(event.units))
            assert not columns.any()  # exactly zero, whatever the gradient was


def test_norm_gains_and_statistics_of_reset_units_are_restored():
    """Published: norm layers' gains and running statistics are not reset with their units."""
    model = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with torch.no_grad():
        model[1].weight.fill_(3.0)
        model[1].bias.copy_(torch.tensor([1.0, -50.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]))  # unit 1 is dead
        model[1].running_mean.fill_(9.0)
        model[1].running_var.fill_(9.0)
    handle = pliant.attach(model, optimizer, ReDo(tau=0.0, every=1), example_inputs=torch.randn(4, 5))
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    train(model, optimizer, 1)
    assert [event.units for event in handle.events] == [(1,)]
    norm = model[1]
    assert (norm.weight[1], norm.bias[1], norm.running_mean[1], norm.running_var[1]) == (1.0, 0.0, 0.0, 1.0)
    others = [0, 2, 3, 4, 5, 6, 7]
    assert (norm.weight[others] == 3).all()
    assert (norm.running_var[others] > 7).all()


def test_functional_activations_are_seen():
    """Published: hooks on module types only, so an F.relu network with every unit dead is called healthy."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.fc2 = nn.Linear(5, 8), nn.Linear(8, 3)

        def forward(self, x):
            return self.fc2(F.relu(self.fc1(x)))

    model = Net()
    with torch.no_grad():
        model.fc1.bias.fill_(-100.0)
    units = pliant.find_units(model, torch.randn(2, 5))
    act = pliant.stats.capture(model, units, torch.randn(32, 5))["fc1"]
    assert pliant.metrics.dead_fraction(act) == 1.0


def test_tokens_are_samples_and_not_units():
    """Published: activations [B, T, D] counted as T units (8 x 10 x 128 reported as 10)."""
    model = nn.Sequential(nn.Linear(16, 128), nn.ReLU(), nn.Linear(128, 4))
    units = pliant.find_units(model, torch.randn(8, 10, 16))
    assert units["0"].size == 128
    assert pliant.stats.capture(model, units, torch.randn(8, 10, 16))["0"].shape == (80, 128)


def test_the_transformer_encoder_is_not_reported_empty():
    """Published: nn.TransformerEncoder gets no hooks at all and a perfect score."""
    case = zoo.ZOO["transformer_post_norm"]
    model = case.model()
    with torch.no_grad():
        model.encoder.layers[1].linear1.bias.fill_(-100.0)
    units = pliant.find_units(model, case.batch())
    act = pliant.stats.capture(model, units, case.batch(8))
    assert pliant.metrics.dead_fraction(act["encoder.layers.1.linear1"]) == 1.0
    assert pliant.metrics.dead_fraction(act["encoder.layers.0.linear1"]) < 0.5


def test_neighbours_in_a_transformer_are_not_taken_for_producers_and_consumers():
    """Published: discovery by registration order pairs q with k, k with v and the last layer with the next query."""
    case = zoo.ZOO["vit"]
    units = pliant.find_units(case.model(), case.batch())
    for group in units.select("*"):
        names = {piece.name for piece in group.slices}
        assert not ("block.attn.qkv.weight" in names and "block.fc1.weight" in names)
        if group.site == "hidden":
            assert names == {"block.fc1.weight", "block.fc1.bias", "block.fc2.weight"}


def test_the_budget_does_not_accrue_before_maturity():
    """Published re-implementations: the budget grows while nothing is mature and wipes the layer at t = m."""
    model = zoo.ZOO["mlp"].model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    method = ContinualBackprop(0.01, maturity_threshold=100)
    handle = pliant.attach(model, optimizer, method, example_inputs=torch.randn(2, 5))
    train(model, optimizer, 100)
    assert not handle.num_resets
    assert all(float(entry["budget"]) == 0 for entry in handle.state_dict()["state"][0].values())
    train(model, optimizer, 25, seed=1)
    assert sum(int(total) for total in handle.num_resets.values()) <= 0.01 * 14 * 25 + 1


def test_young_units_are_not_replaced_for_being_young():
    """Published re-implementations: ranking by the raw running mean kills the youngest units first."""
    model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    method = ContinualBackprop(0.02, maturity_threshold=5, decay_rate=0.99, decide_every=1)
    handle = pliant.attach(model, optimizer, method, example_inputs=torch.randn(2, 5))
    state = handle._memory[0].units["0"]
    train(model, optimizer, 60)
    with torch.no_grad():  # seven old units of little use, one young unit of much use, just mature
        model[0].weight.fill_(0.1)
        model[0].bias.fill_(1.0)
        model[2].weight.fill_(1.0)
        model[2].weight[:, 4] = 3.0
    state["activation"].copy_(torch.full((8,), 1.0) * (1 - 0.99**60))
    state["age"].fill_(60)
    state["activation"][4] = 1.0 * (1 - 0.99**6)
    state["age"][4] = 6
    state["budget"].fill_(0.95)
    train(model, optimizer, 1)
    replaced = list(handle.events)[-1]
    assert replaced.step == 61
    assert 4 not in replaced.units


def test_a_fractional_budget_is_not_dropped():
    """Published (accumulate=False): 1.9 units a step asked for gives exactly 1.0."""
    model = nn.Sequential(nn.Linear(5, 19), nn.ReLU(), nn.Linear(19, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    method = ContinualBackprop(0.1, maturity_threshold=0, decide_every=1)
    handle = pliant.attach(model, optimizer, method, example_inputs=torch.randn(2, 5))
    train(model, optimizer, 101)
    assert int(handle.num_resets["0"]) in range(186, 193)  # 1.9 a step; a unit replaced now is mature at the next


def test_asking_for_more_units_than_are_mature_replaces_those_that_are():
    """Published: topk crashes when the budget exceeds the eligible units."""
    model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    method = ContinualBackprop(1.0, maturity_threshold=2, decide_every=4)
    handle = pliant.attach(model, optimizer, method, example_inputs=torch.randn(2, 5))
    train(model, optimizer, 40)
    assert all(p.isfinite().all() for p in model.parameters())
    assert all(len(event.units) <= 8 for event in handle.events)


def test_layers_without_bias_and_with_any_activation_are_protected():
    """Published: bias=False crashes at the first replacement; gelu, silu and mish are ValueErrors."""
    for act in (nn.GELU(), nn.SiLU(), nn.Mish(), nn.ELU(), nn.SELU(), nn.LeakyReLU(), nn.Sigmoid(), nn.PReLU(8)):
        model = nn.Sequential(nn.Linear(5, 8, bias=False), act, nn.Linear(8, 3, bias=False))
        optimizer = torch.optim.Adam(model.parameters())
        handle = pliant.attach(
            model, optimizer, ContinualBackprop(0.1, maturity_threshold=2), example_inputs=torch.randn(2, 5)
        )
        train(model, optimizer, 12)
        assert int(handle.num_resets["0"]) > 0, act


def test_a_changing_batch_size_is_no_problem():
    """Published: a running mean over the batch axis fails at another batch size."""
    model = zoo.ZOO["mlp"].model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    handle = pliant.attach(
        model, optimizer, ContinualBackprop(0.1, maturity_threshold=2), example_inputs=torch.randn(2, 5)
    )
    for size in (1, 7, 32, 3):
        train(model, optimizer, 4, size=size)
    assert handle.num_resets


def test_ages_and_utilities_are_not_parameters_of_the_model():
    """Published: utilities and ages are registered as parameters, and end up in state_dict() and the optimizer."""
    model = zoo.ZOO["mlp"].model()
    keys, count = list(model.state_dict()), len(list(model.parameters()))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    pliant.attach(model, optimizer, ContinualBackprop(), example_inputs=torch.randn(2, 5))
    assert list(model.state_dict()) == keys
    assert len(list(model.parameters())) == count
