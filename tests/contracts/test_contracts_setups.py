"""Contracts about what else users do around a training step, each for the methods that it could break."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import zoo
from contract_tools import METHODS, Run, assert_same_bits, units_of
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import CheckpointImpl, checkpoint_wrapper
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from zoo import ZOO

import pliant
from pliant import NotYetSupported
from pliant.interventions import L2, ContinualBackprop, ReDo


# ---- backward passes ----
@pytest.mark.parametrize("method", ["continual_backprop", "redo"])
def test_two_backward_passes_of_one_forward_are_one_sample(method):
    """Two losses on one output, the graph retained: the same gradient, the same statistics, the same resets."""
    one, two = (Run("mlp", "sgd", METHODS[method], dtype=torch.float64) for _ in range(2))
    for step in range(8):
        for run in (one, two):
            run.optimizer.zero_grad()
            out = run.model(run.batch(step))
            if run is one:
                (out.square().mean() + out.sum()).backward()
            else:
                out.square().mean().backward(retain_graph=True)
                out.sum().backward()
            run.optimizer.step()
    assert list(one.handle.events) == list(two.handle.events)
    assert len(one.handle.events) > 0
    for a, b in zip(one.model.parameters(), two.model.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-12)


@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize("method", METHODS)
def test_how_gradients_are_cleared_and_clipped_does_not_matter(method, set_to_none):
    plain, other = Run("mlp", "adam", METHODS[method]), Run("mlp", "adam", METHODS[method])
    for step in range(8):
        for run in (plain, other):
            run.optimizer.zero_grad(set_to_none=set_to_none if run is other else True)
            zoo.loss_of(run.model(run.batch(step))).backward()
            nn.utils.clip_grad_norm_(run.model.parameters(), 1e6 if run is other else math.inf)
            run.optimizer.step()
            if step == 3:
                run.handle.task_boundary()
    assert_same_bits(plain.bits(), other.bits())


def test_gradients_are_clipped_as_without_pliant():
    plain, run = Run("mlp", "sgd"), Run("mlp", "sgd", METHODS["continual_backprop"])
    norms = []
    for one in (plain, run):
        zoo.loss_of(one.model(one.batch(0))).backward()
        norms.append(nn.utils.clip_grad_norm_(one.model.parameters(), 0.01))
        one.optimizer.step()
    assert norms[0] == norms[1] > 0.01
    assert_same_bits(plain.bits(), run.bits(), only="model.")


def test_optimizers_that_need_many_evaluations_a_step_are_refused():
    model = ZOO["mlp"].model()
    with pytest.raises(NotYetSupported, match="LBFGS"):
        pliant.attach(model, torch.optim.LBFGS(model.parameters()), METHODS["redo"], units=units_of("mlp"))


# ---- parameters that come, go and rest ----
@pytest.mark.parametrize("method", METHODS)
def test_what_is_frozen_later_is_not_edited_any_more(method):
    """Freezing a layer in the middle of a run: its units, and every whole-tensor edit of it, rest from then on."""
    run = Run("mlp", "sgd_momentum", METHODS[method]).train(0, 3)
    for parameter in run.model[0].parameters():
        parameter.requires_grad_(False)
    frozen = {key: value.clone() for key, value in run.model[0].state_dict().items()}
    outgoing = run.model[2].weight.detach().clone()
    run.train(3)
    assert all(torch.equal(frozen[key], value) for key, value in run.model[0].state_dict().items())
    assert not torch.equal(outgoing, run.model[2].weight)  # the other layers go on
    assert all(event.group != "0" for event in run.handle.events if event.step > 3)
    if method in ("continual_backprop", "redo"):
        assert any(event.group == "2" for event in run.handle.events if event.step > 3)
    for parameter in run.model[0].parameters():
        parameter.requires_grad_(True)
    run.train(8, 16)
    assert not torch.equal(frozen["weight"], run.model[0].weight)
    if method in ("continual_backprop", "redo"):
        assert any(event.group == "0" for event in run.handle.events if event.step > 8)


def test_a_layer_that_is_added_later_is_trained_and_left_alone():
    run = Run("mlp", "adam", [L2(0.1), METHODS["continual_backprop"]]).train(0, 3)
    adapter = nn.Linear(3, 3)
    run.optimizer.add_param_group({"params": list(adapter.parameters()), "lr": 0.01})
    before = adapter.weight.detach().clone()
    for step in range(3, 8):
        run.optimizer.zero_grad()
        adapter(run.model(run.batch(step))).square().mean().backward()
        run.optimizer.step()
    assert run.handle.num_steps == 8
    assert not torch.equal(before, adapter.weight)
    assert max(event.step for event in run.handle.events) > 3


# ---- activation checkpointing ----
class Blocks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(5, 6), nn.Linear(6, 3)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 6)) for _ in range(2))

    def forward(self, x):
        h = torch.tanh(self.stem(x))
        for block in self.blocks:
            h = h + block(h)
        return self.head(h)


@pytest.mark.parametrize("found_on", ["plain", "wrapped"])
@pytest.mark.parametrize("kind", [CheckpointImpl.REENTRANT, CheckpointImpl.NO_REENTRANT])
def test_checkpoint_wrappers_change_nothing(kind, found_on):
    """They rename everything inside; units found before or after, states, resets and model keys are the same."""
    runs = []
    for wrapped in (False, True):
        torch.manual_seed(0)
        model = Blocks()
        x = torch.randn(4, 5)
        units = pliant.find_units(model, x)
        keys = list(model.state_dict())
        if wrapped:
            for index, block in enumerate(model.blocks):
                model.blocks[index] = checkpoint_wrapper(block, checkpoint_impl=kind)
            if found_on == "wrapped":
                units = pliant.find_units(model, x)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        handle = pliant.attach(model, optimizer, METHODS["continual_backprop"], units=units)
        for step in range(8):
            optimizer.zero_grad()
            model(torch.randn(4, 5, generator=torch.Generator().manual_seed(step))).square().mean().backward()
            optimizer.step()
        assert list(model.state_dict()) == keys
        runs.append((model, handle))
    (plain, a), (wrapped, b) = runs
    assert len(a.events) > 4
    assert [(e.step, e.units) for e in a.events] == [(e.step, e.units) for e in b.events]
    for key, value in plain.state_dict().items():
        assert torch.allclose(value, wrapped.state_dict()[key], atol=1e-6), key
    if found_on == "plain":
        assert [e.group for e in a.events] == [e.group for e in b.events]
        a.load_state_dict(b.state_dict())  # a run with wrappers goes on without them


# ---- compilation ----
@pytest.mark.parametrize("method", ["continual_backprop", "default", "redo"])
def test_forty_compiled_steps_are_one_graph_without_a_break(method):
    torch._dynamo.reset()
    methods = METHODS | {"default": ContinualBackprop(0.01, maturity_threshold=10)}
    run = Run("mlp", "sgd", methods[method])
    torch._dynamo.utils.counters.clear()
    compiled = torch.compile(run.model, backend="eager")
    for step in range(40):
        run.optimizer.zero_grad()
        zoo.loss_of(compiled(run.batch(step))).backward()
        run.optimizer.step()
    counters = torch._dynamo.utils.counters
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]
    assert not counters["recompile_limit"]
    assert run.handle.num_resets
    torch._dynamo.reset()


def test_explain_shows_no_break_that_was_not_there():
    torch._dynamo.reset()
    run = Run("transformer_post_norm", "sgd", METHODS["continual_backprop"])
    explained = torch._dynamo.explain(run.model)(run.batch(0))
    torch._dynamo.reset()
    plain = torch._dynamo.explain(Run("transformer_post_norm", "sgd").model)(run.batch(0))
    assert explained.graph_count == plain.graph_count
    assert explained.graph_break_count == plain.graph_break_count == 0
    torch._dynamo.reset()


# ---- copies ----
def test_an_average_of_the_weights_follows_resets_slowly_and_is_not_counted():
    """An EMA keeps what a reset unit was and mixes in what it becomes; its own passes are nobody's samples."""
    a, b = (Run("mlp", "adam", ReDo(tau=0.7, every=4)) for _ in range(2))
    ema = AveragedModel(b.model, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    expected = {key: value.detach().clone() for key, value in b.model.named_parameters()}
    for step in range(8):
        a.train(step, step + 1)
        b.train(step, step + 1)
        ema.update_parameters(b.model)
        for key, value in b.model.named_parameters():
            expected[key] = value.detach().clone() if step == 0 else torch.lerp(expected[key], value.detach(), 0.5)
        ema(b.batch(step))
    assert len(b.handle.events) > 0
    assert_same_bits(a.bits(), b.bits())
    for key, value in ema.module.named_parameters():
        assert torch.allclose(value, expected[key]), key


def test_a_copy_of_model_and_optimizer_can_be_protected_by_itself():
    run = Run("mlp", "adam", METHODS["continual_backprop"]).train(0, 4)
    model = copy.deepcopy(run.model)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    optimizer.load_state_dict(copy.deepcopy(run.optimizer.state_dict()))  # it would share the moments
    handle = pliant.attach(model, optimizer, METHODS["continual_backprop"], units=units_of("mlp"))
    handle.load_state_dict(run.handle.state_dict())
    run.train(4)
    for step in range(4, 8):
        torch.manual_seed(step)
        optimizer.zero_grad()
        zoo.loss_of(model(run.batch(step))).backward()
        optimizer.step()
        if step + 1 == 6:
            handle.task_boundary()
    assert [e for e in run.handle.events if e.step > 4] == list(handle.events)
    for p, q in zip(run.model.parameters(), model.parameters(), strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize(
    "schedule",
    [
        lambda opt: torch.optim.lr_scheduler.OneCycleLR(opt, 0.1, total_steps=10),
        lambda opt: torch.optim.lr_scheduler.LambdaLR(opt, lambda step: step / 4),  # the first step has size zero
        lambda opt: torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(opt, 3),
        lambda opt: torch.optim.lr_scheduler.ReduceLROnPlateau(opt),
    ],
)
def test_schedules_of_the_step_size(schedule):
    run = Run("mlp", "sgd_momentum", [L2(0.1), METHODS["continual_backprop"]])
    scheduler = schedule(run.optimizer)
    for step in range(8):
        run.train(step, step + 1)
        scheduler.step(1.0) if "Plateau" in type(scheduler).__name__ else scheduler.step()
    assert run.handle.num_steps == 8
    assert run.handle.num_resets
