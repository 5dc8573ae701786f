"""More failures measured in published code: which weights belong together, who trains them, ranks, resuming.

As in ``test_contracts_peer_failures.py``, the first line of each test says what it guards against.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import ClassVar, final

import pytest
import torch
import zoo
from contract_tools import METHODS, Run, assert_same_bits, units_of
from torch import nn
from torch.nn import functional as F
from zoo import ZOO

import pliant
from pliant.interventions import ContinualBackprop, ReDo
from pliant.interventions.base import Intervention
from pliant.surgery import replace_module


def step(model, optimizer, x):
    optimizer.zero_grad()
    zoo.loss_of(model(x)).backward()
    optimizer.step()


# ---- which weights belong together ----
def test_a_filter_before_a_flatten_owns_a_block_of_columns():
    """Published: conv -> flatten -> linear finds no outgoing weights, or the wrong columns."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(4 * 9, 5))
    with torch.no_grad():
        model[0].bias[2] = -100.0  # filter 2 is dead
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    handle = pliant.attach(model, optimizer, ReDo(tau=0.0, every=1), example_inputs=torch.randn(2, 1, 8, 8))
    before = model[4].weight.detach().clone()
    step(model, optimizer, torch.randn(8, 1, 8, 8))
    assert [(event.group, event.units) for event in handle.events] == [("0", (2,))]
    mine = torch.zeros(36, dtype=torch.bool)
    mine[18:27] = True  # channel-major: nine positions of each filter
    assert not model[4].weight[:, mine].any()
    assert torch.equal(model[4].weight[:, ~mine], before[:, ~mine])


def test_units_of_residual_branches_stay_inside_their_branch():
    """Published: discovery pairs the second convolution of a block with the next block."""
    units = units_of("resnet_basic")
    names = [{piece.name.rsplit(".", 1)[0] for piece in group.slices} for group in units if group.site == "hidden"]
    inside = [members for members in names if any(member.endswith("conv1") for member in members)]
    assert inside
    for members in inside:
        blocks = {member.rpartition(".")[0] for member in members if "block" in member or "layer" in member}
        assert len(blocks) == 1, members
    # what the branches add to is one group of all blocks, and is edited only by name
    assert [group.name for group in units.select("*") if group.site == "residual"] == []
    assert [group.name for group in units if group.site == "residual"] != []


def test_fc2_of_a_block_is_no_producer_of_the_next_query():
    """Published: in a transformer, fc2 is paired with the next query, and v with o as if heads were units."""
    torch.manual_seed(0)
    model = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0), 2, enable_nested_tensor=False
    )
    for group in pliant.find_units(model, torch.randn(2, 3, 8)).select("*"):
        layers = {piece.name.split(".")[1] for piece in group.slices}
        assert len(layers) == 1, group
        outgoing = {piece.name.split(".", 2)[2] for piece in group.role("outgoing")}
        assert outgoing in ({"linear2.weight"}, {"self_attn.out_proj.weight"}), group


def test_a_subclass_of_a_norm_is_a_norm():
    """Published: a registry of exact types lets a subclass of a batch norm pass by silently."""

    class MyNorm(nn.BatchNorm1d):
        pass

    model = nn.Sequential(nn.Linear(5, 8), MyNorm(8), nn.ReLU(), nn.Linear(8, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with torch.no_grad():
        model[1].weight.fill_(3.0)
        model[1].bias[1] = -100.0
        model[1].running_var.fill_(9.0)
    pliant.attach(model, optimizer, ReDo(tau=0.0, every=1), example_inputs=torch.randn(4, 5))
    step(model, optimizer, torch.randn(16, 5))
    assert (model[1].weight[1], model[1].bias[1], model[1].running_var[1]) == (1.0, 0.0, 1.0)
    assert model[1].weight[0] == 3.0


def test_nothing_found_is_an_error_and_not_a_healthy_report():
    """Published: monitors attach to nothing and report a score of 1.0; zero groups come without a word."""
    model = nn.Linear(5, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x = torch.randn(4, 5)
    with pytest.raises(pliant.NoEffect):
        pliant.attach(model, optimizer, ReDo(), example_inputs=x)
    with pytest.raises(pliant.NoEffect):
        pliant.monitor(model, optimizer, ["dormant_fraction"], example_inputs=x)
    model = ZOO["mlp"].model().eval()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    watch = pliant.monitor(model, optimizer, ["dormant_fraction"], units=units_of("mlp"), every=1)
    with pytest.raises(pliant.IllegalConfiguration, match=r"model\.train\(\)"):
        step(model, optimizer, x)
    assert not watch.history


# ---- who trains them ----
@final
@dataclass(frozen=True)
class Injection(Intervention):
    """Plasticity injection (Nikishin et al., 2023), reduced to its surgery: head + (new - frozen copy of new)."""

    changes_model: ClassVar[bool] = True

    def null(self):
        return self

    def surgery(self, model, optimizers):
        replace_module(model, optimizers, "2", Injected(model[2]))


class Injected(nn.Module):
    def __init__(self, head: nn.Linear) -> None:
        super().__init__()
        self.original = head.requires_grad_(False)
        self.new, self.frozen = (nn.Linear(head.in_features, head.out_features) for _ in range(2))
        self.frozen.load_state_dict(self.new.state_dict())
        self.frozen.requires_grad_(False)

    def forward(self, h):
        return self.original(h) + self.new(h) - self.frozen(h)


def test_injected_weights_are_trained_and_the_original_is_not():
    """Published: after plasticity injection the optimizer holds the old head, and nothing new learns."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    x = torch.randn(16, 5)
    step(model, optimizer, x)
    before = model(x).detach()
    pliant.attach(model, optimizer, Injection(), example_inputs=x)
    assert torch.allclose(model(x), before, atol=1e-6)  # nothing has changed yet
    original, new = model[2].original.weight.detach().clone(), model[2].new.weight.detach().clone()
    step(model, optimizer, x)
    assert torch.equal(model[2].original.weight, original)
    assert not torch.equal(model[2].new.weight, new)


@pytest.mark.parametrize("order", ["reversed", "groups"])
def test_moments_are_found_by_parameter_and_not_by_position(order):
    """Published: moments are looked up as state_dict()["state"][2 * layer], which other orders of parameters break."""
    model = ZOO["mlp"].model()
    with torch.no_grad():
        model[0].bias[3] = -100.0  # unit 3 is dead
    parameters = list(reversed(list(model.parameters())))
    groups = [{"params": [p], "lr": 0.0} for p in parameters] if order == "groups" else parameters
    optimizer = torch.optim.Adam(groups, lr=0.0)
    step(model, optimizer, torch.randn(8, 5))
    for parameter in model.parameters():
        optimizer.state[parameter]["exp_avg"].fill_(7.0)
    handle = pliant.attach(model, optimizer, ReDo(tau=0.0, every=1, where="0"), units=units_of("mlp"))
    step(model, optimizer, torch.randn(8, 5))
    assert [event.units for event in handle.events] == [(3,)]
    rows = optimizer.state[model[0].weight]["exp_avg"].any(1)
    columns = optimizer.state[model[2].weight]["exp_avg"].any(0)
    assert rows.tolist() == columns.tolist() == [True, True, True, False, True, True, True, True]


def test_a_graph_from_before_a_reset_cannot_be_used_silently():
    """Published: edits of .data are not noticed by autograd, so a later backward pass mixes old and new weights."""
    model = ZOO["mlp"].model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    handle = pliant.attach(model, optimizer, ReDo(tau=1.0, every=1), units=units_of("mlp"))
    x = torch.randn(8, 5)
    kept = model(x).square().mean()
    step(model, optimizer, x)
    assert len(handle.events) > 0
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        kept.backward()


def test_other_hooks_of_the_optimizer_keep_working():
    """Published: a wrapper around the optimizer breaks register_step_post_hook and isinstance checks."""
    run = Run("mlp", "adam", METHODS["continual_backprop"])
    seen = []
    run.optimizer.register_step_post_hook(lambda *_: seen.append(len(run.handle.events)))
    torch.optim.lr_scheduler.ExponentialLR(run.optimizer, 0.9)
    run.train()
    assert type(run.optimizer) is torch.optim.Adam
    assert seen[-1] > 0
    assert len(seen) == 8


# ---- compilation, ranks, resuming ----
def test_a_protected_model_compiles_into_a_full_graph():
    """Published: a layer that counts and resets inside forward breaks torch.compile(fullgraph=True)."""
    torch._dynamo.reset()
    run = Run("mlp", "sgd", METHODS["continual_backprop"])
    compiled = torch.compile(run.model, backend="eager", fullgraph=True)
    for index in range(6):
        step(compiled, run.optimizer, run.batch(index))
    assert len(run.handle.events) > 0
    torch._dynamo.reset()


@pytest.mark.parametrize("method", ["continual_backprop", "redo", "shrink_and_perturb", "fresh_start"])
def test_fresh_weights_do_not_come_from_the_global_generator(method):
    """Published: no generator of their own, so that the replicas of a model draw different weights."""

    def train(rank):
        run = Run("conv_bn_flatten", "sgd", METHODS[method])
        for index in range(6):
            torch.manual_seed(100 * rank + index)  # as data loading and dropout leave it on each rank
            step(run.model, run.optimizer, run.batch(index))
            run.handle.task_boundary()
        return run

    first, second = train(0), train(1)
    assert first.handle.num_steps == 6
    assert_same_bits(first.bits(), second.bits())


def test_resetting_leaves_the_global_generator_alone():
    """Published: draws from the global generator, so that protecting a model changes its dropout and data."""
    run = Run("mlp", "sgd", METHODS["several"])
    x = run.batch(0)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    for _ in range(6):
        step(run.model, run.optimizer, x)
        run.handle.task_boundary()
    assert run.handle.num_resets
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("method", METHODS)
def test_a_checkpoint_of_ones_own_can_be_resumed_from(method):
    """Published: state keyed by Parameter objects in optimizer.state; the first step after loading is a KeyError."""
    run = Run("mlp", "adam", METHODS[method]).train(0, 4)
    state = run.optimizer.state_dict()
    assert set(state["state"]) == set(range(6))  # nothing of ours is in there
    file = io.BytesIO()
    torch.save({"optimizer": state, "pliant": run.handle.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    other = Run("mlp", "adam", METHODS[method])
    other.optimizer.load_state_dict(saved["optimizer"])
    other.handle.load_state_dict(saved["pliant"])
    other.train(4, 5)
    assert other.handle.num_steps == 5


def test_the_models_modules_and_keys_stay_as_they_are():
    """Published: the layers before and after are registered a second time, which doubles their keys."""
    model = ZOO["resnet_basic"].model()
    before = (list(model.state_dict()), [name for name, _ in model.named_modules()], type(model))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    handle = pliant.attach(model, optimizer, ContinualBackprop(), units=units_of("resnet_basic"))
    assert (list(model.state_dict()), [name for name, _ in model.named_modules()], type(model)) == before
    handle.detach()
    assert (list(model.state_dict()), [name for name, _ in model.named_modules()], type(model)) == before


def test_a_functional_convolution_over_tokens_counts_channels():
    """Published: activations [B, C, T] and [B, T, D] are told apart by their number of dimensions."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.out = nn.Conv1d(3, 7, 3, padding=1), nn.Linear(7, 2)

        def forward(self, x):
            return self.out(F.gelu(self.conv(x)).transpose(1, 2)).mean(1)

    model, x = Net(), torch.randn(4, 3, 11)
    units = pliant.find_units(model, x)
    assert units["conv"].size == 7
    assert pliant.stats.capture(model, units, x)["conv"].shape == (44, 7)
