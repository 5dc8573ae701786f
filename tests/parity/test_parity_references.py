"""The product against slow re-derivations of the published methods, step by step, in float64."""

from __future__ import annotations

import pytest
import torch
from parity_tools import OPTIMIZERS, Mlp, assert_equal, drawer, events, step

import pliant
from pliant.interventions import ContinualBackprop, ReDo
from references.continual_backprop import PublishedTest, SlowContinualBackprop
from references.redo import SlowReDo


def pair(optimizer: str):
    torch.manual_seed(1)
    fast = Mlp().double()
    slow = Mlp().double()
    slow.load_state_dict(fast.state_dict())
    return fast, OPTIMIZERS[optimizer](fast.parameters()), slow, OPTIMIZERS[optimizer](slow.parameters())


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(("rate", "threshold"), [(0.03, 10), (0.02, 25), (0.25, 3), (0.1, 0)])
def test_continual_backprop_is_the_papers_algorithm(optimizer, rate, threshold):
    fast, fast_optimizer, slow, slow_optimizer = pair(optimizer)
    settings = {"replacement_rate": rate, "maturity_threshold": threshold, "decay_rate": 0.97}
    method = ContinualBackprop(exact=True, decide_every=1, **settings)
    units = pliant.find_units(Mlp(), torch.randn(2, 6))
    handle = pliant.attach(fast, fast_optimizer, method, units=units, seed=11)
    reference = SlowContinualBackprop(list(slow.linears), slow_optimizer, drawer(11), **settings)
    for number in range(120):
        step(fast, fast_optimizer, number)
        reference.after_step(step(slow, slow_optimizer, number))
        if number % 20 == 19:
            assert events(handle) == reference.replaced, f"step {number}"
            assert_equal(fast, fast_optimizer, slow, slow_optimizer)
    assert len(reference.replaced) >= 10
    state = handle.state_dict()["state"][0]
    for layer in (0, 1):
        entry = state[f"linears.{layer}"]
        assert entry["age"].tolist() == reference.age[layer]
        assert float(entry["budget"]) == pytest.approx(reference.budget[layer], abs=1e-9)
        assert torch.allclose(entry["activation"], torch.tensor(reference.utility[layer], dtype=torch.float64))


@pytest.mark.parametrize("compensate", [False, True])
@pytest.mark.parametrize(
    ("utility", "exact"),
    [
        *[(name, True) for name in ("zero_contribution", "adaptable_contribution", "feature_by_input")],
        *[("contribution", True), ("weight", False), ("adaptation", False)],
    ],
)
def test_the_other_utilities_and_the_bias_are_those_of_the_slow_form(utility, exact, compensate):
    fast, fast_optimizer, slow, slow_optimizer = pair("adam")
    settings = {"replacement_rate": 0.04, "maturity_threshold": 8, "decay_rate": 0.9}
    options = {"utility": utility, "compensate_bias": compensate}
    method = ContinualBackprop(exact=exact, decide_every=1, **settings, **options)
    handle = pliant.attach(fast, fast_optimizer, method, example_inputs=torch.randn(2, 6).double(), seed=11)
    reference = SlowContinualBackprop(list(slow.linears), slow_optimizer, drawer(11), **settings, **options)
    for number in range(80):
        step(fast, fast_optimizer, number)
        reference.after_step(step(slow, slow_optimizer, number))
    assert events(handle) == reference.replaced
    assert_equal(fast, fast_optimizer, slow, slow_optimizer)
    assert len(reference.replaced) >= 10


def test_the_selection_is_that_of_the_published_code():
    """The authors' test function, fed with the same activations and weights, picks the same units at the same steps."""
    fast, optimizer, _, _ = pair("sgd")
    settings = {"replacement_rate": 0.04, "maturity_threshold": 12, "decay_rate": 0.99}
    units = pliant.find_units(Mlp(), torch.randn(2, 6))
    method = ContinualBackprop(exact=True, decide_every=1, **settings)
    handle = pliant.attach(fast, optimizer, method, units=units)
    published = [PublishedTest(13, **settings), PublishedTest(10, **settings)]
    wanted = []
    weights: list[torch.Tensor] = []
    # the published code runs after the step and before anything is replaced: read the weights there
    first = optimizer.register_step_post_hook(lambda *_: weights.append(None))
    optimizer._optimizer_step_post_hooks.move_to_end(first.id, last=False)

    def remember(*_):
        weights[:] = [layer.weight.detach().clone() for layer in fast.linears]

    optimizer._optimizer_step_post_hooks[first.id] = remember
    for number in range(200):
        features = step(fast, optimizer, number)
        for layer in (0, 1):
            if chosen := published[layer](features[layer], weights[layer + 1]):
                wanted.append((number + 1, layer, tuple(chosen)))
    assert events(handle) == wanted
    assert len(wanted) > 20


@pytest.mark.parametrize("rate", [1e-3, 4e-3, 0.02])
def test_the_default_schedule_is_late_by_at_most_one_period(rate):
    """Deciding now and then: never ahead of the exact schedule, and behind it by less than one period's accrual."""
    settings = {"replacement_rate": rate, "maturity_threshold": 20, "decay_rate": 0.97}
    fast, fast_optimizer, slow, slow_optimizer = pair("sgd")
    units = pliant.find_units(Mlp(), torch.randn(2, 6))
    batched = pliant.attach(fast, fast_optimizer, ContinualBackprop(**settings), units=units)
    exact = pliant.attach(slow, slow_optimizer, ContinualBackprop(exact=True, decide_every=1, **settings), units=units)
    for number in range(600):
        step(fast, fast_optimizer, number)
        step(slow, slow_optimizer, number)
        for group in units if number % 3 == 0 else ():
            a, b = (int(h.num_resets.get(group.name, torch.tensor(0))) for h in (batched, exact))
            assert abs(a - b) <= 1, f"{group.name}: {a} against {b} at step {number}"
    for group in units:
        mature = 1 / (1 + 20 * rate)  # in the steady state a unit waits for maturity, then 1 / rate steps on average
        expected = rate * group.size * mature * (600 - 20)
        got = int(batched.num_resets.get(group.name, torch.tensor(0)))
        assert expected * 0.85 - 2 <= got <= expected * 1.15 + 2, (group.name, got, expected)


def test_the_running_mean_of_activations_ranks_like_the_exact_product():
    """The cheap utility is not the paper's product, but with slowly changing weights it picks nearly the same units."""
    settings = {"replacement_rate": 0.01, "maturity_threshold": 30, "decay_rate": 0.9, "decide_every": 1}
    picks = []
    for exact in (False, True):
        fast, optimizer, _, _ = pair("sgd")
        for group in optimizer.param_groups:
            group["lr"] = 1e-4
        handle = pliant.attach(
            fast, optimizer, ContinualBackprop(exact=exact, **settings), example_inputs=torch.randn(2, 6).double()
        )
        for number in range(60):
            step(fast, optimizer, number)
        picks.append(events(handle))
    assert picks[0] == picks[1]
    assert len(picks[0]) >= 4


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(("tau", "every"), [(0.5, 5), (0.9, 1), (0.0, 2)])
def test_redo_is_the_papers_algorithm(optimizer, tau, every):
    fast, fast_optimizer, slow, slow_optimizer = pair(optimizer)
    with torch.no_grad():
        for model in (fast, slow):
            model.linears[0].bias[:3] = -100.0  # dead from the start, so that tau = 0 has something to do
    units = pliant.find_units(Mlp(), torch.randn(2, 6))
    handle = pliant.attach(fast, fast_optimizer, ReDo(tau=tau, every=every), units=units, seed=11)
    reference = SlowReDo(list(slow.linears), slow_optimizer, drawer(11), tau=tau, every=every)
    for number in range(40):
        step(fast, fast_optimizer, number)
        reference.after_step(step(slow, slow_optimizer, number))
    assert events(handle) == reference.replaced
    assert_equal(fast, fast_optimizer, slow, slow_optimizer)
    assert reference.replaced
