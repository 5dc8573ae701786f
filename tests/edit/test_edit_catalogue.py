"""Every method of the field can be written with these verbs and kinds of state: sketches of each keep the contracts."""

from __future__ import annotations

import copy
import io

import pytest
import torch
import zoo
from catalogue import METHODS, SURGEONS, HareAndTortoise
from zoo import ZOO

import pliant

OPTIMIZERS = {
    "adam": lambda p: torch.optim.Adam(p, lr=1e-2),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
}
ALL = {**METHODS, **SURGEONS}


class Run:
    """A loop as a user writes it."""

    def __init__(self, method=None, optimizer="adam", seed=0, name="mlp", **more) -> None:
        self.case = ZOO[name]
        self.model = self.case.model(seed)
        self.optimizer = OPTIMIZERS[optimizer](self.model.parameters())
        self.handle = None
        if method is not None:
            more = {"example_inputs": self.case.batch(), "init": self.case.init, **more}
            self.handle = pliant.attach(self.model, self.optimizer, method, **more)

    def train(self, start, stop):
        for step in range(start, stop):
            torch.manual_seed(step)  # for dropout
            self.optimizer.zero_grad()
            loss = zoo.loss_of(zoo.call(self.model, self.case.batch(8, seed=step)))
            if self.handle is not None:
                loss = loss + self.handle.penalty()
            loss.backward()
            self.optimizer.step()
            if self.handle is not None and step == 4:
                self.handle.task_boundary(self.case.batch(8, seed=100))
        return self

    def save(self):
        file = io.BytesIO()
        torch.save([self.model.state_dict(), self.optimizer.state_dict(), self.handle.state_dict()], file)
        file.seek(0)
        return torch.load(file, weights_only=True)

    def load(self, states):
        self.model.load_state_dict(states[0])
        self.optimizer.load_state_dict(states[1])
        self.handle.load_state_dict(states[2])
        return self


def same(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", ALL)
def test_it_acts_and_resumes_bit_by_bit(name, optimizer):
    """From a checkpoint that loads with ``weights_only``, into a run that began with other weights and seeds."""
    run = Run(ALL[name], optimizer, seed=0).train(0, 3)
    states = copy.deepcopy(run.save())
    run.train(3, 8)
    resumed = Run(ALL[name], optimizer, seed=99).load(states).train(3, 8)
    assert same(run.save(), resumed.save())
    if name not in SURGEONS:
        plain = Run(None, optimizer).train(0, 8)
        assert not same(plain.model.state_dict(), run.model.state_dict())


@pytest.mark.parametrize("architecture", ["conv_bn_flatten", "tied_autoencoder", "lstm", "vit"])
@pytest.mark.parametrize("name", [name for name in METHODS if name not in ("Churn", "Dash")])
def test_it_resumes_on_other_architectures(name, architecture):
    """Bit by bit; state per unit, per parameter and of whole networks is found again, whatever the tensors are."""
    run = Run(METHODS[name], name=architecture).train(0, 3)
    states = copy.deepcopy(run.save())
    run.train(3, 6)
    resumed = Run(METHODS[name], seed=99, name=architecture).load(states).train(3, 6)
    assert same(run.save(), resumed.save())
    assert len(run.handle.events) > 0 or name in ("PullBeforeTheStep", "SelfNormalisedResets")


@pytest.mark.parametrize("name", METHODS)
def test_its_null_changes_no_bit(name):
    plain, run = Run().train(0, 6), Run(METHODS[name].null()).train(0, 6)
    assert same(plain.model.state_dict(), run.model.state_dict())
    assert same(plain.optimizer.state_dict(), run.optimizer.state_dict())
    assert len(run.handle.events) == 0


@pytest.mark.parametrize("name", METHODS)
def test_it_leaves_nothing_behind(name):
    """Hooks, attributes and keys are what they were; copies of the network are freed with the handle's hooks."""
    run = Run(METHODS[name])
    keys, attributes = list(run.model.state_dict()), [sorted(vars(module)) for module in run.model.modules()]
    run.train(0, 4)
    has_copies = bool(run.handle._memory[0].parameters or run.handle._memory[0].snapshots)
    run.handle.detach()
    assert list(run.model.state_dict()) == keys
    assert [sorted(vars(module)) for module in run.model.modules()] == attributes
    assert not run.model._forward_hooks
    assert not any(m._forward_pre_hooks for m in run.model.modules())
    assert not run.optimizer._optimizer_step_post_hooks
    assert not run.optimizer._optimizer_step_pre_hooks
    assert not run.handle._memory[0].parameters
    assert not run.handle._memory[0].snapshots
    if has_copies:
        with pytest.raises(pliant.IllegalConfiguration, match="detached"):
            run.handle.state_dict()
    else:
        run.handle.state_dict()


@pytest.mark.parametrize("name", METHODS)
def test_a_dry_run_reports_and_changes_nothing(name):
    run, plain = Run(METHODS[name], dry_run=True).train(0, 6), Run().train(0, 6)
    if name not in ("Churn", "PullBeforeTheStep"):  # they change the loss and the gradients, which is no edit
        assert same(plain.model.state_dict(), run.model.state_dict())
        assert len(run.handle.events) > 0
        assert all(event.to_dict()["intervention"] == name for event in run.handle.events)


def test_what_a_slow_network_holds_is_what_the_paper_says():
    run, plain = Run(HareAndTortoise(every=3)), Run()
    tortoise = plain.model[0].weight.detach().clone()
    for step in range(3):
        run.train(step, step + 1)
        plain.train(step, step + 1)
        tortoise.lerp_(plain.model[0].weight.detach(), 0.1)
    assert torch.equal(run.model[0].weight, tortoise)
    assert run.handle.record()["HareAndTortoise.num_leaps"] == 1
    assert run.handle.record()["num_steps"] == 3
    (event,) = run.handle.events
    assert event.reason == "back to the slow network"
    assert set(event.tensors) == set(dict(run.model.named_parameters()))
