"""The log: what every edit leaves behind, in bounded memory, and who is told."""

from __future__ import annotations

import json

import pytest
import torch
import zoo
from torch import nn
from zoo import ZOO

import pliant
from pliant.events import EventLog
from pliant.interventions import L2, ContinualBackprop, FreshStart, ReDo, ShrinkAndPerturb


def attached(methods, model=None, **more):
    model = ZOO["mlp"].model() if model is None else model
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    return model, optimizer, pliant.attach(model, optimizer, methods, example_inputs=torch.ones(2, 5), **more)


def train(model, optimizer, start, stop):
    for step in range(start, stop):
        optimizer.zero_grad()
        zoo.loss_of(model(ZOO["mlp"].batch(8, seed=step))).backward()
        optimizer.step()


def note(log: EventLog, step: int, group: str = "fc") -> None:
    log.step = step
    log.add(group, "reset", torch.tensor([step]), None, None, "why")


# ---- edits of whole tensors ----
def test_an_edit_at_every_step_is_one_event():
    model, optimizer, handle = attached([L2(0.1), ShrinkAndPerturb(0.9, 0.1, every=3)])
    train(model, optimizer, 0, 7)
    names = tuple(dict(model.named_parameters()))
    decay, *perturbed = sorted(handle.events, key=lambda event: event.intervention)
    assert (decay.intervention, decay.action, decay.step, decay.last_step, decay.count) == ("L2", "shrink", 1, 7, 7)
    assert decay.tensors == names
    found = sorted((event.step, event.action, event.count) for event in perturbed)
    assert found == [(3, "add_noise", 1), (3, "shrink", 1), (6, "add_noise", 1), (6, "shrink", 1)]
    assert all(event.tensors == names for event in perturbed)
    assert len(handle.events) == 5


def test_runs_of_two_optimizers_do_not_interrupt_each_other():
    case = ZOO["actor_critic"]
    model = case.model()
    actor = torch.optim.SGD([*model.trunk.parameters(), *model.actor.parameters()], lr=1e-2)
    critic = torch.optim.SGD(model.critic.parameters(), lr=1e-2)
    handle = pliant.attach(model, [actor, critic], L2(0.1), example_inputs=case.batch())
    for step in range(6):
        zoo.loss_of(model(case.batch(seed=step))).backward()
        critic.step()
        if step % 2:
            actor.step()
    assert [(event.step, event.last_step, event.count) for event in handle.events] == [(1, 6, 6), (1, 3, 3)]


def test_a_boundary_is_an_event_of_its_own():
    model, optimizer, handle = attached(FreshStart())
    for step in range(3):
        train(model, optimizer, 5 * step, 5 * step + 5)
        handle.task_boundary()
    assert [(event.step, event.action, len(event.tensors)) for event in handle.events] == [
        (5, "assign", 6),
        (10, "assign", 6),
        (15, "assign", 6),
    ]


def test_memory_is_bounded_and_the_two_kinds_do_not_push_each_other_out():
    log = EventLog(maxlen=3)
    for step in range(50):
        note(log, step)
        log.intervention = "L2"
        log.add_tensors("shrink", ["a", "b"])
        log.intervention = f"method {step % 2}"
        log.add_tensors("assign", ["a"], reason=f"at {step}")
        log.intervention = ""
    assert len(log) <= 6
    assert [event.step for event in log if event.units] == [47, 48, 49]
    assert len(log._open) == 3  # one for each method and action, whatever the reasons
    assert int(log.num_resets()["fc"]) == 50
    steps = [event.step for event in log]
    assert steps == sorted(steps)


# ---- who is told ----
def test_a_subscriber_is_told_at_once_until_it_leaves():
    model, optimizer, handle = attached([ReDo(tau=1.0, every=2), L2(0.1)])
    seen = []

    def callback(event):
        piece = handle.units[event.group].role("outgoing")[0] if event.group else None
        written = piece is None or not dict(model.named_parameters())[piece.name][:, list(event.units)].any()
        seen.append((handle.num_steps, event, written))

    leave = handle.events.subscribe(callback)
    leave_too = handle.events.subscribe(callback)  # the same function twice is told twice
    leave_too()
    train(model, optimizer, 0, 5)
    assert [event for _, event, _ in seen if event.units] == [event for event in handle.events if event.units]
    assert len([event for _, event, _ in seen if event.action == "shrink"]) == 1  # of a run, the first
    assert all(written and step == event.step for step, event, written in seen)
    leave()
    leave()
    count = len(seen)
    train(model, optimizer, 5, 9)
    assert len(seen) == count


def test_what_a_subscriber_raises_comes_out_of_the_step_and_says_where_from():
    model, optimizer, handle = attached(ReDo(tau=1.0, every=1))

    def refuse(event):
        raise ValueError("not this one")

    leave = handle.events.subscribe(refuse)
    with pytest.raises(ValueError, match="not this one") as caught:
        train(model, optimizer, 0, 1)
    assert "subscribed to handle.events" in caught.value.__notes__[0]
    assert "ReDo" in caught.value.__notes__[0]
    leave()
    train(model, optimizer, 1, 2)


def test_units_that_were_not_hit_after_all_are_no_event():
    """On an accelerator the log holds a bound on the units and which of them were really meant."""
    log, seen = EventLog(), []
    log.subscribe(seen.append)
    log.add("fc", "reset", torch.tensor([3, 1]), None, torch.tensor([False, False]), "why")
    log.add("fc", "reset", torch.tensor([3, 1]), None, torch.tensor([True, False]), "why")
    assert [event.units for event in log] == [(3,)]
    assert [event.units for event in seen] == [(3,)]
    assert int(log.num_resets()["fc"]) == 1


# ---- what it says ----
def test_events_are_json():
    model, optimizer, handle = attached([ReDo(tau=1.0, every=2), L2(0.1)], measure_change=torch.ones(3, 5))
    train(model, optimizer, 0, 4)
    for event in handle.events:
        again = json.loads(json.dumps(event.to_dict()))
        assert again == event.to_dict()
        assert {"step", "group", "units", "reason", "intervention", "action", "output_change"} <= set(again)
    assert {event.action for event in handle.events} == {"reset", "shrink"}


def test_the_measured_change_is_that_of_the_edit():
    """By hand: the outputs before and after, in evaluation mode, nothing of it recorded."""
    model, x = ZOO["mlp"].model(), ZOO["mlp"].batch(6, seed=3)
    model, optimizer, handle = attached(ReDo(tau=1.0, every=1, where="0"), model, measure_change=x)
    outs = []
    with torch.no_grad():
        model[0].bias[2] = -100.0  # a dead unit
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    outs.append(model.eval()(x).detach())
    model.train()
    train(model, optimizer, 0, 1)
    outs.append(model.eval()(x).detach())
    (event,) = handle.events
    want = float((outs[1] - outs[0]).abs().max() / outs[0].abs().max())
    assert event.output_change == pytest.approx(want, rel=1e-6)
    assert want > 1e-3
    assert handle.num_steps == 1


def test_resetting_a_dead_unit_changes_no_output_and_under_a_layer_norm_it_does():
    for norm, preserved in ((nn.Identity(), True), (nn.LayerNorm(8), False)):
        model = nn.Sequential(nn.Linear(5, 8), norm, nn.ReLU(), nn.Linear(8, 3))
        with torch.no_grad():
            model[0].bias.fill_(2.0)  # all the others are alive
            model[0].weight[2], model[0].bias[2] = 0.0, -100.0
            if not preserved:
                model[1].bias.fill_(2.0)
                model[1].bias[2] = -100.0
        model, optimizer, handle = attached(ReDo(tau=0.0, every=1), model, measure_change=torch.randn(6, 5))
        assert handle.units["0"].reset_preserves_function == preserved
        for group in optimizer.param_groups:
            group["lr"] = 0.0
        train(model, optimizer, 0, 1)
        (event,) = handle.events
        assert event.units == (2,)
        assert (event.output_change == 0) == preserved
        assert event.output_change is not None


def test_of_a_run_the_largest_change_is_shown():
    log = EventLog()
    for step, change in enumerate((0.1, 0.4, 0.2)):
        log.step = step
        log.add_tensors("shrink", ["a"], output_change=torch.tensor(change))
    (event,) = log
    assert event.count == 3
    assert event.output_change == pytest.approx(0.4)


def test_nothing_is_measured_unless_asked():
    model, optimizer, handle = attached([ContinualBackprop(0.3, maturity_threshold=0), L2(0.1)])
    train(model, optimizer, 0, 8)
    assert {event.output_change for event in handle.events} == {None}
    assert {event.action for event in handle.events} == {"reset", "shrink"}


def test_measuring_changes_no_bit_of_the_run():
    ends = []
    for more in ({}, {"measure_change": torch.ones(4, 5)}):
        model, optimizer, handle = attached([ReDo(tau=0.9, every=2), ShrinkAndPerturb(0.9, 0.1, every=3)], **more)
        train(model, optimizer, 0, 7)
        ends.append([p.detach().clone() for p in model.parameters()])
        assert len(handle.events) > 2
    assert all(torch.equal(p, q) for p, q in zip(*ends, strict=True))


def test_records_are_numbers_for_a_log():
    model, optimizer, handle = attached([ReDo(tau=1.0, every=2), L2(0.1)])
    train(model, optimizer, 0, 4)
    record = handle.record()
    assert record["num_steps"] == 4
    assert record["num_resets"] == sum(len(event.units) for event in handle.events) > 0
    assert all(type(value) is float for value in record.values())


def test_printed_events_are_the_latest_and_a_dry_run_says_so():
    log = EventLog(dry_run=True)
    log.intervention = "ReDo"
    for step in range(1, 13):
        log.step = step
        log.add("fc1", "reset", torch.arange(step), None, None, "dormant", torch.tensor(0.25))
    lines = str(log).splitlines()
    assert lines[0] == "EventLog(12 events; units that would have been reset (dry run): {'fc1': 78})"
    assert len(lines) == 11
    assert lines[1] == "  step 3: ReDo reset of fc1, units 0, 1, 2: dormant (output change 2.5e-01)"
    assert "units 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 2 more" in lines[-1]


def test_what_does_not_fit_is_refused_by_attach_and_monitor():
    model, x = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 1)), torch.randn(2, 3)
    sgd, refused = torch.optim.SGD(model.parameters(), lr=0.1), pliant.IllegalConfiguration
    with pytest.raises(refused, match="is no intervention"):
        pliant.attach(model, sgd, pliant.ReDo, example_inputs=x)
    with pytest.raises(refused, match="the model is of type SGD"):
        pliant.attach(sgd, model, pliant.ReDo(), example_inputs=x)
    with pytest.raises(refused, match="units is of type Tensor"):
        pliant.attach(model, sgd, pliant.ReDo(), units=x)
    with pytest.raises(refused, match="the batch given as measure_change"):
        pliant.attach(model, sgd, pliant.ReDo(), example_inputs=x, measure_change=torch.randn(2, 5))
    with pytest.raises(refused, match="NoneType is none"):
        pliant.monitor(model, None, example_inputs=x)
    assert not sgd._optimizer_step_post_hooks
