"""The contracts of plasticity injection, which changes the model: what it is called, who trains it, how it resumes."""

from __future__ import annotations

import copy

import pytest
import torch
import zoo
from contract_tools import OPTIMIZERS, Run, assert_same_bits, differ, num_hooks, units_of
from torch import nn
from torch.utils import _pytree as pytree
from zoo import ZOO

import pliant
from pliant import L2, ContinualBackprop, IllegalConfiguration, NoEffect, NotYetSupported, PlasticityInjection
from pliant.bench.ensemble import stack
from pliant.surgery import operate

LAST = {
    "mlp": "4",
    "conv_bn_flatten": "10",
    "resnet_basic": "fc",
    "actor_critic": "critic.2",
    "lstm": "head",
    "vit": "head",
    "hf_bert": "classifier",
    "swiglu": "out",
}
"""Architectures, and their linear layer that was registered last."""

AT = {
    "at_a_step": PlasticityInjection(at=3),
    "at_a_boundary": PlasticityInjection(),
    "at_once": PlasticityInjection(at=0),
}
PAIRS = [
    (at, name, list(OPTIMIZERS)[(3 * i + 5 * j) % len(OPTIMIZERS)])
    for i, at in enumerate(AT)
    for j, name in enumerate(LAST)
]


def owned(optimizer) -> list[nn.Parameter]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def output(run: Run, step: int = 50) -> list[torch.Tensor]:
    torch.manual_seed(0)
    with torch.no_grad():
        return pytree.tree_leaves(zoo.call(run.model, run.batch(step)))


@pytest.mark.parametrize(("at", "name", "optimizer"), PAIRS)
def test_the_structure_and_who_trains_it(at, name, optimizer):
    plain, run = Run(name, optimizer), Run(name, optimizer, AT[at])
    last = LAST[name]
    leaves = [key.removeprefix(f"{last}.") for key in plain.model.state_dict() if key.startswith(f"{last}.")]
    others = [key for key in plain.model.state_dict() if not key.startswith(f"{last}.")]
    assert set(run.model.state_dict()) == {
        *others, f"{last}.gate", *(f"{last}.{part}.{leaf}" for part in ("base", "new", "copy") for leaf in leaves),
    }  # fmt: skip
    trained = [p for p in run.model.parameters() if p.requires_grad]
    assert {id(p) for p in trained} <= {id(p) for p in owned(run.optimizer)} <= {id(p) for p in run.model.parameters()}
    assert len(owned(run.optimizer)) == len({id(p) for p in owned(run.optimizer)})
    assert len(run.optimizer.param_groups) == 1
    for a, b in zip(output(plain), output(run), strict=True):  # attached, and nothing has changed
        assert torch.equal(a, b)
    # the optimizer's step before and after the injection
    run.train(0, 3)
    head = run.model.get_submodule(last)
    assert bool(head.gate)
    frozen = {key: p.detach().clone() for key, p in head.named_parameters() if not key.startswith("new.")}
    new = {key: p.detach().clone() for key, p in head.new.named_parameters()}
    run.train(3, 8)
    assert all(torch.equal(p, frozen[key]) for key, p in head.named_parameters() if not key.startswith("new."))
    assert all(not torch.equal(p, new[key]) for key, p in head.new.named_parameters())
    assert not head.base.weight.requires_grad
    assert float(run.handle.record()["PlasticityInjection.is_injected"]) == 1
    # without the handle, training goes on as with it: the injection has happened
    state = run.checkpoint()
    run.handle.detach()
    assert num_hooks(run.model, run.optimizer) == 0
    again = Run(name, optimizer, AT[at], seed=3).load(state)
    again.train(8, 10)
    run.handle = None
    run.train(8, 10)
    assert_same_bits(run.bits(), {k: v for k, v in again.bits().items() if not k.startswith("handle")})


@pytest.mark.parametrize("optimizer", ["sgd_momentum", "adam", "adamw_fused", "rmsprop"])
def test_the_function_does_not_change_by_the_injection_to_the_bit(optimizer):
    run = Run("mlp", optimizer, PlasticityInjection())
    run.train(0, 2)
    before, head = output(run), run.model.get_submodule("4")
    assert not torch.equal(head.new.weight, head.copy.weight) or optimizer != "adamw_fused"
    run.handle.task_boundary()
    assert torch.equal(before[0], output(run)[0])
    assert torch.equal(head.new.weight, head.copy.weight)
    assert not any(state.any() for state in run.optimizer.state[head.new.weight].values() if state is not None)
    assert float(head.new.weight.detach().abs().max()) <= head.new.in_features**-0.5
    run.train(2, 3)
    assert not torch.equal(before[0], output(run)[0])


def test_injected_weights_are_trained_although_the_optimizer_was_made_before():
    """Published: the optimizer holds the old head after the injection, and nothing new ever learns."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    handle = pliant.attach(model, optimizer, PlasticityInjection(), example_inputs=torch.randn(4, 5))
    x, y = torch.randn(64, 5), torch.randn(64, 3)

    def train(steps):
        for _ in range(steps):
            optimizer.zero_grad()
            loss = (model(x) - y).square().mean()
            loss.backward()
            optimizer.step()
        return float(loss.detach())

    train(5)
    handle.task_boundary()
    model[0].requires_grad_(False)  # only what was injected can still learn
    start, base = train(1), model[2].base.weight.detach().clone()
    assert train(100) < start - 0.01
    assert torch.equal(model[2].base.weight, base)


@pytest.mark.parametrize(("at", "name", "optimizer"), PAIRS[::2])
@pytest.mark.parametrize("cut", [2, 4])
def test_resuming_before_and_after_the_injection_is_bitwise(at, name, optimizer, cut):
    whole = Run(name, optimizer, AT[at]).train(0, cut)
    file = whole.checkpoint()
    whole.train(cut)
    rest = Run(name, optimizer, AT[at], seed=5, handle_seed=99).load(file)
    frozen = not rest.model.get_submodule(LAST[name]).base.weight.requires_grad
    assert frozen == (cut > 3 or at == "at_once")
    assert_same_bits(whole.bits(), rest.train(cut).bits())


def test_going_back_to_before_the_injection_trains_the_old_weights_again():
    run = Run("mlp", "adam", PlasticityInjection(at=3)).train(0, 2)
    file = run.checkpoint()
    whole = run.train(2).bits()
    assert not run.model[4].base.weight.requires_grad
    run.load(file)
    assert run.model[4].base.weight.requires_grad
    assert not run.model[4].copy.weight.requires_grad
    assert_same_bits(whole, run.train(2).bits())


def test_the_same_seed_gives_the_same_weights_and_another_one_others():
    a, b, c = (Run("mlp", "adam", PlasticityInjection(at=3), handle_seed=seed).train().bits() for seed in (1, 2, 1))
    assert differ(a, b)
    assert_same_bits(a, c)


@pytest.mark.parametrize("optimizer", ["sgd", "adam_fused"])
def test_never_leaves_the_model_as_it_is(optimizer):
    plain, run = Run("mlp", optimizer).train(), Run("mlp", optimizer, PlasticityInjection().null()).train()
    assert_same_bits(plain.bits(), {k: v for k, v in run.bits().items() if not k.startswith("handle")})
    assert not [event for event in run.handle.events if event.action != "surgery"]
    assert not PlasticityInjection().null().needs_boundary


def test_a_skipped_step_of_mixed_precision_does_not_lose_the_injection():
    run = Run("mlp", "adam_fused", PlasticityInjection(at=2))
    scaler = torch.amp.GradScaler("cpu", init_scale=16.0)
    for step in range(4):
        run.optimizer.zero_grad()
        loss = zoo.loss_of(run.model(run.batch(step)))
        scaler.scale(loss * torch.inf if step == 1 else loss).backward()
        scaler.step(run.optimizer)
        scaler.update()
    assert bool(run.model[4].gate)
    assert run.handle.num_steps == 3


def test_units_in_front_of_the_injection_are_left_out_with_a_reason_and_others_are_protected():
    methods = [PlasticityInjection(at=3), L2(0.1), ContinualBackprop(0.2, maturity_threshold=1, decide_every=1)]
    run = Run("mlp", "adam", methods).train()
    assert set(run.handle.excluded) == {"2"}
    assert run.handle.excluded["2"] == "frozen parameters: 4.copy.weight"
    assert set(run.handle.num_resets) == {"0"}
    last = {event.intervention: event for event in run.handle.events if event.last_step == 8}
    assert "4.new.weight" in last["L2"].tensors
    base = Run("mlp", "adam", methods).train(0, 3).model[4].base.weight
    assert torch.equal(run.model[4].base.weight, base)  # frozen: not even shrunk any more


def test_a_whole_head_with_batch_norm():
    torch.manual_seed(0)
    head = nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 2))
    model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), head)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    method = PlasticityInjection("2")
    handle = pliant.attach(model, optimizer, method, example_inputs=torch.randn(4, 5))
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(8, 5)).square().mean().backward()
        optimizer.step()
    x = torch.randn(8, 5)
    before = [copy.deepcopy(model).train(mode)(x) for mode in (True, False)]
    handle.task_boundary()
    assert all(
        torch.equal(out, copy.deepcopy(model).train(mode)(x)) for out, mode in zip(before, (True, False), strict=True)
    )
    assert torch.equal(model[2].new[1].running_var, torch.ones(6))
    assert model[2].base[1].running_var.ne(1).all()


# ---- what is refused ----
def test_a_stack_units_found_before_a_wrapper_and_a_dry_run_are_refused_by_name():
    model = ZOO["mlp"].model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = list(model.state_dict())
    x = ZOO["mlp"].batch()
    with pytest.raises(
        IllegalConfiguration, match=r"PlasticityInjection changes the model.*units found before do not fit"
    ):
        pliant.attach(model, optimizer, PlasticityInjection(), units=units_of("mlp"))
    with pytest.raises(IllegalConfiguration, match=r"PlasticityInjection changes the model, which dry_run cannot show"):
        pliant.attach(model, optimizer, PlasticityInjection(), example_inputs=x, dry_run=True)
    assert list(model.state_dict()) == before
    members = stack([ZOO["mlp"].model(seed) for seed in (0, 1)])
    optimizer = torch.optim.SGD(members.parameters(), lr=0.1)
    for more in ({"units": units_of("mlp")}, {"example_inputs": torch.randn(2, 4, 5)}):
        with pytest.raises(IllegalConfiguration, match=r"PlasticityInjection changes .* a stack of members cannot be"):
            pliant.attach(members, optimizer, PlasticityInjection(), seed=(1, 2), **more)


def test_what_cannot_be_injected_into_is_refused():
    def attach(method, model=None, optimizer=None):
        model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3)) if model is None else model
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1) if optimizer is None else optimizer(model)
        return pliant.attach(model, optimizer, method, example_inputs=torch.randn(4, 5))

    with pytest.raises(IllegalConfiguration, match=r"no module 'head'. Its parts are: '0', '1', '2'"):
        attach(PlasticityInjection("head"))
    for at in (-1, "later", float("nan")):
        model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))
        with pytest.raises(IllegalConfiguration, match=f"at={at!r}"):
            attach(PlasticityInjection(at=at), model)
        assert type(model[2]) is nn.Linear  # refused before anything was changed
    with pytest.raises(IllegalConfiguration, match="no linear layer"):
        attach(PlasticityInjection(), nn.Sequential(nn.Conv1d(5, 5, 1)))
    inner = nn.Sequential(nn.Dropout(0.1), nn.Linear(8, 2))
    with pytest.raises(NotYetSupported, match=r"'2.0' is dropout"):
        attach(PlasticityInjection("2"), nn.Sequential(nn.Linear(5, 8), nn.ReLU(), inner))
    frozen = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))
    frozen[2].requires_grad_(False)
    with pytest.raises(NoEffect, match="trains no parameter of '2'"):
        attach(PlasticityInjection(), frozen)
    with pytest.raises(IllegalConfiguration, match="several optimizers train '2'"):
        attach(PlasticityInjection(), None, lambda m: [
            torch.optim.SGD([*m[0].parameters(), m[2].weight], lr=0.1), torch.optim.SGD([m[2].bias], lr=0.1),
        ])  # fmt: skip
    tied = nn.Sequential(nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 5))
    tied[2].weight = tied[0].weight
    with pytest.raises(IllegalConfiguration, match=r"'2' shares a parameter with '0.weight'"):
        attach(PlasticityInjection(), tied)
    twice = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))
    attach(PlasticityInjection(), twice).detach()
    for inside in ("2", "2.new"):
        with pytest.raises(IllegalConfiguration, match=f"'{inside}' has been injected into already"):
            attach(PlasticityInjection(inside), twice)
    for other in (PlasticityInjection(), PlasticityInjection("2")):
        with pytest.raises(IllegalConfiguration, match="each needs a module of its own"):
            attach([PlasticityInjection("2", at=5), other])


def test_two_heads_of_two_optimizers_at_two_times():
    model = ZOO["actor_critic"].model()
    critic = list(model.critic.parameters())
    others = [p for p in model.parameters() if all(p is not q for q in critic)]
    optimizers = [torch.optim.Adam(others), torch.optim.Adam(critic)]
    methods = [PlasticityInjection("critic", at=2), PlasticityInjection("actor.2", at=1)]
    handle = pliant.attach(model, optimizers, methods, example_inputs=ZOO["actor_critic"].batch())
    for step in range(2):
        zoo.loss_of(zoo.call(model, ZOO["actor_critic"].batch(seed=step))).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        assert (bool(model.actor[2].gate), bool(model.critic.gate)) == (True, step == 1)
    found = {(event.step, event.tensors[0]) for event in handle.events if event.action == "assign"}
    assert found == {(1, "actor.2.new.weight"), (2, "critic.new.0.weight")}


def test_the_surgery_itself_leaves_an_optimizer_that_owns_everything():
    model = ZOO["resnet_basic"].model()
    optimizer = torch.optim.AdamW(model.parameters())
    new = operate(model, [optimizer], 0, PlasticityInjection().surgery)
    assert set(new) == {"fc.new.weight", "fc.new.bias", "fc.copy.weight", "fc.copy.bias"}
    assert {id(p) for p in owned(optimizer)} == {id(p) for p in model.parameters() if p.requires_grad}
