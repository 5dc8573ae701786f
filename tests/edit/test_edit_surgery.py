"""Methods that change the model: the optimizers own what is new, give up what is gone, and keep everything else."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import ClassVar, final

import pytest
import torch
import zoo
from catalogue import SURGEONS, ExtraHeads, FreshHead, InsertNorm, PlasticityInjection, Sketch
from torch import nn
from zoo import ZOO

import pliant
from pliant import IllegalConfiguration
from pliant.interventions import L2
from pliant.surgery import adopt, operate, replace_module


def network(seed=0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 3))


def train(model, optimizer, start, stop):
    for step in range(start, stop):
        optimizer.zero_grad()
        zoo.loss_of(model(ZOO["mlp"].batch(8, seed=step))).backward()
        optimizer.step()


def attach(model, optimizer, method, **more):
    return pliant.attach(model, optimizer, method, example_inputs=torch.ones(2, 5), **more)


def check_owned(model, optimizer):
    owned = [p for group in optimizer.param_groups for p in group["params"]]
    assert len({id(p) for p in owned}) == len(owned)
    assert {id(p) for p in owned} >= {id(p) for p in model.parameters() if p.requires_grad}
    assert {id(p) for p in owned} <= {id(p) for p in model.parameters()}
    assert {id(p) for p in optimizer.state} <= {id(p) for p in owned}


@pytest.mark.parametrize("optimizer", ["SGD", "AdamW", "Adagrad", "RMSprop", "NAdam", "ASGD", "Rprop", "Adadelta"])
@pytest.mark.parametrize("name", SURGEONS)
def test_the_optimizer_owns_everything_new(name, optimizer):
    """Published failure: a reset layer or an injected head whose weights no optimizer has; nothing new ever learns."""
    model = network()
    opt = getattr(torch.optim, optimizer)(model.parameters(), lr=0.05)
    train(model, opt, 0, 2)  # the optimizer has state of its own by then
    before = dict(model.named_parameters())
    moments = {key: copy.deepcopy(opt.state[p]) for key, p in before.items()}
    handle = attach(model, opt, SURGEONS[name])
    check_owned(model, opt)
    assert len(opt.param_groups) == 1  # schedulers hold one entry for each group
    for key, p in before.items():
        if any(p is q for q in model.parameters()):
            for kind, value in moments[key].items():
                assert torch.equal(torch.as_tensor(opt.state[p][kind]), torch.as_tensor(value))
    fresh = {key: p for key, p in model.named_parameters() if all(p is not q for q in before.values())}
    assert fresh
    start = {key: p.detach().clone() for key, p in fresh.items()}
    if name == "ExtraHeads":
        for p in model.extra.parameters():
            p.grad = torch.ones_like(p)
        opt.step()
    else:
        train(model, opt, 2, 4)
    for key, p in fresh.items():
        assert p.requires_grad != torch.equal(p, start[key]), key  # it learns, unless it is frozen
    (event,) = [event for event in handle.events if event.action == "surgery"]
    assert set(event.tensors) >= set(fresh)
    assert (event.intervention, event.step) == (name, 0)


def test_a_replaced_layer_takes_the_old_ones_place_with_its_options():
    model = network()
    groups = [{"params": model[0].parameters()}, {"params": model[2].parameters()}, {"params": model[4].parameters()}]
    groups[2].update(lr=0.5, weight_decay=0.1)
    opt = torch.optim.AdamW(groups, lr=0.01)
    schedule = torch.optim.lr_scheduler.StepLR(opt, 1, gamma=0.5)
    train(model, opt, 0, 2)
    old = model[4]
    attach(model, opt, FreshHead())
    assert opt.param_groups[2]["params"] == [model[4].weight, model[4].bias]
    assert (opt.param_groups[2]["lr"], opt.param_groups[2]["weight_decay"]) == (0.5, 0.1)
    assert old.weight not in opt.state
    assert model[4].weight not in opt.state  # it starts without a past
    assert model[0].weight in opt.state
    schedule.step()
    assert opt.param_groups[2]["lr"] == 0.25
    train(model, opt, 2, 3)


def test_units_are_those_of_the_changed_model():
    model = network()
    handle = attach(model, torch.optim.SGD(model.parameters(), lr=0.1), InsertNorm())
    assert [group.name for group in handle.units] == ["0.0", "2"]
    assert not handle.units["0.0"].reset_preserves_function  # a norm across the units stands behind them now
    assert {"0.1.weight", "0.1.bias"} <= set(handle.units["0.0"].tensors)


def test_injection_leaves_the_function_as_it_was():
    model, x = network(), torch.randn(4, 5)
    before = model(x).detach()
    opt = torch.optim.Adam(model.parameters())
    attach(model, opt, PlasticityInjection())
    assert torch.allclose(model(x), before, atol=1e-6)
    owned = {id(p) for p in opt.param_groups[0]["params"]}
    assert id(model[4].new.weight) in owned
    assert id(model[4].copy.weight) not in owned


def test_new_layers_come_from_the_seed_and_not_from_the_global_state():
    ends = []
    for seed, other in ((1, 0), (1, 5), (2, 0)):
        model = network()
        opt = torch.optim.SGD(model.parameters(), lr=0.1)
        torch.manual_seed(other)
        state = torch.get_rng_state()
        attach(model, opt, FreshHead(), seed=seed)
        assert torch.equal(torch.get_rng_state(), state)
        ends.append(model[4].weight.detach().clone())
    assert torch.equal(ends[0], ends[1])
    assert not torch.equal(ends[0], ends[2])


@final
@dataclass(frozen=True)
class Careless(Sketch):
    """What published code does: another module in the old one's place, and no word to the optimizer."""

    how: str = "replace"

    changes_model: ClassVar[bool] = True

    def surgery(self, model, optimizers):
        if self.how == "replace":
            model[4] = nn.Linear(6, 3)
        elif self.how == "extend":
            model.append(nn.Linear(3, 3))
        elif self.how == "disown":
            del optimizers[0].param_groups[0]["params"][0]
        else:
            model[4] = nn.Identity()


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("replace", r"no optimizer trains 4\.bias, 4\.weight.*replace_module"),
        ("extend", r"no optimizer trains 5\.bias, 5\.weight.*adopt"),
        ("disown", r"no optimizer trains 0\.weight"),
        ("remove", r"still trains 4\.bias, 4\.weight.*replace_module"),
    ],
)
def test_a_surgery_that_forgets_the_optimizer_is_refused(how, message):
    model = network()
    with pytest.raises(IllegalConfiguration, match=message):
        attach(model, torch.optim.SGD(model.parameters(), lr=0.1), Careless(how=how))


def test_parameters_that_nobody_trained_before_may_stay_so():
    model = network()
    opt = torch.optim.SGD(model[2:].parameters(), lr=0.1)
    attach(model, opt, FreshHead())
    assert all(p is not q for p in model[0].parameters() for q in opt.param_groups[0]["params"])


def test_units_of_the_model_before_do_not_fit():
    model = network()
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    units = pliant.find_units(model, torch.ones(2, 5))
    with pytest.raises(IllegalConfiguration, match=r"InsertNorm changes the model.*example_inputs"):
        pliant.attach(model, opt, [L2(), InsertNorm()], units=units)
    with pytest.raises(IllegalConfiguration, match=r"FreshHead.*dry_run.*deep copy"):
        attach(model, opt, FreshHead(), dry_run=True)
    assert list(model.state_dict()) == list(network().state_dict())


def test_what_a_method_must_implement():
    @final
    @dataclass(frozen=True)
    class Empty(Sketch):
        changes_model: ClassVar[bool] = True

    model = network()
    with pytest.raises(NotImplementedError, match=r"Empty.*surgery"):
        attach(model, torch.optim.SGD(model.parameters(), lr=0.1), Empty())


# ---- the tools ----
def test_muon_takes_matrices_only():
    model = network()
    matrices = [p for p in model.parameters() if p.ndim == 2]
    muon = torch.optim.Muon(matrices, lr=0.01)
    rest = torch.optim.AdamW([p for p in model.parameters() if p.ndim == 1])
    with pytest.raises(IllegalConfiguration, match=r"\(8,\) cannot join.*Muon.*like="):
        attach(model, [muon, rest], InsertNorm())
    model = network()
    muon = torch.optim.Muon([p for p in model.parameters() if p.ndim == 2], lr=0.01)
    rest = torch.optim.AdamW([p for p in model.parameters() if p.ndim == 1])
    norm = nn.Sequential(model[0], nn.LayerNorm(8))
    replace_module(model, [muon, rest], "0", norm, like=model[0].bias)
    assert [tuple(p.shape) for p in rest.param_groups[0]["params"]] == [(8,), (6,), (3,), (8,), (8,)]
    train(model, muon, 0, 1)


def test_mistakes_are_named():
    model = network()
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(IllegalConfiguration, match=r"no module '7'"):
        replace_module(model, [opt], "7", nn.Linear(6, 3))
    with pytest.raises(IllegalConfiguration, match="root"):
        replace_module(model, [opt], "", nn.Linear(6, 3))
    with pytest.raises(IllegalConfiguration, match=r"\(2, 2\)"):
        adopt([opt], list(nn.Linear(2, 2).parameters()), like=nn.Parameter(torch.ones(2, 2)))
    with pytest.raises(IllegalConfiguration, match=r"no optimizer owns a parameter of '1'"):
        replace_module(model, [opt], "1", nn.PReLU())
    model = network()
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    replace_module(model, [opt], "1", nn.PReLU(), like=model[0].weight)
    check_owned(model, opt)


def test_a_layer_that_is_shared_keeps_its_owner():
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 4)
            self.b = self.a

    model = Shared()
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    replace_module(model, [opt], "b", nn.Linear(4, 4))
    check_owned(model, opt)
    assert len(opt.param_groups[0]["params"]) == 4
    assert opt.param_groups[0]["params"][:2] == [model.a.weight, model.a.bias]


def test_new_modules_come_to_the_old_ones_type():
    model = network().double()
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    operate(model, [opt], 0, FreshHead().surgery)
    assert model[4].weight.dtype == torch.float64
    assert ExtraHeads().null().every is None
