"""Contracts about mistakes and about several optimizers: a clear error, or each clock for itself; never silence."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import zoo
from contract_tools import METHODS, OPTIMIZERS, Run, num_hooks, units_of
from torch import nn
from zoo import ZOO

import pliant
from pliant import IllegalConfiguration, NoEffect, NotYetSupported
from pliant.interventions import L2, ContinualBackprop, FreshStart, ReDo, ShrinkAndPerturb

UNIT_METHODS = ("continual_backprop", "redo")


# ---- errors ----
def test_training_in_evaluation_mode_names_the_cure():
    for method in (METHODS["continual_backprop"], ReDo(every=1)):
        run = Run("mlp", "sgd", method)
        run.model.eval()
        with pytest.raises(IllegalConfiguration, match=r"model\.train\(\)"):
            run.train(0, 1)


def test_training_a_copy_is_an_error_and_not_silence():
    run = Run("mlp", "sgd", METHODS["continual_backprop"])
    other = copy.deepcopy(run.model)
    zoo.loss_of(other(run.batch(0))).backward()
    for p, q in zip(run.model.parameters(), other.parameters(), strict=True):
        p.grad = q.grad
    with pytest.raises(IllegalConfiguration, match="no training forward pass"):
        run.optimizer.step()


@pytest.mark.parametrize("where", [0, 2])
@pytest.mark.parametrize("method", [METHODS["continual_backprop"], ReDo(tau=1.0, every=2)])
def test_nan_activations_stop_the_run_and_edit_nothing(method, where):
    """Also when only the second of two groups is broken: the first must not have been edited before the error."""
    run = Run("mlp", "sgd", method).train(0, 3)
    with torch.no_grad():
        run.model[where].weight.fill_(math.nan)
    for group in run.optimizer.param_groups:
        group["lr"] = 0.0  # the step itself changes nothing, so any change is an edit
    seen = len(run.handle.events)
    zoo.loss_of(run.model(run.batch(3))).backward()
    for p in run.model.parameters():
        p.grad.zero_()
    before = {k: v.clone() for k, v in run.model.state_dict().items()}
    with pytest.raises(IllegalConfiguration, match=r"not finite at step 4.*[Nn]othing was reset"):
        run.optimizer.step()
    after = run.model.state_dict()
    assert all(torch.equal(before[k], after[k]) or before[k].isnan().any() for k in before)
    assert len(run.handle.events) == seen


def test_no_effect_when_nothing_matches():
    for method in (ReDo(where="nothing*"), ContinualBackprop(where="nothing*"), L2(where="nothing*")):
        with pytest.raises(NoEffect, match="nothing"):
            Run("mlp", "sgd", method)


def test_a_frozen_model_is_no_effect():
    model = ZOO["mlp"].model().requires_grad_(False)
    model[4].requires_grad_(True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(NoEffect, match="frozen"):
        pliant.attach(model, optimizer, ReDo(), units=units_of("mlp"))
    assert num_hooks(model, optimizer) == 0


def test_frozen_groups_are_left_alone_and_the_others_protected():
    model = ZOO["mlp"].model()
    model[0].requires_grad_(False)
    before = {k: v.clone() for k, v in model[0].state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    handle = pliant.attach(model, optimizer, ReDo(tau=1.0, every=1), units=units_of("mlp"))
    for step in range(3):
        optimizer.zero_grad()
        zoo.loss_of(model(ZOO["mlp"].batch(seed=step))).backward()
        optimizer.step()
    assert set(handle.num_resets) == {"2"}
    assert all(torch.equal(v, before[k]) for k, v in model[0].state_dict().items())


def test_a_parameter_that_no_optimizer_owns_is_an_error():
    model = ZOO["mlp"].model()
    optimizer = torch.optim.SGD(model[2:].parameters(), lr=0.1)
    for method in (ReDo(), ContinualBackprop()):
        with pytest.raises(IllegalConfiguration, match=r"0\.weight.*no given optimizer owns"):
            pliant.attach(model, optimizer, method, units=units_of("mlp"))
    model = ZOO["mlp"].model()
    optimizer = torch.optim.SGD([model[0].weight, model[0].bias], lr=0.1)
    with pytest.raises(IllegalConfiguration, match=r"2\.weight.*no given optimizer owns"):
        pliant.attach(model, optimizer, ReDo(where="0"), units=units_of("mlp"))
    assert num_hooks(model, optimizer) == 0


def test_an_unknown_initialisation_is_an_error_with_the_cure():
    case = ZOO["mlp_raw"]
    for method in (ReDo(), ContinualBackprop(), FreshStart(), ShrinkAndPerturb()):
        model = case.model()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with pytest.raises(IllegalConfiguration, match=r"w1.*init=\{"):
            pliant.attach(model, optimizer, method, units=units_of("mlp_raw"))
        assert num_hooks(model, optimizer) == 0
        pliant.attach(model, optimizer, method, units=units_of("mlp_raw"), init="kaiming_uniform")


@pytest.mark.parametrize(
    "method",
    [
        ContinualBackprop(replacement_rate=-0.1), ContinualBackprop(replacement_rate=1.5),
        ContinualBackprop(maturity_threshold=-1), ContinualBackprop(decay_rate=1.0), ContinualBackprop(utility="wrong"),
        ContinualBackprop(decide_every=0), ContinualBackprop(sample_every=0),
        ContinualBackprop(exact=True, sample_every=2), ReDo(tau=-1), ReDo(every=0), L2(-1.0),
        ShrinkAndPerturb(shrink=1.1), ShrinkAndPerturb(noise_scale=-1), ShrinkAndPerturb(every=0), FreshStart(every=0),
    ],
    ids=repr,
)  # fmt: skip
def test_hyper_parameters_out_of_range_are_refused_at_attach(method):
    with pytest.raises(IllegalConfiguration, match=rf"{type(method).__name__}: \w+=.*must be"):
        Run("mlp", "sgd", method)


@pytest.mark.parametrize("kind", ["LBFGS", "Adafactor"])
def test_optimizers_whose_state_cannot_be_reset_are_refused(kind):
    model = ZOO["mlp"].model()
    optimizer = getattr(torch.optim, kind)(model.parameters(), lr=0.1)
    with pytest.raises(NotYetSupported, match=rf"{kind}.*Adam"):
        pliant.attach(model, optimizer, ReDo(), units=units_of("mlp"))


def test_an_unknown_moment_is_refused_and_not_guessed():
    class Odd(torch.optim.SGD):
        def step(self, closure=None):
            for group in self.param_groups:
                for p in group["params"]:
                    self.state[p].setdefault("slow_weights", p.detach().clone())
            return super().step(closure)

    model = ZOO["mlp"].model()
    optimizer = Odd(model.parameters(), lr=0.1)
    pliant.attach(model, optimizer, ReDo(tau=1.0, every=1), units=units_of("mlp"))
    zoo.loss_of(model(ZOO["mlp"].batch())).backward()
    with pytest.raises(NotYetSupported, match="slow_weights"):
        optimizer.step()


# ---- several optimizers ----
@pytest.mark.parametrize("method", ["continual_backprop", "redo", "shrink_and_perturb", "l2", "fresh_start"])
def test_two_optimizers_are_two_clocks(method):
    """An actor and a critic with one optimizer each, stepped in turn."""
    case = ZOO["actor_critic"]
    model = case.model()
    actor = torch.optim.Adam([*model.trunk.parameters(), *model.actor.parameters()], lr=1e-2)
    critic = torch.optim.SGD(model.critic.parameters(), lr=1e-2)
    handle = pliant.attach(model, [actor, critic], METHODS[method], units=units_of("actor_critic"))
    for step in range(6):
        actor.zero_grad()
        critic.zero_grad()
        zoo.loss_of(model(case.batch(seed=step))).backward()
        actor.step()
        critic.step()
        if step == 3:
            handle.task_boundary()
    assert [schedule.clock.step for schedule in handle._schedules] == [6, 6]
    if method in UNIT_METHODS:
        assert set(handle.num_resets) == {"trunk.0", "actor.0", "critic.0"}


def test_a_delayed_optimizer_counts_its_own_steps():
    case = ZOO["actor_critic"]
    model = case.model()
    actor = torch.optim.SGD([*model.trunk.parameters(), *model.actor.parameters()], lr=1e-2)
    critic = torch.optim.SGD(model.critic.parameters(), lr=1e-2)
    handle = pliant.attach(model, [actor, critic], ReDo(tau=1.0, every=2), units=units_of("actor_critic"))
    for step in range(8):
        zoo.loss_of(model(case.batch(seed=step))).backward()
        critic.step()
        if step % 2:
            actor.step()
        model.zero_grad()
    steps = {name: [e.step for e in handle.events if e.group == name] for name in ("actor.0", "critic.0")}
    assert steps == {"actor.0": [2, 4], "critic.0": [2, 4, 6, 8]}


def test_a_head_that_has_not_been_used_yet_is_no_error():
    """Multi-task networks use one head at a time."""

    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.trunk = nn.Linear(5, 8)
            self.a = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2))
            self.b = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2))

        def forward(self, x, which="both"):
            h = torch.relu(self.trunk(x))
            if which == "both":
                return self.a(h), self.b(h)
            return self.a(h) if which == "a" else self.b(h)

    model = Heads()
    units = pliant.find_units(model, torch.randn(3, 5))
    assert {g.name for g in units} == {"trunk", "a.0", "b.0"}
    for method in (METHODS["continual_backprop"], ReDo(tau=1.0, every=1)):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        handle = pliant.attach(model, optimizer, method, units=units)
        for step in range(6):
            optimizer.zero_grad()
            zoo.loss_of(model(torch.randn(4, 5), "a" if step < 4 else "b")).backward()
            optimizer.step()
            if step == 3:
                assert "b.0" not in handle.num_resets  # nothing is known of it, so nothing of it is replaced
        assert {"trunk", "a.0"} <= set(handle.num_resets)
        handle.detach()


def test_all_listed_optimizers_exist():
    for build in OPTIMIZERS.values():
        build([nn.Parameter(torch.zeros(2))])
