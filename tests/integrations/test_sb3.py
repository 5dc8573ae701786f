"""Agents of Stable-Baselines3 in their own ``learn()``: found, protected, logged, saved and refused."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
import zoo_sb3
from sb3_agents import AGENTS, EAGER, ROLLOUT, agent_of, contrib, no_hooks, ppo, sac, same, some_wide, weights
from torch import nn
from zoo_sb3 import CONTINUOUS, DISCRETE, SB3, VECTOR, RandomEnv, sb3

import pliant
from pliant import IllegalConfiguration, NoEffect, NotYetSupported
from pliant.agents import parts_of_agent
from pliant.interventions import L2, ContinualBackprop, FeatureNorm, InsertNormalization, ReDo
from pliant.units.init import initialisers

common = pytest.importorskip("stable_baselines3.common", reason="the callbacks are Stable-Baselines3's")
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback  # noqa: E402
from stable_baselines3.common.logger import Logger  # noqa: E402


# ---- what is found ----
@pytest.mark.parametrize("name", some_wide(AGENTS, ("a2c", "ddpg", "maskable", "qrdqn", "dqn")))
def test_the_networks_of_an_agent_are_found_and_protected(name):
    make, steps, clocks, groups = AGENTS[name]
    agent = make()
    before, keys = torch.get_rng_state(), set(vars(agent))
    state = copy.deepcopy(agent.observation_space)
    handle = pliant.attach(agent, EAGER, seed=1)
    assert torch.equal(torch.get_rng_state(), before), "finding them draws nothing from the agent's randomness"
    assert {group.name for group in handle.units if group.site == "hidden"} == groups
    assert agent.observation_space == state
    count = [0] * len(clocks)
    for index, item in enumerate(parts_of_agent(agent).optimizers):
        item.register_step_post_hook(lambda *_, index=index: count.__setitem__(index, count[index] + 1))
    targets = {name: value for name, value in weights(agent).items() if "target" in name}
    agent.learn(steps)
    assert [schedule["step"] for schedule in handle.state_dict()["schedules"]] == clocks == count
    assert handle.num_steps == clocks[0]
    assert sum(int(total) for total in handle.num_resets.values()) > 0
    assert set(handle.num_resets) <= groups
    assert handle.unheard == ()
    assert all(bool(torch.isfinite(value).all()) for value in weights(agent).values())
    assert targets.keys() == {name for name in weights(agent) if "target" in name}
    handle.detach()
    assert set(vars(agent)) - {"start_time", "_logger"} <= keys
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in agent.policy.modules())


def test_a_reset_unit_of_ppo_is_drawn_as_it_was_born():
    """Orthogonal matrices: by entry, the same deviation; biases of zero, and heads with their own gains."""
    agent = sb3.PPO(
        "MlpPolicy", RandomEnv(VECTOR, CONTINUOUS), policy_kwargs={"net_arch": [160, 90]}, device="cpu", seed=0
    )
    parts = parts_of_agent(agent)
    known = initialisers(agent.policy, parts.init)
    for name, tensor in agent.policy.named_parameters():
        init = known[name]
        assert init is not None, name
        if init.kind == "constant":
            assert torch.equal(tensor, torch.full_like(tensor, init.scale)), name
        else:
            assert init.kind == "normal"
            assert float(tensor.detach().square().mean()) == pytest.approx(init.scale**2, rel=1e-3), name
    assert parts_of_agent(sac()).init is None, "these draw what PyTorch's layers draw"


def test_moments_begin_where_the_agents_own_optimizer_lets_them_begin():
    from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike

    agent = agent_of(sb3.A2C, n_steps=8, policy_kwargs={"optimizer_class": RMSpropTFLike, "optimizer_kwargs": {}})
    handle, fresh = pliant.attach(agent, EAGER), []
    tensors, state = dict(agent.policy.named_parameters()), agent.policy.optimizer.state

    def look(event: Any) -> None:
        for piece in handle.units[event.group].slices:
            rows = piece.positions()[list(event.units)].flatten()
            fresh.append(state[tensors[piece.name]]["square_avg"].index_select(piece.dim, rows).flatten())

    handle.events.subscribe(look)
    agent.learn(120)
    assert bool((torch.cat(fresh) == 1).all()), "TensorFlow's RMSprop starts at one"


# ---- the callback ----
class Recorded(Logger):
    """A logger that keeps what was dumped."""

    def __init__(self) -> None:
        super().__init__(None, [])
        self.dumped: list[dict[str, Any]] = []
        self.warned: list[str] = []

    def dump(self, step: int = 0) -> None:
        self.dumped.append(dict(self.name_to_value))
        super().dump(step)

    def warn(self, *args: Any) -> None:
        self.warned += map(str, args)


@pytest.mark.parametrize(("make", "steps", "expected"), [(ppo, 128, 16), (sac, 60, 40)])
def test_the_callback_protects_and_logs_and_evaluation_is_no_sample(make, steps, expected):
    alone = pliant.sb3.Protect(EAGER, monitor=False)
    plain = make().learn(steps, callback=alone)
    agent, log = make(), Recorded()
    agent.set_logger(log)
    protect = pliant.sb3.Protect(EAGER, log_every=4, budget=None)
    elsewhere = RandomEnv(copy.deepcopy(VECTOR), agent.action_space)  # its observations are not the agent's own
    evaluation = EvalCallback(elsewhere, eval_freq=20, n_eval_episodes=1, verbose=0, warn=False)
    agent.learn(steps, callback=[protect, evaluation], log_interval=1)
    assert evaluation.last_mean_reward != 0
    assert protect.handle.num_steps == expected
    assert protect.monitor.num_steps == expected
    last = next(values for values in reversed(log.dumped) if "pliant/num_resets" in values)  # evaluation also dumps
    resets = sum(int(total) for total in protect.handle.num_resets.values())
    assert 0 < last["pliant/num_resets"] <= resets
    for network in ("actor", "critic"):
        for metric in ("dormant_fraction", "effective_rank", "stable_rank", "weight_growth"):
            assert math.isfinite(last[f"pliant/{network}_{metric}"])
    assert last["pliant/weight_magnitude"] > 0
    assert last["pliant/alarms"] == 0
    assert same(weights(plain), weights(agent)), "neither evaluation nor monitoring has changed what is reset"
    assert {name: int(n) for name, n in alone.handle.num_resets.items()} == {
        name: int(n) for name, n in protect.handle.num_resets.items()
    }
    before = protect.handle.state_dict()["schedules"]
    agent.predict(VECTOR.sample())
    assert protect.handle.state_dict()["schedules"] == before
    protect.detach()
    assert no_hooks(agent)


@pytest.mark.parametrize(("make", "steps"), [(ppo, 128), (sac, 60)])
def test_watching_changes_nothing(make, steps):
    plain = make().learn(steps)
    protect = pliant.sb3.Protect(log_every=4, budget=None)
    watched = make().learn(steps, callback=protect)
    assert same(weights(plain), weights(watched))
    assert len(protect.monitor.history) > 3
    assert protect.handle.num_resets == {}


def test_a_fresh_twin_is_measured_on_the_agents_own_states():
    agent, protect = ppo(), pliant.sb3.Protect(log_every=4)
    agent.learn(64, callback=protect)
    assert protect.monitor.why_no_twin == ""
    agent, protect = sac(buffer_size=40), pliant.sb3.Protect(log_every=4)
    agent.learn(30, callback=protect)
    assert "too few states" in protect.monitor.why_no_twin
    agent.learn(60, callback=protect, reset_num_timesteps=False)
    assert protect.monitor.why_no_twin == ""


class Kill(BaseCallback):
    """Half of the actor's units die in the second rollout."""

    def _on_step(self) -> bool:
        if self.num_timesteps == 200:
            layer = self.model.policy.mlp_extractor.policy_net[0]
            with torch.no_grad():
                layer.weight[:4] = 0
                layer.bias[:4] = -5
        return True


def test_alarms_reach_the_logger_and_the_user():
    agent = agent_of(sb3.PPO, policy_kwargs={"activation_fn": nn.ReLU}, **ROLLOUT)
    log, heard = Recorded(), []
    agent.set_logger(log)
    agent.learn(512, callback=[Kill(), pliant.sb3.Protect(log_every=2, budget=None, on_alarm=heard.append)])
    alarm = next(item for item in heard if item.metric == "dead_fraction")
    assert alarm.where == "mlp_extractor.policy_net.0"
    assert str(alarm) in log.warned
    assert log.dumped[-1]["pliant/alarms"] >= 1


def test_one_callback_serves_several_calls_and_hooks_stay_between_them():
    agent, protect = ppo(), pliant.sb3.Protect(EAGER, monitor=False)
    with pytest.raises(NoEffect, match="nothing is attached yet"):
        _ = protect.handle
    agent.learn(64, callback=protect)
    agent.learn(64, callback=protect, reset_num_timesteps=False)
    agent.learn(64, reset_num_timesteps=False)  # without the callback: still protected
    assert protect.handle.num_steps == 24
    assert protect.monitor is None
    with pytest.raises(IllegalConfiguration, match="another Protect"):
        agent.learn(64, callback=pliant.sb3.Protect(ReDo()))
    with pytest.raises(IllegalConfiguration, match="attached to another agent"):
        ppo().learn(64, callback=protect)
    protect.detach()
    agent.learn(64, callback=pliant.sb3.Protect(ReDo()))


# ---- target networks ----
@pytest.mark.parametrize("targets", ["polyak", "copy"])
@pytest.mark.parametrize("name", ["sac", "dqn"])
def test_target_networks_follow_by_the_stated_rule(name, targets):
    """Without updates of their own (``tau`` tiny, or far apart), targets change where units were reset, or nowhere."""
    still = {"tau": 1e-30} if name == "sac" else {"target_update_interval": 10**6, "train_freq": 1}
    agent = SB3[name].make(**still)
    before = weights(agent)
    protect = pliant.sb3.Protect(EAGER, targets=targets, monitor=False)
    agent.learn(60, callback=protect)
    after, parts = weights(agent), parts_of_agent(agent)
    trained, target = parts.targets[0]
    place = "critic_target." if name == "sac" else "q_net_target."
    changed = {key for key in after if key.startswith(place) and not torch.equal(after[key], before[key])}
    if targets == "polyak":
        assert changed == set()
        return
    prefix = "critic." if name == "sac" else ""
    event = [item for item in protect.handle.events if item.group.startswith(prefix)][-1]
    assert changed
    mine, its = dict(trained.named_parameters()), dict(target.named_parameters())
    for piece in protect.handle.units[event.group].role("incoming"):
        key = piece.name.removeprefix(prefix)
        rows = piece.positions()[list(event.units)].flatten()
        start = before[place + key].index_select(piece.dim, rows)
        assert not torch.equal(its[key].index_select(piece.dim, rows), start) or "bias" in key
    with torch.no_grad():  # a reset of everything: the target is the network itself, where units own anything
        for group in protect.handle.units:
            if group.name.startswith(prefix):
                everything = torch.ones(group.size, dtype=torch.bool)
                protect.handle._editor.reset(group, everything, incoming="init", outgoing="zero", moments="zero")
    owned = {n.removeprefix(prefix) for g in protect.handle.units for n in g.tensors if n.startswith(prefix)}
    for key in owned - {key for key in owned if key.endswith("4.bias")}:
        assert torch.equal(mine[key], its[key]), key


def test_a_rule_for_targets_that_there_is_not():
    with pytest.raises(IllegalConfiguration, match="targets is one of"):
        pliant.sb3.Protect(EAGER, targets="soft")


# ---- what is refused, at the start ----
def test_methods_that_an_unmodified_learn_cannot_serve_are_refused_by_name():
    agent = ppo()
    for method, why in [
        (InsertNormalization(), r"InsertNormalization changes the network.*policy_kwargs"),
        (FeatureNorm(0.1), r"FeatureNorm adds a term to the loss"),
        (L2(0.1, apply="loss"), r"L2 adds a term.*another value of apply"),
        (pliant.ExperienceReplay(capacity=8), r"ExperienceReplay acts on batches"),
    ]:
        with pytest.raises(NotYetSupported, match=why):
            agent.learn(64, callback=pliant.sb3.Protect(method))
    assert agent.num_timesteps == 0
    assert no_hooks(agent)


@pytest.mark.parametrize(
    ("make", "error", "why"),
    [
        (
            lambda: agent_of(contrib.TRPO, n_steps=128),
            NotYetSupported,
            "TRPO cannot be protected: it updates",
        ),
        (lambda: contrib.ARS("LinearPolicy", RandomEnv(VECTOR, DISCRETE)), NotYetSupported, "ARS cannot be protected"),
        (
            lambda: agent_of(contrib.CrossQ, action=CONTINUOUS, buffer_size=500),
            NotYetSupported,
            "CrossQ cannot be protected: its BatchRenorm",
        ),
        (lambda: sac(buffer_size=8), IllegalConfiguration, r"holds 8 transitions.*one batch of 16"),
        (lambda: agent_of(sb3.PPO, policy_kwargs={"net_arch": []}), NoEffect, "unit"),
    ],
)
def test_agents_that_cannot_be_protected_are_refused_at_the_start(make, error, why):
    agent = make()
    with pytest.raises(error, match=why):
        agent.learn(10, callback=pliant.sb3.Protect(EAGER))
    assert agent.num_timesteps == 0


def test_a_compiled_policy_is_refused_at_the_start():
    agent = ppo()
    agent.policy.mlp_extractor = torch.compile(agent.policy.mlp_extractor, backend="eager")
    with pytest.raises(IllegalConfiguration, match="is compiled") as raised:
        agent.learn(10, callback=pliant.sb3.Protect(EAGER))
    assert any("networks of this PPO" in note for note in raised.value.__notes__)


def test_a_run_that_ends_before_the_first_gradient_step_is_refused():
    with pytest.raises(NoEffect, match=r"ends at 15 time steps, and learning_starts=20"):
        sac().learn(15, callback=pliant.sb3.Protect(EAGER))
    with pytest.raises(NoEffect, match="gradient_steps=0"):
        sac(gradient_steps=0).learn(100, callback=pliant.sb3.Protect(EAGER))


def test_what_is_no_callback_of_methods_is_refused():
    with pytest.raises(IllegalConfiguration, match="instance of Protect, with instances"):
        pliant.sb3.Protect(ContinualBackprop)
    with pytest.raises(IllegalConfiguration, match="instance of Protect, with instances"):
        ppo().learn(64, callback=pliant.sb3.Protect)  # the class, which Stable-Baselines3 takes for a function
    with pytest.raises(IllegalConfiguration, match="needs a model, its optimizer and the methods"):
        pliant.attach(nn.Linear(2, 2), EAGER)
    agent = ppo()
    with pytest.raises(IllegalConfiguration, match=r"found by themselves: attach\(agent, methods\)"):
        pliant.attach(agent, agent.policy.optimizer, EAGER)
    handle = pliant.attach(agent, methods=EAGER, dry_run=True)
    agent.learn(64)
    assert len(handle.events)
    assert "_setup_learn" not in vars(agent), "a dry run protects nothing"


def test_an_algorithm_of_ones_own_says_what_to_do():
    class Mine(common.base_class.BaseAlgorithm):
        def _setup_model(self) -> None: ...
        def learn(self, *args: Any, **kwargs: Any) -> Any: ...

    agent = (
        Mine("MlpPolicy", RandomEnv(VECTOR, DISCRETE), 1e-3)
        if Mine.policy_aliases
        else Mine(sb3.PPO.policy_aliases["MlpPolicy"], RandomEnv(VECTOR, DISCRETE), 1e-3)
    )
    with pytest.raises(NotYetSupported, match=r"networks of Mine are arranged is not known.*\"actor\": actor"):
        pliant.attach(agent, EAGER)


def test_the_zoo_has_the_spaces_that_examples_are_drawn_from():
    from pliant.agents.observations import example_observations

    for case in SB3.values():
        drawn = example_observations(case.observation, 4, torch.device("cpu"))
        again = example_observations(case.observation, 4, torch.device("cpu"))
        for one, other in zip(zoo_sb3.tensors_in(drawn), zoo_sb3.tensors_in(again), strict=True):
            assert torch.equal(one, other)
            assert len(one) == 4
    wide = zoo_sb3.spaces.Box(-np.float32(3e38), np.float32(3e38), (3,))
    assert float(example_observations(wide, 4, torch.device("cpu")).abs().max()) <= 10
