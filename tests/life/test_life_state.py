"""A saved state meets a model that has changed: refused by name, or kept where it fits, with a report."""

from __future__ import annotations

import copy

import pytest
import torch
from life_tools import METHOD, Run, Words, assert_same
from torch import nn

import pliant
from pliant import IllegalConfiguration
from pliant.interventions import HareAndTortoise, L2Init, NormalizeAndProject, SelfNormalizedReset


@pytest.fixture(scope="module")
def old():
    run = Run([METHOD, L2Init(0.01)]).train(0, 12)
    return run.saved()


# ---- the same model ----
def test_what_fits_is_kept_whole_and_the_report_says_so(old):
    run = Run([METHOD, L2Init(0.01)], seed=3)
    report = run.handle.load_state_dict(old["pliant"])
    assert report.is_complete
    assert report.names("kept", "ContinualBackprop") == ("words", "body.0", "body.2")
    assert "initial of words.weight" in report.names("kept", "L2Init")
    assert_same(run.handle.state_dict(), old["pliant"])


def test_with_everything_in_place_reinit_group_changes_nothing(old):
    run = Run([METHOD, L2Init(0.01)], seed=3)
    assert run.handle.load_state_dict(old["pliant"], on_mismatch="reinit_group").is_complete
    assert_same(run.handle.state_dict(), old["pliant"])


def test_a_state_of_version_3_is_still_read(old):
    """It has no shapes, no steps of resets and no quiet period."""
    state = {key: value for key, value in old["pliant"].items() if key not in ("tensors", "owners", "latest_resets")}
    state |= {"version": 3}
    run = Run([METHOD, L2Init(0.01)], seed=3)
    assert run.handle.load_state_dict(state).is_complete
    assert_same(run.handle.state_dict()["state"], old["pliant"]["state"])
    assert not any(run.handle.immature(10**6).values())


# ---- a model that has changed: refused ----
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"vocabulary": 14}, r"words.weight.*10 x 6 then, 14 x 6 now"),
        ({"width": 20}, r"unit groups: body.0 re-initialised \(12 units then, 20 now\)"),
        ({"body": "core"}, r"body.0 dropped.*renamed=\{\"old.module\": \"new.module\"\}"),
    ],
)
def test_error_names_what_differs_and_what_to_do(old, options, words):
    run = Run([METHOD, L2Init(0.01)], **options)
    before = run.handle.state_dict()
    with pytest.raises(IllegalConfiguration, match=words) as error:
        run.handle.load_state_dict(old["pliant"])
    assert 'on_mismatch="reinit_group"' in str(error.value)
    assert_same(run.handle.state_dict(), before)


def test_another_models_checkpoint_is_refused_in_both_ways(old):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3))
    optimizer = torch.optim.Adam(model.parameters())
    handle = pliant.attach(model, optimizer, METHOD, example_inputs=torch.ones(2, 5))
    for choice in ("error", "reinit_group"):
        with pytest.raises(IllegalConfiguration, match=r"body\.0"):
            handle.load_state_dict(old["pliant"], on_mismatch=choice)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"version": 2}, "version 2, and this version of Pliant reads 3 and 4"),
        ({"version": 99}, "version 99"),
        ({"num_members": 4}, "number of members: 4 instead of None"),
        ({"schedules": []}, "0 optimizers; 1 are attached"),
    ],
)
@pytest.mark.parametrize("choice", ["error", "reinit_group"])
def test_what_no_choice_can_mend(old, change, words, choice):
    run = Run([METHOD, L2Init(0.01)])
    with pytest.raises(IllegalConfiguration, match=words):
        run.handle.load_state_dict({**old["pliant"], **change}, on_mismatch=choice)


def test_a_wrong_choice_or_name_is_refused(old):
    run = Run([METHOD, L2Init(0.01)])
    with pytest.raises(IllegalConfiguration, match='"error" or "reinit_group"'):
        run.handle.load_state_dict(old["pliant"], on_mismatch="ignore")
    for renamed, word in (({"bodi": "body"}, "nothing in a module 'bodi'"), ({"body": "core"}, "model has nothing")):
        with pytest.raises(IllegalConfiguration, match=word):
            run.handle.load_state_dict(old["pliant"], renamed=renamed)
    with pytest.raises(IllegalConfiguration, match="the same name"):
        run.handle.load_state_dict(old["pliant"], renamed={"body.0": "body.2"})


# ---- a model that has changed: what fits is kept ----
def test_a_grown_vocabulary_loses_nothing(old):
    run = Run([METHOD, L2Init(0.01)], vocabulary=14, seed=3)
    fresh = run.model.words.weight.detach().clone()
    report = run.handle.load_state_dict(old["pliant"], on_mismatch="reinit_group")
    assert report.names("kept", "ContinualBackprop") == ("words", "body.0", "body.2")
    assert report.names("extended", "L2Init") == (
        "initial of words.weight", "initial of head.weight", "initial of head.bias")  # fmt: skip
    state = run.handle.state_dict()
    assert_same(state["state"], old["pliant"]["state"])
    initial = state["memory"]["1"]["parameters"]["initial"]["words.weight"]
    assert torch.equal(initial[:10], old["pliant"]["memory"]["1"]["parameters"]["initial"]["words.weight"])
    assert torch.equal(initial[10:], fresh[10:])
    assert run.handle.num_steps == 12


def test_a_wider_layer_begins_anew_and_the_others_go_on(old):
    run = Run([METHOD, L2Init(0.01)], width=20, seed=3)
    report = run.handle.load_state_dict(old["pliant"], on_mismatch="reinit_group")
    assert report.names("re-initialised", "unit groups") == ("body.0",)
    assert report.names("kept", "ContinualBackprop") == ("words", "body.2")
    state = run.handle.state_dict()["state"][0]
    assert not state["body.0"]["age"].any()
    assert state["body.0"]["age"].shape == (20,)
    assert torch.equal(state["body.2"]["age"], old["pliant"]["state"][0]["body.2"]["age"])
    initial = run.handle.state_dict()["memory"]["1"]["parameters"]["initial"]
    for name in ("body.0.weight", "body.2.weight"):  # which of its units are the old ones is not known
        assert torch.equal(initial[name], dict(run.model.named_parameters())[name])
    run.train(12, 30)
    assert "12 units then, 20 now" in str(report)


def test_a_renamed_module_is_followed_with_the_pattern_of_the_method():
    method = pliant.ContinualBackprop(0.02, maturity_threshold=4, where="body.0")
    whole = Run([method, L2Init(0.01, where="body")]).train(0, 24)
    cut = Run([method, L2Init(0.01, where="body")]).train(0, 12).saved()
    new = pliant.ContinualBackprop(0.02, maturity_threshold=4, where="core.0")
    run = Run([new, L2Init(0.01, where="core")], body="core", seed=5)
    run.model.load_state_dict({key.replace("body", "core"): value for key, value in cut["model"].items()})
    run.optimizer.load_state_dict(cut["optimizer"])
    report = run.handle.load_state_dict(cut["pliant"], renamed={"body": "core"})
    assert report.is_complete
    assert report.names("renamed", "unit groups") == ("core.0", "core.2")
    run.train(12, 24)
    for (_, mine), (_, theirs) in zip(run.model.state_dict().items(), whole.model.state_dict().items(), strict=True):
        assert torch.equal(mine, theirs)
    assert run.handle.num_resets["core.0"] == whole.handle.num_resets["body.0"]


def test_added_and_removed_layers_are_reported(old):
    class Deeper(Words):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(*self.body, nn.Linear(8, 8), nn.ReLU())

    deep = Run([METHOD, L2Init(0.01)], model=Deeper())
    report = deep.handle.load_state_dict(old["pliant"], on_mismatch="reinit_group")
    assert report.names("new", "unit groups") == ("body.4",)
    assert report.names("kept", "ContinualBackprop") == ("words", "body.0", "body.2")
    back = Run([METHOD, L2Init(0.01)])
    report = back.handle.load_state_dict(deep.train(0, 3).saved()["pliant"], on_mismatch="reinit_group")
    assert report.names("dropped", "unit groups") == ("body.4",)
    assert report.names("dropped", "L2Init") == ("initial of body.4.weight", "initial of body.4.bias")


def test_methods_may_change_their_options_come_and_go(old):
    other = pliant.ContinualBackprop(replacement_rate=0.05, maturity_threshold=4)
    with pytest.raises(IllegalConfiguration, match="interventions: ContinualBackprop changed"):
        Run([other, L2Init(0.01)]).handle.load_state_dict(old["pliant"])
    run = Run([HareAndTortoise(every=None), other, pliant.ReDo(every=3)])
    report = run.handle.load_state_dict(old["pliant"], on_mismatch="reinit_group")
    assert report.names("changed") == ("ContinualBackprop",)
    assert {name.partition("(")[0] for name in report.names("new", "interventions")} == {"HareAndTortoise", "ReDo"}
    assert {name.partition("(")[0] for name in report.names("dropped", "interventions")} == {"L2Init"}
    assert_same(run.handle.state_dict()["state"][1], old["pliant"]["state"][0])
    follows = pliant.ContinualBackprop(replacement_rate=0.05, maturity_threshold=4, compensate_bias=True)
    run = Run([follows])
    report = run.handle.load_state_dict(old["pliant"], on_mismatch="reinit_group")
    assert set(report.names("re-initialised", "ContinualBackprop")) == {"words", "body.0", "body.2"}
    assert not run.handle.state_dict()["state"][0]["body.0"]["age"].any()
    run.train(12, 20)


def test_every_kind_of_state_survives_a_wider_layer():
    """Histograms, norms, second networks: what a method keeps has the right shape afterwards, and training goes on."""
    methods = [
        SelfNormalizedReset(max_threshold=8, initial_threshold=8),
        NormalizeAndProject(every=2, unnormalised="ignore"),
        HareAndTortoise(decay=0.5, every=None),
    ]
    old = Run(methods).train(0, 6).saved()
    run = Run(methods, width=16, vocabulary=12, seed=2)
    report = run.handle.load_state_dict(old["pliant"], on_mismatch="reinit_group")
    memory, before = run.handle.state_dict()["memory"], old["pliant"]["memory"]
    assert "tortoise of words.weight" in report.names("extended", "HareAndTortoise")
    tortoise = memory["2"]["snapshots"]["tortoise"]["words.weight"]
    assert torch.equal(tortoise[:10], before["2"]["snapshots"]["tortoise"]["words.weight"])
    norms = memory["1"]["parameters"]["norm"]
    assert torch.equal(norms["words.weight"].flatten(), run.model.words.weight.detach().norm().reshape(1))
    run.train(6, 10)


def test_a_report_prints_by_owner_and_outcome(old):
    run = Run([METHOD, L2Init(0.01)], width=20, vocabulary=14)
    report = run.handle.load_state_dict(old["pliant"], on_mismatch="reinit_group")
    text = str(report)
    assert "  ContinualBackprop\n    kept: words, body.2\n" in text
    assert "re-initialised: body.0 (12 units then, 20 now)" in text
    assert repr(report).startswith("<LoadReport: ")
    assert {line.outcome for line in report.differences} == {"extended", "re-initialised"}


def test_loading_leaves_the_saved_state_alone(old):
    before = copy.deepcopy(old["pliant"])
    Run([METHOD, L2Init(0.01)], vocabulary=14).handle.load_state_dict(old["pliant"], on_mismatch="reinit_group")
    assert_same(old["pliant"], before)
