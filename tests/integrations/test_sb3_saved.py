"""Agents of Stable-Baselines3: saved and loaded with their methods, diagnosed and probed on their own states."""

from __future__ import annotations

import copy
import math
import pydoc
from typing import Any

import numpy as np
import pytest
import torch
from sb3_agents import AGENTS, EAGER, REPLAY, ROLLOUT, agent_of, ppo, sac, same, some_wide, weights
from torch import nn
from zoo_sb3 import CONTINUOUS, DISCRETE, SB3, VECTOR, RandomEnv, sb3

import pliant
from pliant import IllegalConfiguration, NoEffect, NotYetSupported
from pliant.integrations.sb3_states import states_of
from pliant.interventions import L2, ReDo

common = pytest.importorskip("stable_baselines3.common", reason="the callbacks are Stable-Baselines3's")
from stable_baselines3.common.utils import set_random_seed  # noqa: E402


# ---- saving and loading ----
def resumed(agent: Any, case: str, **more: Any) -> dict[str, torch.Tensor]:
    """Go on in a new environment, with the random states of a new process."""
    set_random_seed(7)
    env = RandomEnv(SB3[case].observation, SB3[case].action)
    env.reset(seed=3)
    agent.set_env(env)
    agent.learn(30, reset_num_timesteps=False, **more)
    return weights(agent)


@pytest.mark.parametrize(("make", "case"), [(ppo, "ppo"), (sac, "sac")])
def test_a_saved_agent_goes_on_bit_by_bit_where_the_same_methods_are_attached(make, case, tmp_path):
    agent, protect = make(), pliant.sb3.Protect([EAGER, L2(1e-3)], seed=4, monitor="dead_fraction", log_every=10)
    agent.learn(40, callback=protect)
    agent.save(tmp_path / "agent.zip")
    if case == "sac":
        agent.save_replay_buffer(tmp_path / "buffer.pkl")
    expected = resumed(agent, case, callback=protect)

    def load() -> Any:
        loaded = type(agent).load(tmp_path / "agent.zip", device="cpu", env=RandomEnv(VECTOR, SB3[case].action))
        if case == "sac":
            loaded.load_replay_buffer(tmp_path / "buffer.pkl")
        return loaded

    again = pliant.sb3.Protect([EAGER, L2(1e-3)], seed=9, monitor="dead_fraction", log_every=10)
    assert same(resumed(load(), case, callback=again), expected)
    assert again.handle.num_steps == protect.handle.num_steps
    assert {k: int(v) for k, v in again.handle.num_resets.items()} == {
        k: int(v) for k, v in protect.handle.num_resets.items()
    }
    assert [reading.step for reading in again.monitor.history] == [r.step for r in protect.monitor.history]
    if case == "sac":
        return
    by_hand = load()
    pliant.attach(by_hand, [EAGER, L2(1e-3)])
    assert same(resumed(by_hand, case), expected)

    unprotected = load()
    unprotected.predict(VECTOR.sample())  # to use it is no training
    with pytest.raises(IllegalConfiguration, match=r"saved while ContinualBackprop.*new optimizers"):
        resumed(unprotected, case)
    with pytest.raises(IllegalConfiguration, match=r"L2.* protected it, and ReDo"):
        pliant.attach(load(), ReDo())
    saved_again = load()
    saved_again.save(tmp_path / "again.zip")  # still not trained: nothing is lost
    with pytest.raises(IllegalConfiguration, match="saved while"):
        type(agent).load(tmp_path / "again.zip", env=RandomEnv(VECTOR, SB3[case].action)).learn(64)
    pliant.sb3.forget(unprotected)
    resumed(unprotected, case)


def test_an_agent_without_protection_is_saved_as_ever(tmp_path):
    agent, protect = ppo(), pliant.sb3.Protect(EAGER, monitor=False)
    agent.learn(64, callback=protect)
    protect.detach()
    agent.save(tmp_path / "agent.zip")
    type(agent).load(tmp_path / "agent.zip", env=RandomEnv(VECTOR, DISCRETE)).learn(64)
    watched = ppo()
    watched.learn(64, callback=pliant.sb3.Protect())
    watched.save(tmp_path / "watched.zip")  # only watched: there is nothing that could be missing
    type(agent).load(tmp_path / "watched.zip", env=RandomEnv(VECTOR, DISCRETE)).learn(64)


def test_without_pliant_a_protected_agent_loads_with_a_warning(tmp_path, monkeypatch):
    agent = ppo()
    agent.learn(64, callback=pliant.sb3.Protect(EAGER, monitor=False))
    agent.save(tmp_path / "agent.zip")
    obs = VECTOR.sample()
    action = agent.predict(obs, deterministic=True)[0]
    monkeypatch.setattr(pydoc, "locate", lambda path: None)  # what it says of a package that is not installed
    with pytest.warns(UserWarning, match="Could not deserialize object _setup_learn"):
        loaded = sb3.PPO.load(tmp_path / "agent.zip", env=RandomEnv(VECTOR, DISCRETE), device="cpu")
    assert np.array_equal(loaded.predict(obs, deterministic=True)[0], action)
    loaded.learn(64)


def test_a_copy_of_an_agent_is_not_protected_and_says_so():
    agent = ppo()
    agent.learn(64, callback=pliant.sb3.Protect(EAGER, monitor=False))
    guard = copy.deepcopy(vars(agent)["_setup_learn"])
    assert [entry["methods"] for entry in guard.pending] == [[repr(EAGER)]]


# ---- diagnosis and probe ----
class Positive(RandomEnv):
    """The first observation is never negative, which its space does not say."""

    def reset(self, **more: Any) -> Any:
        obs, info = super().reset(**more)
        return self._seen(obs), info

    def step(self, action: Any) -> Any:
        obs, *rest = super().step(action)
        return self._seen(obs), *rest

    def _seen(self, obs: np.ndarray) -> np.ndarray:
        obs[0] = abs(obs[0])
        return obs


def with_dead_units() -> Any:
    """Half of the critic's units are silent on the states that the agent visits, and on no others."""
    agent = agent_of(sb3.PPO, env=Positive(VECTOR, DISCRETE), policy_kwargs={"activation_fn": nn.ReLU}, **ROLLOUT)
    agent.learn(64)
    layer = agent.policy.mlp_extractor.value_net[0]
    with torch.no_grad():
        layer.weight[:4], layer.bias[:4] = 0, 0
        layer.weight[:4, 0] = -1
    return agent


def test_dormancy_is_counted_over_the_agents_own_states():
    agent = with_dead_units()
    before, random, state = weights(agent), torch.get_rng_state(), np.random.get_state()[1].tolist()
    found = pliant.sb3.diagnose(agent, twins=2)
    assert same(weights(agent), before)
    assert torch.equal(torch.get_rng_state(), random)
    assert np.random.get_state()[1].tolist() == state
    assert list(found) == ["actor", "critic"]
    assert found.verdict == found["critic"].verdict == "plasticity"
    assert found["critic"].mechanisms[0] == "dead_units"
    finding = found["critic"].of("dead_units")[0]
    assert (finding.layer, finding.value) == ("mlp_extractor.value_net.0", 0.5)
    assert found["actor"].of("dead_units") == ()
    text = str(found)
    assert text.startswith(
        "PPO, 64 states of the last rollout: plasticity\n  actor   not plasticity\n  critic  plasticity"
    )
    assert found.to_dict()["networks"]["critic"]["verdict"] == "plasticity"
    elsewhere = pliant.sb3.diagnose(agent, twins=2, env=RandomEnv(VECTOR, DISCRETE), networks="critic")
    assert elsewhere["critic"].of("dead_units") == ()
    assert elsewhere.source == "512 states of a rollout in the given environment"


@pytest.mark.parametrize(
    "name",
    some_wide(
        ["sac_dict", "recurrent", "qrdqn", "td3", "dqn", "tqc", "maskable", "ppo_image"],
        ("td3", "dqn", "tqc", "maskable", "ppo_image"),
    ),
)
def test_all_families_can_be_diagnosed(name):
    make, steps, *_ = AGENTS[name]
    agent = make()
    agent.learn(min(steps, 64))
    found = pliant.sb3.diagnose(agent, num_states=48, twins=1)
    for network, one in found.items():
        assert math.isfinite(one.facts["loss"]), network
        assert one.facts["num_groups"] > 0
        assert all("fresh twins" not in item for item in one.unknowns)
    assert (list(found) == ["critic"]) == (name in ("dqn", "qrdqn"))
    if name == "recurrent":
        with pytest.raises(NotYetSupported, match="see sequences"):
            pliant.sb3.probe(agent)
        return
    result = pliant.sb3.probe(agent, steps=4, seeds=1, num_states=32, batch_size=16)
    assert result.config["reset_head"]
    first = {run.network: run.loss[0] for run in result.runs}
    assert all(math.isfinite(loss) for loss in first.values())


def test_a_value_function_that_cannot_learn_is_found_by_the_probe():
    """Its values are in the hundreds, which does not matter; that it is blind to the state does."""
    agent = ppo(learning_rate=1e-2)
    agent.learn(64)
    with torch.no_grad():
        agent.policy.value_net.bias.fill_(500.0)
    before = weights(agent)
    fine = pliant.sb3.probe(agent, steps=80, seeds=3, num_states=32, batch_size=32)
    assert fine.outcome in ("no difference shown", "better"), fine
    with torch.no_grad():
        for layer in agent.policy.mlp_extractor.value_net:
            if isinstance(layer, nn.Linear):
                layer.weight.zero_()
                layer.bias.fill_(20.0)  # saturated: no gradient, and the same for all states
    blind = pliant.sb3.probe(agent, steps=80, seeds=3, num_states=32, batch_size=32)
    assert blind.outcome == "worse", blind
    assert blind.config["reset_head"] == "value_net"
    assert same(
        {k: v for k, v in before.items() if "policy" in k}, {k: v for k, v in weights(agent).items() if "policy" in k}
    )


def test_states_must_come_from_somewhere():
    agent = ppo()
    with pytest.raises(NoEffect, match=r"no states of its own.*env="):
        pliant.sb3.diagnose(agent)
    with pytest.raises(IllegalConfiguration, match="the environment has the spaces"):
        pliant.sb3.diagnose(agent, env=RandomEnv(VECTOR, CONTINUOUS))
    found = sac()
    found.learn(30)
    off = pliant.sb3.diagnose(found, env=RandomEnv(VECTOR, CONTINUOUS), num_states=40, twins=1)
    assert off.source.startswith("40 states of a rollout")
    with pytest.raises(IllegalConfiguration, match="has the networks critic"):
        pliant.sb3.probe(SB3["dqn"].make(), network="actor")


def test_a_new_rollout_is_normalised_as_in_training():
    several = [lambda: RandomEnv(VECTOR, DISCRETE), lambda: RandomEnv(VECTOR, DISCRETE)]
    vector = sb3.common.vec_env.VecNormalize(sb3.common.vec_env.DummyVecEnv(several))
    agent = agent_of(sb3.PPO, env=vector, **{**ROLLOUT, "n_steps": 32})
    protect = pliant.sb3.Protect(EAGER, log_every=4)
    agent.learn(64, callback=protect)
    assert protect.handle.num_steps == 8
    own = states_of(agent, 64)
    order = own.observations.flatten(1).sum(1).sort().values
    buffer = torch.as_tensor(agent.rollout_buffer.observations).flatten(1).sum(1).sort().values
    assert torch.equal(order, buffer), "the states of both environments, each once"
    vector.obs_rms.mean += 100.0
    plain = states_of(agent, 20, env=RandomEnv(VECTOR, DISCRETE)).observations
    assert float(plain.max()) == -10.0, "far below the mean, and clipped there"


def test_gsde_leaves_the_layer_alone_that_feeds_its_noise():
    agent = agent_of(sb3.SAC, action=CONTINUOUS, use_sde=True, **REPLAY)
    protect = pliant.sb3.Protect(EAGER, monitor=False)
    agent.learn(50, callback=protect)
    groups = {group.name for group in protect.handle.units if group.site == "hidden"}
    assert groups == {"actor.latent_pi.0", "critic.qf0.0", "critic.qf0.2", "critic.qf1.0", "critic.qf1.2"}
    for look in (pliant.sb3.diagnose, pliant.sb3.probe):
        with pytest.raises(NotYetSupported, match="use_sde=True"):
            look(agent)
