"""Attaching to several modules and optimizers, in loops of one's own and inside Stable-Baselines3's ``learn``."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
import zoo_sb3
from torch import Tensor, nn
from torch.nn import functional as F
from zoo_sb3 import SB3
from zoo_several import Actor, Critic

import pliant
from pliant import IllegalConfiguration, NoEffect, NotYetSupported
from pliant.interventions import L2, ContinualBackprop, ReDo, ShrinkAndPerturb

EAGER = ContinualBackprop(replacement_rate=0.05, maturity_threshold=3)


class Agent:
    """A deterministic actor-critic whose critic owns the trunk, and a temperature that nobody hooks."""

    def __init__(self, seed: int = 0) -> None:
        torch.manual_seed(seed)
        trunk = nn.Sequential(nn.Linear(5, 8), nn.ReLU())
        self.models = {"actor": Actor(trunk), "critic": Critic(trunk)}
        self.temperature = nn.Parameter(torch.zeros(()))
        own = [*self.models["actor"].fc.parameters(), *self.models["actor"].out.parameters()]
        self.actor_optimizer = torch.optim.Adam([*own, self.temperature], lr=1e-2)
        self.critic_optimizer = torch.optim.Adam(self.models["critic"].parameters(), lr=1e-2)

    @property
    def optimizers(self) -> list[torch.optim.Optimizer]:
        return [self.actor_optimizer, self.critic_optimizer]

    def update(self, step: int, *, actor: bool = True) -> None:
        generator = torch.Generator().manual_seed(step)
        obs, act = torch.randn(8, 5, generator=generator), torch.randn(8, 2, generator=generator)
        value = self.models["critic"](obs, act)
        loss = F.mse_loss(value, obs[:, :1])
        self.actor_optimizer.zero_grad()  # after the critic's forward: what was heard of it stays
        self.critic_optimizer.zero_grad()
        if actor:
            action = self.models["actor"](obs)
            (-self.models["critic"](obs, action).mean() + self.temperature.square()).backward()
            self.actor_optimizer.step()
            self.critic_optimizer.zero_grad()
        loss.backward() if not actor else F.mse_loss(self.models["critic"](obs, act), obs[:, :1]).backward()
        self.critic_optimizer.step()

    def inputs(self) -> dict[str, Any]:
        return {"actor": torch.randn(3, 5), "critic": (torch.randn(3, 5), torch.randn(3, 2))}

    def attach(self, methods: Any = EAGER, **more: Any) -> pliant.Handle:
        return pliant.attach(self.models, self.optimizers, methods, example_inputs=self.inputs(), **more)

    def state(self) -> dict[str, Any]:
        return copy.deepcopy(
            {name: model.state_dict() for name, model in self.models.items()}
            | {str(i): item.state_dict() for i, item in enumerate(self.optimizers)}
        )

    def load(self, state: dict[str, Any]) -> None:
        for name, model in self.models.items():
            model.load_state_dict(state[name])
        for i, item in enumerate(self.optimizers):
            item.load_state_dict(state[str(i)])


def clocks(handle: pliant.Handle) -> list[int]:
    """Real steps of every optimizer."""
    return [schedule["step"] for schedule in handle.state_dict()["schedules"]]


def hooks_of(module: nn.Module) -> int:
    parameters = sum(len(p._post_accumulate_grad_hooks or {}) for p in module.parameters())
    return parameters + sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules())


def test_each_group_follows_the_clock_of_its_owner():
    agent = Agent()
    handle = agent.attach()
    for step in range(20):
        agent.update(step, actor=step % 2 == 0)
    assert str(handle.units["actor.trunk.0"].tap) == "output of actor.trunk.1"  # heard in both networks' forwards
    assert clocks(handle) == [10, 20]
    resets = {name: int(count) for name, count in handle.num_resets.items()}
    assert set(resets) == {"actor.trunk.0", "actor.fc", "critic.fc"}
    assert resets["critic.fc"] > resets["actor.fc"] > 0
    assert resets["actor.trunk.0"] >= resets["critic.fc"]  # the critic's optimizer owns the shared trunk
    steps = {event.group: event.step for event in handle.events}
    assert steps["actor.fc"] <= 10 < steps["critic.fc"]


def test_the_moments_of_a_reset_unit_are_cleared_in_every_owner():
    """A unit of the shared trunk has weights in both optimizers."""
    agent = Agent()
    handle = agent.attach(ContinualBackprop(replacement_rate=0.05, maturity_threshold=3, where="actor.trunk.0"))
    trunk, fc = agent.models["actor"].trunk[0], agent.models["actor"].fc
    units: list[int] = []
    for step in range(12):
        agent.update(step)
        new = [int(u) for event in handle.events if event.step == step + 1 for u in event.units]
        units += new
        for unit in new:
            of_critic = agent.critic_optimizer.state
            assert float(of_critic[trunk.weight]["exp_avg"][unit].abs().max()) == 0
            assert float(of_critic[agent.models["critic"].fc.weight]["exp_avg_sq"][:, unit].abs().max()) == 0
            assert float(agent.actor_optimizer.state[fc.weight]["exp_avg"][:, unit].abs().max()) == 0
            assert float(fc.weight.detach()[:, unit].abs().max()) == 0
    assert len(units) >= 2


def test_resuming_several_is_bitwise():
    first = Agent()
    handle = first.attach()
    for step in range(7):
        first.update(step)
    saved = copy.deepcopy((first.state(), handle.state_dict()))
    for step in range(7, 15):
        first.update(step)

    second = Agent(seed=5)
    other = second.attach()
    second.load(saved[0])
    other.load_state_dict(saved[1])
    for step in range(7, 15):
        second.update(step)
    for name, model in first.models.items():
        for key, value in model.state_dict().items():
            assert torch.equal(value, second.models[name].state_dict()[key]), key
    assert {k: int(v) for k, v in handle.num_resets.items()} == {k: int(v) for k, v in other.num_resets.items()}


def test_after_detach_nothing_is_left():
    agent = Agent()
    keys = {name: list(model.state_dict()) for name, model in agent.models.items()}
    handle = agent.attach([EAGER, ReDo(every=3), L2(0.01)])
    watch = pliant.monitor(
        agent.models, agent.optimizers[::-1], ["dead_fraction", "weight_magnitude"], units=handle.units, every=2
    )
    for step in range(4):
        agent.update(step)
    assert set(watch.latest.values["dead_fraction"]) == {"actor.trunk.0", "actor.fc", "critic.fc"}
    assert {name: list(model.state_dict()) for name, model in agent.models.items()} == keys
    assert all(hooks_of(model) for model in agent.models.values())
    watch.detach()
    handle.detach()
    assert not any(hooks_of(model) for model in agent.models.values())
    assert not any(item._optimizer_step_post_hooks for item in agent.optimizers)
    agent.models["actor"].eval()
    agent.update(9)


def test_no_sample_of_one_model_is_lost_when_the_other_clears_its_gradients():
    """The actor's gradients are cleared between the critic's forward and its step."""
    agent = Agent()
    handle = agent.attach(ReDo(tau=0.0, every=1))
    for step in range(6):
        agent.update(step, actor=False)
    for step in range(6, 9):
        agent.update(step)
    assert clocks(handle) == [3, 9]
    handle.detach()


def test_a_tensor_that_two_optimizers_update_is_refused_by_name():
    agent = Agent()
    agent.actor_optimizer = torch.optim.Adam(agent.models["actor"].parameters())
    with pytest.raises(NotYetSupported, match=r"'actor\.trunk\.0\.weight'.*2 of the optimizers"):
        agent.attach()
    handle = agent.attach(ContinualBackprop(where="critic.fc"))
    handle.detach()
    assert not any(hooks_of(model) for model in agent.models.values())


def test_a_parameter_that_nobody_owns_is_refused_by_name():
    agent = Agent()
    with pytest.raises(IllegalConfiguration, match=r"'actor\.fc\.weight'.*no given optimizer owns it"):
        pliant.attach(agent.models, agent.critic_optimizer, EAGER, example_inputs=agent.inputs())


@pytest.mark.parametrize(
    "method", [EAGER, ReDo(tau=0.5, every=2), L2(0.1), L2(0.1, where="actor.*"), ShrinkAndPerturb(0.9, 0.1, every=2)]
)
def test_an_optimizer_that_trains_nothing_of_the_models_is_no_obstacle(method):
    agent = Agent()
    extra = torch.optim.SGD([nn.Parameter(torch.ones(()))], lr=0.1)
    handle = pliant.attach(agent.models, [*agent.optimizers, extra], method, example_inputs=agent.inputs())
    for step in range(6):
        agent.update(step)
        extra.param_groups[0]["params"][0].grad = torch.ones(())
        extra.step()
    assert clocks(handle) == [6, 6, 6]


def test_a_method_without_anything_to_do_in_any_optimizer_is_an_error():
    with pytest.raises(NoEffect, match="no parameter that it can act on matches"):
        Agent().attach(L2(0.1, where="elsewhere*"))


# ---- frozen bases ----
class LowRank(nn.Module):
    """A frozen layer plus a low-rank update that trains."""

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        self.base = base
        self.down, self.up = (
            nn.Linear(base.in_features, rank, bias=False),
            nn.Linear(rank, base.out_features, bias=False),
        )
        for parameter in base.parameters():
            parameter.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(x))


def test_adapters_on_a_frozen_base():
    model = nn.Sequential(
        LowRank(nn.Linear(5, 8), 3), nn.ReLU(), LowRank(nn.Linear(8, 6), 3), nn.ReLU(), nn.Linear(6, 2)
    )
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    handle = pliant.attach(model, optimizer, EAGER, example_inputs=torch.randn(3, 5))
    frozen = {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}
    assert set(handle.excluded) == {"0.base", "2.base"}
    assert "0.base.weight" in handle.excluded["0.base"]
    for step in range(20):
        optimizer.zero_grad()
        F.mse_loss(model(torch.randn(8, 5, generator=torch.Generator().manual_seed(step))), torch.ones(8, 2)).backward()
        optimizer.step()
    assert set(handle.num_resets) == {"0.down", "2.down"}
    assert all(torch.equal(dict(model.named_parameters())[name], value) for name, value in frozen.items())


# ---- Stable-Baselines3 ----
RUNS = {
    "ppo": ({"n_steps": 64, "batch_size": 16, "n_epochs": 2}, 128, [16]),  # 2 rollouts x 2 epochs x 4 batches
    "ppo_dict": ({"n_steps": 64, "batch_size": 32, "n_epochs": 3}, 128, [12]),
    "ppo_image": ({"n_steps": 16, "batch_size": 8, "n_epochs": 4}, 32, [16]),
    "a2c": ({"n_steps": 8}, 160, [20]),
    "dqn": ({"train_freq": 2, "gradient_steps": 1}, 100, [40]),
    "sac": ({"batch_size": 16}, 60, [40, 40, 40]),
    "td3": ({"batch_size": 16}, 60, [20, 40]),  # the actor follows every second update
}


def optimizers_of(algorithm: Any) -> list[torch.optim.Optimizer]:
    if hasattr(algorithm.policy, "critic"):
        temperature = getattr(algorithm, "ent_coef_optimizer", None)
        both = [algorithm.policy.actor.optimizer, algorithm.policy.critic.optimizer]
        return both + ([temperature] if temperature else [])
    return [algorithm.policy.optimizer]


@pytest.mark.parametrize("name", RUNS)
def test_an_unmodified_learn_is_protected(name, tmp_path):
    case, (options, steps, expected) = SB3[name], RUNS[name]
    algorithm = case.make(**options)
    models, optimizers = case.models(algorithm), optimizers_of(algorithm)
    targets = {k: v.clone() for k, v in algorithm.policy.state_dict().items() if "target" in k}
    handle = pliant.attach(
        models, optimizers, EAGER, example_inputs=case.inputs(models), init="kaiming_uniform", seed=1
    )
    count: list[int] = [0] * len(optimizers)
    for index, item in enumerate(optimizers):
        item.register_step_post_hook(lambda *_, index=index: count.__setitem__(index, count[index] + 1))
    algorithm.learn(steps)

    assert clocks(handle) == expected == count
    if not name.startswith("ppo"):  # on-policy updates of PPO are counted in epochs
        assert max(expected) == algorithm._n_updates
    assert handle.num_steps == expected[0]
    assert sum(int(count) for count in handle.num_resets.values()) > 0
    assert set(handle.num_resets) <= set(case.groups)

    before = clocks(handle), [item.num_samples for item in handle._collector.accumulators.values()]
    obs = case.observation.sample()
    algorithm.predict(obs)
    algorithm.policy.set_training_mode(True)
    with torch.no_grad():
        algorithm.policy(zoo_sb3.observation(case.observation))
    algorithm.policy.set_training_mode(False)
    after = clocks(handle), [item.num_samples for item in handle._collector.accumulators.values()]
    assert before == after

    algorithm.save(tmp_path / "model.zip")
    loaded = type(algorithm).load(tmp_path / "model.zip", device="cpu")
    assert np.array_equal(loaded.predict(obs, deterministic=True)[0], algorithm.predict(obs, deterministic=True)[0])
    assert not hooks_of(loaded.policy)

    handle.detach()
    assert not hooks_of(algorithm.policy)
    resets = {key: int(value) for key, value in handle.num_resets.items()}
    algorithm.learn(steps, reset_num_timesteps=False)
    assert {key: int(value) for key, value in handle.num_resets.items()} == resets
    assert targets.keys() == {k for k in algorithm.policy.state_dict() if "target" in k}


def test_a_reset_unit_of_a_policy_starts_from_scratch():
    """At the very step of a reset: outgoing weights and Adam's moments are zero, in actor and critic."""
    case = SB3["sac"]
    algorithm = case.make(batch_size=16)
    models, optimizers = case.models(algorithm), optimizers_of(algorithm)
    handle = pliant.attach(models, optimizers, EAGER, example_inputs=case.inputs(models))
    tensors = {f"{key}.{name}": p for key, model in models.items() for name, p in model.named_parameters()}
    owner = {id(p): item for item in optimizers for group in item.param_groups for p in group["params"]}
    seen: set[str] = set()

    def look(*_: Any) -> None:
        events = list(handle.events)[look.done :]
        look.done = len(handle.events)
        for event in events:
            group = handle.units[event.group]
            seen.add(event.group)
            for piece in group.slices:
                state = owner[id(tensors[piece.name])].state[tensors[piece.name]]
                rows = piece.positions()[[int(u) for u in event.units]].flatten()
                assert float(state["exp_avg"].index_select(piece.dim, rows).abs().max()) == 0
                assert float(state["exp_avg_sq"].index_select(piece.dim, rows).abs().max()) == 0
                if piece.role == "outgoing" and event.group.endswith(".2"):  # no later reset redraws these
                    assert float(tensors[piece.name].detach().index_select(piece.dim, rows).abs().max()) == 0

    look.done = 0
    for item in optimizers:
        item.register_step_post_hook(look)
    algorithm.learn(60)
    assert seen == set(case.groups)
    target = algorithm.policy.critic_target.state_dict()
    assert not any(name.startswith("critic_target") for group in handle.units for name in group.tensors)
    assert all(torch.isfinite(value).all() for value in target.values())


def test_targets_that_nobody_trains_are_refused_when_given():
    case = SB3["sac"]
    algorithm = case.make()
    models = case.models(algorithm) | {"target": algorithm.policy.critic_target}
    inputs = case.inputs(models)
    with pytest.raises(IllegalConfiguration, match=r"'target\.qf0\.0\.weight'.*no given optimizer owns it"):
        pliant.attach(models, optimizers_of(algorithm), EAGER, example_inputs=inputs | {"target": inputs["critic"]})


def test_a_whole_dqn_policy_leaves_its_target_alone():
    case = SB3["dqn"]
    algorithm = case.make(target_update_interval=10_000, train_freq=1)
    handle = pliant.attach(algorithm.policy, algorithm.policy.optimizer, EAGER, example_inputs=case.inputs(None))
    before = copy.deepcopy(algorithm.policy.q_net_target.state_dict())
    algorithm.learn(60)
    assert set(handle.num_resets) == {"q_net.q_net.0", "q_net.q_net.2"}
    after = algorithm.policy.q_net_target.state_dict()
    assert all(torch.equal(value, before[name]) for name, value in after.items())


def test_resets_of_the_whole_sac_policy_would_not_reach_the_critics():
    """Its forward is the actor's, so the critics are no part of it; the mapping is how to protect both."""
    case = SB3["sac"]
    algorithm = case.make()
    with pytest.raises(NoEffect, match="no unit group matches"):
        pliant.attach(
            algorithm.policy,
            optimizers_of(algorithm),
            ContinualBackprop(where="critic.*"),
            example_inputs=case.inputs(None),
        )
