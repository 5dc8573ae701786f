"""The options of continual backprop: rates per group, a budget without memory, the bias, and what is random."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from zoo import ZOO

import pliant
from pliant import IllegalConfiguration, NoEffect
from pliant.interventions import ContinualBackprop


def attached(method, *, widths=(40, 30), seed=0, **more):
    torch.manual_seed(0)
    layers = [nn.Linear(5, widths[0]), nn.ReLU(), nn.Linear(widths[0], widths[1]), nn.ReLU(), nn.Linear(widths[1], 3)]
    model = nn.Sequential(*layers).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    handle = pliant.attach(model, optimizer, method, example_inputs=torch.randn(2, 5).double(), seed=seed, **more)
    return model, optimizer, handle


def train(model, optimizer, steps, start=0):
    for number in range(start, start + steps):
        generator = torch.Generator().manual_seed(number)
        optimizer.zero_grad()
        model(torch.randn(8, 5, generator=generator, dtype=torch.float64)).square().mean().backward()
        optimizer.step()


def test_each_group_has_the_rate_of_the_first_pattern_that_matches():
    method = ContinualBackprop(0.01, maturity_threshold=2, decay_rate=0.5, rates=(("2", 0.0), ("*", 0.05)))
    model, optimizer, handle = attached(method)
    train(model, optimizer, 200)
    assert "2" not in handle.num_resets
    by_rate = 40 * 200 / (1 / 0.05 + 2)  # a unit lives for 1 / rate steps and waits for maturity before
    assert 0.8 * by_rate < int(handle.num_resets["0"]) < 1.1 * by_rate


def test_a_rate_for_a_group_that_does_not_exist_is_refused():
    with pytest.raises(NoEffect, match="nowhere"):
        attached(ContinualBackprop(rates=(("nowhere", 0.1),)))
    with pytest.raises(IllegalConfiguration, match="rates"):
        attached(ContinualBackprop(rates=(("0", 1.5),)))


def test_a_budget_without_memory_replaces_as_many_on_average():
    """Carried over, the count is exact; drawn, it scatters around the same mean and depends on the seed."""
    counts = []
    for seed in range(12):
        method = ContinualBackprop(
            0.004, maturity_threshold=0, decay_rate=0.5, decide_every=1, sample_every=1, accumulate=False
        )
        model, optimizer, handle = attached(method, seed=seed)
        train(model, optimizer, 100)
        counts.append(sum(int(total) for total in handle.num_resets.values()))
        assert all(float(state["budget"]) == 0 for state in handle.state_dict()["state"][0].values())
    carried = attached(ContinualBackprop(0.004, maturity_threshold=0, decay_rate=0.5, decide_every=1, sample_every=1))
    train(carried[0], carried[1], 100)
    exact = sum(int(total) for total in carried[2].num_resets.values())
    assert len(set(counts)) > 3
    mean, spread = sum(counts) / len(counts), (0.004 * 70 * 100) ** 0.5
    assert abs(mean - exact) < 4 * spread / len(counts) ** 0.5


def test_random_utility_replaces_anybody_and_repeats_with_its_seed():
    method = ContinualBackprop(0.02, maturity_threshold=0, decay_rate=0.5, utility="random")
    picks = []
    for seed in (1, 1, 2):
        model, optimizer, handle = attached(method, seed=seed)
        train(model, optimizer, 120)
        picks.append([event.units for event in handle.events])
    assert picks[0] == picks[1] != picks[2]
    assert len({unit for units in picks[0] for unit in units}) > 25


def test_the_bias_keeps_what_a_constant_unit_sent():
    """Units whose activation never changes can go without a trace, if their share moves into the biases."""
    differences = {}
    for compensate in (False, True):
        options = {"rates": (("2", 0.0),), "compensate_bias": compensate}
        method = ContinualBackprop(0.3, maturity_threshold=2, decay_rate=0.5, **options)
        model, optimizer, handle = attached(method, widths=(6, 6))
        with torch.no_grad():
            model[0].weight.zero_()
            model[0].bias.copy_(torch.linspace(0.5, 2.0, 6))  # the same for all inputs
        optimizer.param_groups[0]["lr"] = 0.0
        x = torch.randn(4, 5).double()
        before = model(x)
        train(model, optimizer, 12)
        (event, *_) = [event for event in handle.events if event.group]
        assert 0 < len(event.units) < 6
        assert not model[2].weight[:, list(event.units)].any()
        differences[compensate] = float((model(x) - before).detach().abs().max())
    assert differences[True] < 1e-12
    assert differences[False] > 1e-2


@pytest.mark.parametrize("name", ["conv_bn_flatten", "transformer_post_norm", "lstm"])
@pytest.mark.parametrize("utility", ["zero_contribution", "adaptable_contribution", "adaptation"])
def test_every_kind_of_layer_has_these_utilities(name, utility):
    case = ZOO[name]
    model = case.model()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    method = ContinualBackprop(0.2, maturity_threshold=1, decay_rate=0.5, utility=utility, compensate_bias=True)
    handle = pliant.attach(model, optimizer, method, example_inputs=case.batch(), init=case.init)
    import zoo

    for number in range(6):
        optimizer.zero_grad()
        zoo.loss_of(zoo.call(model, case.batch(4, seed=number))).backward()
        optimizer.step()
    assert handle.num_resets
    assert all(p.isfinite().all() for p in model.parameters())


def test_deviations_are_measured_about_one_mean_only():
    both = [ContinualBackprop(utility="zero_contribution"), ContinualBackprop(utility="adaptable_contribution")]
    with pytest.raises(IllegalConfiguration, match="two methods measure deviations"):
        attached(both)


def test_utilities_without_activations_cannot_be_exact():
    with pytest.raises(IllegalConfiguration, match="exact"):
        attached(ContinualBackprop(utility="weight", exact=True))
    with pytest.raises(IllegalConfiguration, match="one of contribution, zero_contribution"):
        attached(ContinualBackprop(utility="anything"))
