"""A copied optimizer goes on exactly as the original does, or starts exactly as it did."""

from __future__ import annotations

import pytest
import torch
from probe_tools import adam, everything, inputs, is_same, plain
from torch import nn

from pliant.errors import IllegalConfiguration
from pliant.fresh import copy_of
from pliant.optim import UPGD
from pliant.probe import RandomLabels, probe
from pliant.probe.optimizers import like, maker

KINDS = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True),
    "AdamW fused": lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
    "AdamW of a tensor": lambda p: torch.optim.AdamW(p, lr=torch.tensor(0.01), capturable=False),
    "NAdam": lambda p: torch.optim.NAdam(p, lr=0.01),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.01, centered=True),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01),
    "Adafactor": lambda p: torch.optim.Adafactor(p, lr=0.01),
    "Rprop": lambda p: torch.optim.Rprop(p, lr=0.01),
    "UPGD": lambda p: UPGD(p, lr=0.01),
    "two groups": lambda p: torch.optim.Adam([{"params": p[:1], "lr": 0.1}, {"params": p[1:]}], lr=0.01),
}


def train(model, optimizer, steps, seed=0):
    torch.manual_seed(seed)  # some optimizers draw
    for step in range(steps):
        optimizer.zero_grad()
        model(inputs(16, seed=step)).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("kind", KINDS)
def test_carried_moments_go_on_and_fresh_ones_start_anew(kind):
    model = plain()
    optimizer = KINDS[kind](list(model.parameters()))
    torch.optim.lr_scheduler.StepLR(optimizer, 1)  # wraps the optimizer's step
    heard = []
    optimizer.register_step_post_hook(lambda *_: heard.append(1))
    train(model, optimizer, 3)
    heard.clear()
    before = everything(model, optimizer)
    one, two = copy_of(model), copy_of(model)
    carried = like(optimizer, model, one, moments="carried")
    fresh = like(optimizer, model, two, moments="fresh")
    born = copy_of(two)
    anew = KINDS[kind](list(born.parameters()))
    train(one, carried, 3, seed=5)
    train(two, fresh, 3, seed=5)
    train(born, anew, 3, seed=5)
    assert heard == []
    torch.manual_seed(0)
    assert is_same(everything(model, optimizer)["values"], before["values"])
    assert is_same(everything(model, optimizer)["optimizers"], before["optimizers"])
    train(model, optimizer, 3, seed=5)
    assert is_same(dict(one.state_dict()), dict(model.state_dict()))
    assert is_same(dict(two.state_dict()), dict(born.state_dict()))
    assert not is_same(dict(one.state_dict()), dict(two.state_dict()))


def test_parameters_of_others_are_left_out():
    model, temperature = plain(), nn.Parameter(torch.zeros(3))
    named = [*model.named_parameters(), ("temperature", temperature)]
    optimizer = torch.optim.Adam(named, lr=0.01)
    other = copy_of(model)
    found = like(optimizer, model, other, moments="fresh")
    assert [len(group["params"]) for group in found.param_groups] == [4]
    if "param_names" in optimizer.param_groups[0]:
        assert found.param_groups[0]["param_names"] == [name for name, _ in model.named_parameters()]
    alone = torch.optim.Adam([{"params": [temperature]}, {"params": list(model.parameters()), "lr": 0.5}])
    found = like(alone, model, other, moments="fresh")
    assert [group["lr"] for group in found.param_groups] == [0.5]
    with pytest.raises(IllegalConfiguration, match="owns no parameter"):
        like(torch.optim.Adam([temperature]), model, other, moments="fresh")


def test_wrappers_are_opened():
    class Wrapper:
        def __init__(self, optimizer):
            self.optimizer = optimizer

    model = plain()
    made = maker(model, [Wrapper(adam(model.parameters()))], "fresh")(copy_of(model), "fresh")
    assert type(made[0]) is torch.optim.Adam


def test_a_result_says_what_it_was_made_with():
    task = RandomLabels(inputs=inputs(), num_classes=4, batch_size=16)
    found = probe(plain(), task, optimizer=KINDS["two groups"], steps=3, seeds=2)
    assert [(group["kind"], group["lr"]) for group in found.config["optimizer"]] == [("Adam", 0.1), ("Adam", 0.01)]
    assert found.config["task"]["num_classes"] == 4
    assert found.config["task"]["inputs"] == {"shape": [64, 8]}
    assert "tensor" not in repr(task)
    ids = {record.experiment_id for record in found.records()}
    other = probe(plain(), task, optimizer=adam, steps=3, seeds=2)
    assert len(ids | {record.experiment_id for record in other.records()}) == 2
