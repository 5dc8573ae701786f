"""Which forward passes belong to a step: loops clear their gradients before the forward, or after it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import pliant
from pliant.interventions import ReDo


def network(inputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, 8), nn.ReLU(), nn.Linear(8, 1))


@pytest.mark.parametrize("order", ["zero first", "forward first"])
def test_a_critic_in_the_actors_loss_is_no_sample_of_the_critics_step(order):
    """As in SAC and in GANs: the actor's loss goes through the critic, whose gradients of it are thrown away."""
    torch.manual_seed(0)
    actor, critic = network(3), network(4)
    actor_step, critic_step = (torch.optim.SGD(m.parameters(), lr=0.1) for m in (actor, critic))
    both = {"actor": actor, "critic": critic}
    handle = pliant.attach(
        both, [actor_step, critic_step], ReDo(tau=0.0, every=1),
        example_inputs={"actor": torch.randn(2, 3), "critic": torch.randn(2, 4)},
    )  # fmt: skip
    stats = handle._collector.stats(handle.units["critic.0"])
    for _ in range(4):
        x, action = torch.randn(16, 3), torch.randn(16, 1)
        pair = torch.cat([x, action], 1)
        want = torch.relu(critic[0](pair)).mean(0)
        if order == "zero first":
            critic_step.zero_grad()
        loss = (critic(pair) - 1).square().mean()
        if order == "forward first":
            critic_step.zero_grad()
        loss.backward()
        critic_step.step()
        torch.testing.assert_close(stats.mean_abs_activation, want)
        loss = -critic(torch.cat([10 * x, actor(x)], 1)).mean()
        actor_step.zero_grad()
        loss.backward()
        actor_step.step()


@pytest.mark.parametrize("order", ["zero first", "forward first"])
def test_a_step_that_mixed_precision_skips_leaves_no_trace_in_either_order(order):
    torch.manual_seed(0)
    model = network(4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    handle = pliant.attach(model, optimizer, ReDo(tau=0.0, every=1), example_inputs=torch.randn(2, 4))
    scaler = torch.amp.GradScaler("cpu", init_scale=16.0)
    for step in range(4):
        x = torch.randn(16, 4) * (math.inf if step == 2 else 1)  # the forward itself overflows
        if order == "zero first":
            optimizer.zero_grad()
        loss = model(x).square().mean()
        if order == "forward first":
            optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
    assert handle.num_steps == 3


def test_a_forward_without_a_backward_is_no_sample():
    model = network(4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    handle = pliant.attach(model, optimizer, ReDo(tau=0.0, every=1), example_inputs=torch.randn(2, 4))
    stats = handle._collector.stats(handle.units["0"])
    for _ in range(2):
        x = torch.randn(16, 4)
        want = torch.relu(model[0](x)).mean(0)
        optimizer.zero_grad()
        model(x).square().mean().backward()
        model(100 * x)  # somebody looks at the training loss
        optimizer.step()
        torch.testing.assert_close(stats.mean_abs_activation, want)
