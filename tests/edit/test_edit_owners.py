"""Who owns what: sparse gradients, several optimizers, shared matrices, late groups, optimizers from elsewhere."""

from __future__ import annotations

import copy

import pytest
import torch
import zoo
from edit_tools import OPTIMIZERS, double, editor, mask_of, state_tensors, train_mlp, units_of
from torch import nn
from zoo import ZOO

import pliant
from pliant import IllegalConfiguration, NotYetSupported
from pliant.interventions import L2, FreshStart, ReDo
from pliant.optimizer_state import moments
from pliant.units.group import TensorSlice, UnitGroup


# ---- sparse gradients, several optimizers, groups ----
class Recommender(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(10, 6, sparse=True), nn.Linear(6, 3)

    def forward(self, items):
        return self.head(torch.relu(self.table(items).mean(1)))

    @staticmethod
    def group() -> UnitGroup:
        rows = tuple((unit,) for unit in range(6))
        places = (TensorSlice("table.weight", -1, "incoming", rows), TensorSlice("head.weight", -1, "outgoing", rows))
        return UnitGroup("table", 6, places, "hidden", None, True)


def test_sparse_adam():
    """Its moments are dense; its counter is a number on the host."""
    torch.manual_seed(0)
    model, items = Recommender().double(), torch.randint(10, (7, 3))
    sparse, dense = torch.optim.SparseAdam(model.table.parameters()), torch.optim.Adam(model.head.parameters())
    for _ in range(3):
        zoo.loss_of(model(items)).backward()
        sparse.step()
        dense.step()
        model.zero_grad()
    for value in state_tensors(sparse, model.table.weight).values():
        value.fill_(7.0)
    zoo.loss_of(model(items)).backward()
    one = editor(model, sparse)
    one.owners = {"table.weight": sparse, "head.weight": dense, "head.bias": dense}
    one.stepped = dense  # the embedding's gradient still waits for its step
    gradient = model.table.weight.grad.to_dense()
    one.reset(Recommender.group(), torch.tensor([False, True, False, False, False, False]))
    for value in state_tensors(sparse, model.table.weight).values():
        assert not value[:, 1].any()
        assert (value[:, [0, 2, 3, 4, 5]] == 7).all()
    now = model.table.weight.grad.to_dense()
    assert gradient[:, 1].any()
    assert not now[:, 1].any()
    assert torch.equal(now[:, [0, 2, 3, 4, 5]], gradient[:, [0, 2, 3, 4, 5]])
    assert sparse.state[model.table.weight]["step"] == 3
    one.assign("table.weight", torch.zeros(10, 6, dtype=torch.float64))
    assert sparse.state[model.table.weight]["step"] == 0


def test_gradients_that_wait_for_another_optimizer_are_those_of_the_old_units():
    """Two optimizers share a group (a trunk and a head): after the first one's step units are reset, and the second
    one must not put the old units' gradient on the new weights.
    """
    case = ZOO["actor_critic"]
    model = case.model()
    actor = torch.optim.SGD([*model.trunk.parameters(), *model.actor.parameters()], lr=1e-2)
    critic = torch.optim.SGD(model.critic.parameters(), lr=1.0)
    handle = pliant.attach(
        model, [actor, critic], ReDo(tau=1.0, every=1, where="trunk.0"), units=units_of("actor_critic")
    )
    zoo.loss_of(model(case.batch())).backward()
    actor.step()
    hit = list(next(iter(handle.events)).units)
    assert handle.units["trunk.0"].role("outgoing")[1].name == "critic.0.weight"
    critic.step()
    assert not model.critic[0].weight[:, hit].any()
    kept = [unit for unit in range(model.critic[0].weight.shape[1]) if unit not in hit]
    assert model.critic[0].weight.grad[:, kept].any()


def test_a_shared_matrix_is_edited_once_and_its_moments_with_it():
    class Shared(nn.Module):
        def __init__(self, same: bool) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 2)
            self.again = self.first if same else nn.Linear(1, 1)

    draws = []
    for same in (True, False):
        model = Shared(same)
        opt = torch.optim.Adam(model.parameters())
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        opt.step()
        rows = tuple((unit,) for unit in range(4))
        slices = (TensorSlice("first.weight", -2, "incoming", rows), TensorSlice("last.weight", -1, "outgoing", rows))
        one = editor(model, opt)
        one.reset(UnitGroup("first", 4, slices, "hidden", None, True), torch.tensor([True, False, False, False]))
        draws.append((model.first.weight.detach().clone(), one.random_state()["cpu"][0]))
        assert not opt.state[model.first.weight]["exp_avg"][0].any()
    assert torch.equal(draws[0][0], draws[1][0])
    assert torch.equal(draws[0][1], draws[1][1])


def test_nothing_is_asked_of_an_optimizer_that_has_not_stepped():
    for build in OPTIMIZERS.values():
        model = ZOO["mlp"].model()
        opt = build(model.parameters())
        before = copy.deepcopy(opt.state_dict())
        editor(model, opt).reset(units_of("mlp")["0"], mask_of(8))
        # nothing is put there, for optimizers start their state where it is empty (Adagrad has started before)
        assert isinstance(opt, torch.optim.Adagrad) or opt.state_dict() == before


def test_parameters_of_a_group_added_later_are_shrunk_and_restarted_too():
    model = ZOO["mlp"].model().double()
    opt = torch.optim.SGD([*model[0].parameters(), *model[2].parameters()], lr=0.0, momentum=0.9)
    handle = pliant.attach(model, opt, [L2(1.0), FreshStart()], units=units_of("mlp"))
    train_mlp(model, opt, 1)
    kept = model[4].weight.detach().clone()
    opt.add_param_group({"params": model[4].parameters(), "lr": 0.5})
    with torch.no_grad():
        model[4].weight.fill_(1.0)
    zoo.loss_of(zoo.call(model, double(ZOO["mlp"].batch()))).backward()
    for parameter in model.parameters():
        parameter.grad.zero_()
    opt.step()
    assert (model[4].weight == 0.5).all()
    assert opt.state[model[4].weight]["momentum_buffer"] is not None
    opt.state[model[4].weight]["momentum_buffer"].fill_(7.0)
    handle.task_boundary()
    assert not opt.state[model[4].weight]["momentum_buffer"].any()
    assert not torch.equal(model[4].weight, kept)


# ---- optimizers from elsewhere ----
class Odd(torch.optim.Optimizer):
    """Gradient descent with a state of its own."""

    make = staticmethod(lambda p: p.detach().clone() + 1)

    def __init__(self, params) -> None:
        super().__init__(params, {"lr": 0.1})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p].setdefault("slow_weights", self.make(p))
                p.sub_(0.1 * p.grad)


def odd(**more):
    model = ZOO["mlp"].model().double()
    opt = Odd(model.parameters())
    handle = pliant.attach(model, opt, ReDo(tau=1.0, every=1, where="0"), units=units_of("mlp"), **more)
    return model, opt, handle


def test_an_unknown_moment_is_refused_with_the_way_to_declare_it():
    model, opt, _ = odd()
    with pytest.raises(NotYetSupported, match=r"Odd keeps a state 'slow_weights' of shape \(8, 5\).*moments=\{"):
        train_mlp(model, opt, 1)


@pytest.mark.parametrize("declared", [0.0, 3, "weights", "keep"])
def test_a_declared_moment_starts_as_it_was_declared(declared):
    model, opt, handle = odd(moments={"slow_weights": declared})
    old = model[0].weight.detach().clone() + 1
    train_mlp(model, opt, 1)
    hit = torch.zeros(8, dtype=torch.bool)
    hit[list(next(iter(handle.events)).units)] = True
    assert hit.any()
    assert not hit.all()
    state = opt.state[model[0].weight]["slow_weights"]
    want = {"weights": model[0].weight, "keep": old}.get(
        declared, torch.full_like(old, declared if declared in (0, 3) else 0)
    )
    assert torch.equal(state[hit], want[hit])
    assert torch.equal(state[~hit], old[~hit])


@pytest.mark.parametrize("declared", ["zero", None, True, "init"])
def test_a_declaration_that_says_nothing_is_refused(declared):
    with pytest.raises(IllegalConfiguration, match=r"slow_weights.*value that a new entry starts from"):
        odd(moments={"slow_weights": declared})


@pytest.mark.parametrize("hidden", [lambda p: [p.detach().clone()], lambda p: {"q": p.detach().clone()}])
def test_state_inside_containers_is_not_overlooked(hidden, monkeypatch):
    """Preconditioned optimizers (Shampoo, SOAP, PSGD) keep lists of matrices: nothing may be guessed there."""
    monkeypatch.setattr(Odd, "make", staticmethod(hidden))
    model, opt, _ = odd()
    with pytest.raises(NotYetSupported, match="slow_weights"):
        train_mlp(model, opt, 1)


def test_a_name_that_means_something_else_elsewhere_is_not_guessed():
    """``sum``, ``prev`` and ``ax`` are known of the optimizers of torch.optim only."""
    for key in ("sum", "prev", "ax", "step_size", "variance"):
        weight = nn.Parameter(torch.ones(2, 2))
        opt = torch.optim.SGD([weight], lr=0.1)
        opt.state[weight][key] = torch.ones(2, 2)
        with pytest.raises(NotYetSupported, match=key):
            moments(opt, weight, "weight")
