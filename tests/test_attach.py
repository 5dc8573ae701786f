"""The handle: what it shows, saves, refuses and leaves behind."""

from __future__ import annotations

import gc
import weakref
from functools import cache

import pytest
import torch
import zoo
from zoo import ZOO

import pliant
from pliant import IllegalConfiguration
from pliant.interventions import L2, ContinualBackprop, FreshStart, ReDo, ShrinkAndPerturb


@cache
def units():
    return pliant.find_units(ZOO["mlp"].model(), ZOO["mlp"].batch())


def attached(methods, seed=0, **more):
    model = ZOO["mlp"].model()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    return model, optimizer, pliant.attach(model, optimizer, methods, units=units(), seed=seed, **more)


def train(model, optimizer, steps):
    for step in range(steps):
        optimizer.zero_grad()
        zoo.loss_of(model(ZOO["mlp"].batch(8, seed=step))).backward()
        optimizer.step()


def test_units_are_found_from_example_inputs():
    model = ZOO["mlp"].model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for inputs in (torch.randn(3, 5), (torch.randn(3, 5),), {"input": torch.randn(3, 5)}):
        handle = pliant.attach(model, optimizer, ReDo(), example_inputs=inputs)
        assert [group.name for group in handle.units] == ["0", "2"]
        handle.detach()


def test_missing_and_wrong_arguments():
    model = ZOO["mlp"].model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(IllegalConfiguration, match="example_inputs"):
        pliant.attach(model, optimizer, ReDo())
    with pytest.raises(IllegalConfiguration, match="no intervention"):
        pliant.attach(model, optimizer, [ReDo], units=units())
    with pytest.raises(IllegalConfiguration, match=r"torch\.optim\.Optimizer"):
        pliant.attach(model, model, ReDo(), units=units())
    other = ZOO["swiglu"].model()
    with pytest.raises(IllegalConfiguration, match="does not have"):
        pliant.attach(other, torch.optim.SGD(other.parameters(), lr=0.1), ReDo(), units=units())
    wider = torch.nn.Sequential(
        torch.nn.Linear(5, 4), torch.nn.ReLU(), torch.nn.Linear(4, 6), torch.nn.Tanh(), torch.nn.Linear(6, 3)
    )
    with pytest.raises(IllegalConfiguration, match="shape"):
        pliant.attach(wider, torch.optim.SGD(wider.parameters(), lr=0.1), ReDo(), units=units())


def test_no_protection_is_an_empty_list():
    model, optimizer, handle = attached([])
    plain = ZOO["mlp"].model()
    plain_optimizer = torch.optim.Adam(plain.parameters(), lr=1e-2)
    train(model, optimizer, 3)
    train(plain, plain_optimizer, 3)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), plain.parameters(), strict=True))
    assert handle.num_steps == 3
    assert float(handle.penalty()) == 0


def test_the_same_method_is_not_attached_twice():
    model, optimizer, handle = attached(ReDo(where="0"))
    with pytest.raises(IllegalConfiguration, match=r"ReDo is attached to this model already \(<Handle: ReDo; attached"):
        pliant.attach(model, optimizer, [L2(0.1), ReDo(every=7)], units=units())
    other = pliant.attach(model, optimizer, ReDo(where="2"), units=units())  # another part of the model
    look = pliant.attach(model, optimizer, ReDo(), units=units(), dry_run=True)
    for item in (handle, other, look):
        assert len(repr(item)) < 80
        item.detach()
    twice = pliant.attach(model, optimizer, [ReDo(), ReDo()], units=units())  # in one list it is meant
    assert repr(twice) == "<Handle: ReDo, ReDo#2; attached, step 0, 0 events>"


def test_methods_act_in_the_order_of_the_list():
    ends = []
    for methods in ([FreshStart()], [L2(50.0), FreshStart()], [FreshStart(), ShrinkAndPerturb(0.5, 0.0)]):
        model, optimizer, handle = attached(methods)
        train(model, optimizer, 2)
        handle.task_boundary()
        ends.append(model[2].weight.detach().clone())
    assert torch.equal(ends[0], ends[1])  # a fresh start last forgets what came before
    assert torch.allclose(ends[2], 0.5 * ends[1])


def test_a_detached_handle_says_so_and_frees_the_model():
    model, optimizer, handle = attached([ContinualBackprop(), ReDo(every=2)])
    train(model, optimizer, 3)
    handle.detach()
    handle.detach()
    assert "detached" in repr(handle)
    with pytest.raises(IllegalConfiguration, match="detached"):
        handle.task_boundary()
    with pytest.raises(IllegalConfiguration, match="detached"):
        handle.penalty()
    model.eval()
    train(model, optimizer, 2)  # nobody minds any more
    assert handle.num_steps == 3
    alive = weakref.ref(model)
    del model, optimizer, handle
    gc.collect()
    assert alive() is None


def test_two_handles_on_one_model():
    model, optimizer, first = attached(ReDo(tau=1.0, every=2))
    second = pliant.attach(model, optimizer, L2(0.1), units=units())
    train(model, optimizer, 4)
    assert first.num_steps == second.num_steps == 4
    first.detach()
    train(model, optimizer, 1)
    assert (first.num_steps, second.num_steps) == (4, 5)


def test_a_state_of_other_methods_groups_or_versions_is_refused_and_changes_nothing():
    model, optimizer, handle = attached(ContinualBackprop(0.1, maturity_threshold=1))
    train(model, optimizer, 5)
    mine = handle.state_dict()
    _, _, other = attached(ContinualBackprop(0.2, maturity_threshold=1))
    for state, word in (
        (other.state_dict(), "interventions"),
        ({**mine, "version": 99}, "version"),
        ({**mine, "groups": {"x": 1}}, "unit groups"),
        ({"model": 1}, "no state of a pliant handle"),
    ):
        with pytest.raises(IllegalConfiguration, match=word):
            handle.load_state_dict(state)
    now = handle.state_dict()
    assert now["schedules"] == mine["schedules"]
    for name, entries in mine["state"][0].items():
        assert all(torch.equal(value, now["state"][0][name][key]) for key, value in entries.items())


def test_the_saved_state_is_a_copy():
    model, optimizer, handle = attached(ContinualBackprop(0.1, maturity_threshold=1))
    train(model, optimizer, 3)
    saved = handle.state_dict()
    age = saved["state"][0]["0"]["age"].clone()
    train(model, optimizer, 3)
    assert torch.equal(saved["state"][0]["0"]["age"], age)


def test_the_global_random_state_is_never_touched():
    model, optimizer, handle = attached([ReDo(tau=1.0, every=1), ShrinkAndPerturb(0.9, 0.1, every=1), FreshStart()])
    state = torch.get_rng_state()
    zoo.loss_of(model(ZOO["mlp"].batch(8))).backward()
    optimizer.step()
    handle.task_boundary()
    assert handle.num_resets
    assert torch.equal(torch.get_rng_state(), state)


def test_boundaries_are_counted_and_saved():
    model, _, handle = attached(FreshStart(every=2))
    start = model[0].weight.detach().clone()
    handle.task_boundary()
    assert torch.equal(model[0].weight, start)
    saved = handle.state_dict()
    handle.task_boundary()
    assert not torch.equal(model[0].weight, start)
    again_model, _, again = attached(FreshStart(every=2))
    again.load_state_dict(saved)
    again.task_boundary()
    assert torch.equal(again_model[0].weight, model[0].weight)


def test_events_are_bounded_and_readable():
    model, optimizer, handle = attached(ReDo(tau=1.0, every=1))
    train(model, optimizer, 3)
    events = list(handle.events)
    assert {event.step for event in events} == {1, 2, 3}
    assert all(list(event.units) == sorted(set(event.units)) for event in events)
    assert "units reset so far" in repr(handle.events)
    assert len(pliant.events.EventLog(maxlen=2)) == 0
    log = pliant.events.EventLog(maxlen=2)
    for step in range(5):
        log.step = step
        log.add("0", "reset", torch.tensor([step]), None, None, "why")
    assert [event.step for event in log] == [3, 4]
    assert int(log.num_resets()["0"]) == 5


def test_init_overrides_what_a_reset_draws():
    for init, bound in (
        (None, 5**-0.5),
        ("kaiming_uniform", (6 / 5) ** 0.5),
        ({"0.weight": "lecun_uniform"}, (3 / 5) ** 0.5),
    ):
        model, optimizer, handle = attached(ReDo(tau=1.0, every=1, where="0"), init=init)
        for group in optimizer.param_groups:
            group["lr"] = 0.0
        drawn = []
        for _ in range(40):
            train(model, optimizer, 1)
            drawn.append(model[0].weight.detach()[list(list(handle.events)[-1].units)].flatten())
        largest = torch.cat(drawn).abs().max()
        assert 0.9 * bound < largest <= bound


def test_continual_backprop_on_sampled_steps_only():
    """Ages and the budget run on every step, activations are read on some."""
    model, optimizer, handle = attached(ContinualBackprop(0.05, maturity_threshold=4, sample_every=4))
    heard = []
    for step in range(12):
        train(model, optimizer, 0)
        optimizer.zero_grad()
        zoo.loss_of(model(ZOO["mlp"].batch(8, seed=step))).backward()
        heard.append(bool(handle._collector.accumulators["0"].heard))
        optimizer.step()
    assert heard == [step % 4 == 3 for step in range(12)]
    assert handle.num_steps == 12
    assert handle.num_resets


# ---- optimizers whose step calls their parent's ----
class Inherited(torch.optim.Adam):
    """A user's own optimizer: PyTorch runs all hooks of the inner step, too, once plain Adam has been used."""

    fails = 0

    def step(self, closure=None):
        loss = super().step(closure)
        if self.fails:
            self.fails -= 1
            raise RuntimeError("out of luck")
        return loss


@pytest.mark.parametrize("used_before", [False, True])
def test_a_step_inside_a_step_counts_once(used_before):
    model = ZOO["mlp"].model()
    if used_before:
        torch.optim.Adam(model.parameters())
    optimizer = Inherited(model.parameters(), lr=1e-2)
    handle = pliant.attach(model, optimizer, ReDo(tau=1.0, every=2), units=units())
    watch = pliant.monitor(model, optimizer, ["dead_fraction"], units=units(), every=1)
    train(model, optimizer, 4)
    assert handle.num_steps == 4
    assert [reading.step for reading in watch.history] == [1, 2, 3, 4]
    assert {event.step for event in handle.events} == {2, 4}


def test_after_a_step_that_raised_the_next_one_counts():
    model = ZOO["mlp"].model()
    torch.optim.Adam(model.parameters())
    optimizer = Inherited(model.parameters(), lr=1e-2)
    handle = pliant.attach(model, optimizer, L2(0.1), units=units())
    optimizer.fails = 2
    for _ in range(2):
        with pytest.raises(RuntimeError, match="out of luck"):
            train(model, optimizer, 1)
    assert handle.num_steps == 0
    train(model, optimizer, 3)
    assert handle.num_steps == 3
