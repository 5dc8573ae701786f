"""``max_change``: an edit that changes the outputs too much leaves no trace; ``where`` keeps methods to a part."""

from __future__ import annotations

import pytest
import torch
from life_tools import METHOD, Run, assert_same

import pliant
from pliant import IllegalConfiguration, NoEffect, NotYetSupported
from pliant.interventions import L2, FreshStart, L2Init, ReDo, ShrinkAndPerturb

IDS = torch.arange(10)


def everything(run: Run):
    gradients = {name: p.grad.clone() for name, p in run.model.named_parameters() if p.grad is not None}
    return [run.model.state_dict(), run.optimizer.state_dict(), gradients, run.handle._editor.random_state()]


@pytest.mark.parametrize("optimizer", ["adam", "sgd", "adagrad"])
@pytest.mark.parametrize(
    "method", [ReDo(tau=1.0, every=4, where="words"), ShrinkAndPerturb(0.5, 0.5, every=4)], ids=["units", "all"]
)
def test_an_edit_beyond_the_limit_is_taken_back_bit_by_bit(method, optimizer):
    """The run is that of one without protection: weights, moments, gradients and random states."""
    plain = Run((), optimizer=optimizer).train(0, 9)
    run = Run(method, optimizer=optimizer, max_change=1e-9, measure_change=(IDS,)).train(0, 9)
    assert_same(everything(run), everything(plain))
    events = list(run.handle.events)
    assert events
    assert {event.action for event in events} == {"undone"}
    assert all("changes outputs by more than 1e-09" in event.reason for event in events)
    assert all(event.output_change > 1e-9 for event in events)
    assert run.handle.events.num_undone >= 2
    assert not any(int(count) for count in run.handle.num_resets.values())
    assert not any(int(count) for count in run.handle.immature(100).values())


def test_within_the_limit_nothing_differs():
    free = Run(METHOD, measure_change=(IDS,)).train(0, 30)
    run = Run(METHOD, max_change=1e9, measure_change=(IDS,)).train(0, 30)
    assert_same(everything(run), everything(free))
    assert [str(event) for event in run.handle.events] == [str(event) for event in free.handle.events]
    assert run.handle.events.num_undone == 0


def test_of_several_units_as_many_stay_as_fit_together():
    run = Run(ReDo(tau=0.9, every=20), max_change=0.05, measure_change=(IDS,), where="body").train(0, 20)
    events = list(run.handle.events)
    done = [event for event in events if event.action == "reset"]
    undone = [event for event in events if event.action == "undone"]
    assert done
    assert undone
    assert all(event.output_change <= 0.05 for event in done)
    assert all(event.output_change > 0.05 for event in undone)
    free = Run(ReDo(tau=0.9, every=20), where="body").train(0, 20)
    wanted = {event.group: set(event.units) for event in free.handle.events}
    for group, units in wanted.items():
        mine = [set(event.units) for event in events if event.group == group]
        assert set.union(*mine) == units
        assert sum(map(len, mine)) == len(units)
    reset = sum(len(event.units) for event in done)
    assert sum(int(count) for count in run.handle.num_resets.values()) == reset


def test_what_cannot_be_held_is_refused():
    with pytest.raises(IllegalConfiguration, match="pass measure_change"):
        Run(max_change=0.1)
    with pytest.raises(IllegalConfiguration, match="out of range"):
        Run(max_change=0.0, measure_change=(IDS,))
    model = torch.nn.Linear(2, 2)
    with pytest.raises(NotYetSupported, match="single models"):
        pliant.attach(model, torch.optim.SGD(model.parameters()), (), units=pliant.UnitGraph(()), seed=(0, 1),
                      max_change=0.1, measure_change=torch.ones(1, 2))  # fmt: skip


# ---- where ----
def test_where_keeps_all_methods_to_a_part_of_the_model():
    methods = [METHOD, L2Init(0.1), L2(0.1, where="body.0"), FreshStart()]
    run = Run(methods, where="body.0")
    elsewhere = {name: p.detach().clone() for name, p in run.model.named_parameters() if not name.startswith("body.0")}
    run.train(0, 1)
    state = run.handle.state_dict()
    assert set(state["state"][0]) == {"body.0"}
    assert set(state["memory"]["1"]["parameters"]["initial"]) == {"body.0.weight", "body.0.bias"}
    before = {name: p.detach().clone() for name, p in run.model.named_parameters()}
    run.handle.task_boundary()
    changed = {name for name, p in run.model.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {"body.0.weight", "body.0.bias"}
    assert elsewhere
    assert {event.group or event.tensors for event in run.train(1, 30).handle.events if event.action == "reset"} == {
        "body.0"
    }


def test_where_that_matches_nothing_is_refused_by_name():
    with pytest.raises(NoEffect, match=r"attach\(where='bodi'\) matches nothing.*words, body, head"):
        Run(where="bodi")
    with pytest.raises(NoEffect, match=r"no unit group that matches '\*' is in attach\(where='head'\)"):
        Run(where="head")


def test_two_handles_may_share_a_model_if_their_parts_differ():
    run = Run(where="body.0")
    with pytest.raises(IllegalConfiguration, match="would act twice"):
        pliant.attach(run.model, run.optimizer, METHOD, units=run.handle.units)
    other = pliant.attach(run.model, run.optimizer, METHOD, units=run.handle.units, where="body.2")
    run.train(0, 20)
    assert set(run.handle.num_resets) <= {"body.0"}
    assert set(other.num_resets) == {"body.2"}
