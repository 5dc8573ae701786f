"""When interventions act: cadences, several heads, and what a protected step runs in between."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import pliant


class Heads(nn.Module):
    """A trunk and heads of which a forward uses one."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(4, 8), nn.ReLU())
        self.heads = nn.ModuleList(nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2)) for _ in range(3))
        self.use: int | None = None

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        hidden = self.trunk(x)
        chosen = self.heads if self.use is None else [self.heads[self.use]]
        return tuple(head(hidden) for head in chosen)


def train(model, optimizer, steps, heads=None):
    for step in range(steps):
        if heads is not None:
            model.use = heads[step % len(heads)]
        optimizer.zero_grad()
        sum(item.square().mean() for item in model(torch.randn(8, 4))).backward()
        optimizer.step()


def attached(method):
    torch.manual_seed(0)
    model = Heads()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    return model, optimizer, pliant.attach(model, optimizer, method, example_inputs=torch.randn(2, 4))


def test_heads_that_take_turns_are_all_replaced_whatever_the_period_of_decisions():
    model, optimizer, handle = attached(pliant.ContinualBackprop(0.2, maturity_threshold=2, decide_every=2))
    train(model, optimizer, 40, heads=(0, 1))
    assert {name for name, count in handle.num_resets.items() if count > 0} == {"trunk.0", "heads.0.0", "heads.1.0"}
    assert handle.unheard == ("heads.2.0",)


def test_a_head_ages_only_in_steps_that_use_it():
    model, optimizer, handle = attached(pliant.ContinualBackprop(0.0, decide_every=1))
    train(model, optimizer, 12, heads=(0, 1, 1))
    state = handle.state_dict()["state"][0]
    assert {name: int(entry["age"][0]) for name, entry in state.items()} == {
        "trunk.0": 12, "heads.0.0": 4, "heads.1.0": 8, "heads.2.0": 0,
    }  # fmt: skip


def test_the_default_cadence_follows_the_slower_clocks_of_the_method():
    assert pliant.ContinualBackprop().cadence == 8
    assert pliant.ContinualBackprop(exact=True).cadence == 1
    assert pliant.ContinualBackprop(maturity_threshold=24).cadence == 2
    assert pliant.ContinualBackprop(decay_rate=0.9).cadence == 1
    assert pliant.ContinualBackprop(decide_every=3).cadence == 3
    assert pliant.ContinualBackprop(sample_every=5).cadence == 5


def test_decisions_wait_for_a_few_units_but_not_long():
    """At most 8 % of a unit's mean life, and at least every second sample."""
    model, _, handle = attached(pliant.ContinualBackprop(1e-3))
    (trunk,) = handle.units.select("trunk.0")
    assert pliant.ContinualBackprop(1e-3).period(trunk) == 128  # one of eight units in 125 steps, in whole samples
    assert pliant.ContinualBackprop(1.0).period(trunk) == 16
    wide = pliant.find_units(nn.Sequential(nn.Linear(4, 200), nn.ReLU(), nn.Linear(200, 2)), torch.randn(2, 4))
    assert pliant.ContinualBackprop(1e-3).period(wide["0"]) == 40  # eight of two hundred in 40 steps, in whole samples
    handle.detach()
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_between_samples_no_hook_is_left_on_the_model():
    model, optimizer, handle = attached(pliant.ContinualBackprop(1e-3))

    def hooks() -> int:
        return sum(len(module._forward_pre_hooks) + len(module._forward_hooks) for module in model.modules())

    train(model, optimizer, 8)  # until the first sample the hooks stay: the model may be compiled
    seen = []
    for _ in range(20):
        train(model, optimizer, 1)
        seen.append(hooks())
    assert seen == [0] * 6 + [seen[6]] + [0] * 7 + [seen[6]] + [0] * 5
    assert seen[6] > 0
    handle.detach()


def test_a_due_step_after_a_resume_is_the_due_step_of_the_whole_run():
    method = pliant.ContinualBackprop(0.05, maturity_threshold=2, sample_every=5)
    model, optimizer, handle = attached(method)
    train(model, optimizer, 7)
    saved = handle.state_dict()
    handle.detach()
    other = pliant.attach(model, optimizer, method, units=handle.units)
    other.load_state_dict(saved)
    train(model, optimizer, 3)
    assert other.num_steps == 10
    assert {event.step for event in other.events} == {10}
    assert all(int(entry["age"].max()) == 10 for entry in other.state_dict()["state"][0].values())


@pytest.mark.parametrize("how", ["a new layer", "load_state_dict(assign=True)"])
def test_a_model_that_has_other_tensors_than_at_attach_is_an_error(how):
    model, optimizer, handle = attached(pliant.ContinualBackprop(0.1, maturity_threshold=1))
    train(model, optimizer, 2)
    if how == "a new layer":
        model.heads[1][2] = nn.Linear(6, 2)
        optimizer.add_param_group({"params": list(model.heads[1][2].parameters())})
    else:
        copied = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        model.load_state_dict(copied, assign=True)
    with pytest.raises(pliant.IllegalConfiguration, match="not the tensor that pliant was attached to"):
        train(model, optimizer, 40)
    handle.detach()
