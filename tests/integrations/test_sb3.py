"""Agents of Stable-Baselines3 in their own ``learn()``: found, protected, logged, saved and refused."""

from __future__ import annotations

import copy
import math
import pydoc
from typing import Any

import numpy as np
import pytest
import torch
import zoo_sb3
from torch import nn
from zoo_sb3 import CONTINUOUS, DISCRETE, SB3, VECTOR, RandomEnv, sb3

import pliant
from pliant import IllegalConfiguration, NoEffect, NotYetSupported
from pliant.agents import parts_of_agent
from pliant.integrations.sb3_states import states_of
from pliant.interventions import L2, ContinualBackprop, FeatureNorm, InsertNormalization, ReDo
from pliant.units.init import initialisers

contrib = pytest.importorskip("sb3_contrib", reason="recurrent and quantile agents are in sb3-contrib")
common = pytest.importorskip("stable_baselines3.common", reason="the callbacks are Stable-Baselines3's")
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback  # noqa: E402
from stable_baselines3.common.logger import Logger  # noqa: E402
from stable_baselines3.common.utils import set_random_seed  # noqa: E402

EAGER = ContinualBackprop(replacement_rate=0.05, maturity_threshold=3)
ROLLOUT: dict[str, Any] = {"n_steps": 64, "batch_size": 16, "n_epochs": 2}
REPLAY: dict[str, Any] = {"buffer_size": 500, "learning_starts": 20, "batch_size": 16}


class Masked(RandomEnv):
    """The third action is never allowed."""

    def action_masks(self) -> np.ndarray:
        return np.array([True, True, False])


def agent_of(kind: Any, policy: str = "MlpPolicy", action: Any = DISCRETE, *, env: Any = None, **more: Any) -> Any:
    options = {"net_arch": [8, 6], **more.pop("policy_kwargs", {})}
    env = RandomEnv(VECTOR, action) if env is None else env
    return kind(policy, env, policy_kwargs=options, device="cpu", seed=0, **more)


def ppo(**more: Any) -> Any:
    return SB3["ppo"].make(**{**ROLLOUT, **more})


def sac(**more: Any) -> Any:
    return SB3["sac"].make(**{"batch_size": 16, **more})


def weights(agent: Any) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in agent.policy.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def no_hooks(agent: Any) -> bool:
    optimizers = parts_of_agent(agent).optimizers
    modules = agent.policy.modules()
    return not any(m._forward_hooks or m._forward_pre_hooks for m in modules) and not any(
        item._optimizer_step_post_hooks or item._optimizer_step_pre_hooks for item in optimizers
    )


# ---- what is found ----
LSTM = {"policy_kwargs": {"lstm_hidden_size": 7}}
AGENTS: dict[str, tuple[Any, int, list[int], set[str]]] = {
    "ppo_continuous": (lambda: SB3["ppo_continuous"].make(**ROLLOUT), 64, [8], set(SB3["ppo_continuous"].groups)),
    "ppo_image": (
        lambda: SB3["ppo_image"].make(n_steps=16, batch_size=8, n_epochs=4),
        16,
        [8],
        set(SB3["ppo_image"].groups),
    ),
    "a2c": (lambda: SB3["a2c"].make(n_steps=8), 80, [10], set(SB3["a2c"].groups)),
    "sac_dict": (lambda: SB3["sac_dict"].make(batch_size=16), 50, [30, 30], set(SB3["sac_dict"].groups)),
    "td3": (lambda: SB3["td3"].make(batch_size=16), 50, [30, 15], set(SB3["td3"].groups)),
    "ddpg": (
        lambda: agent_of(sb3.DDPG, action=CONTINUOUS, **REPLAY),
        40,
        [20, 20],
        {"actor.mu.0", "actor.mu.2", "critic.qf0.0", "critic.qf0.2"},
    ),
    "dqn": (lambda: SB3["dqn"].make(train_freq=1), 50, [30], {"q_net.0", "q_net.2"}),
    "qrdqn": (
        lambda: agent_of(contrib.QRDQN, train_freq=1, **REPLAY),
        50,
        [30],
        {"quantile_net.0", "quantile_net.2"},
    ),
    "tqc": (lambda: agent_of(contrib.TQC, action=CONTINUOUS, **REPLAY), 40, [20, 20], set(SB3["sac"].groups)),
    "recurrent": (
        lambda: agent_of(contrib.RecurrentPPO, "MlpLstmPolicy", **{**ROLLOUT, "batch_size": 32}, **LSTM),
        128,
        [8],
        set(SB3["ppo"].groups) | {"lstm_actor", "lstm_critic"},
    ),
    "maskable": (
        lambda: agent_of(contrib.MaskablePPO, env=Masked(VECTOR, DISCRETE), **ROLLOUT),
        64,
        [8],
        set(SB3["ppo"].groups),
    ),
}


def some_wide(names: Any, wide: tuple[str, ...]) -> list[Any]:
    """The others are enough where time is short."""
    return [pytest.param(name, marks=[pytest.mark.wide] if name in wide else []) for name in names]


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
    plain = make().learn(steps, callback=EvalCallback(RandomEnv(VECTOR, SB3["sac"].action), eval_freq=10**6, verbose=0))
    agent, log = make(), Recorded()
    agent.set_logger(log)
    protect = pliant.sb3.Protect(EAGER, log_every=4, budget=None)
    space = agent.action_space
    evaluation = EvalCallback(RandomEnv(VECTOR, space), eval_freq=20, n_eval_episodes=1, verbose=0, warn=False)
    agent.learn(steps, callback=[protect, evaluation], log_interval=1)
    assert evaluation.last_mean_reward != 0
    assert protect.handle.num_steps == expected
    assert protect.monitor.num_steps == expected
    last = next(values for values in reversed(log.dumped) if "plasticity/resets" in values)  # evaluation also dumps
    resets = sum(int(total) for total in protect.handle.num_resets.values())
    assert 0 < last["plasticity/resets"] <= resets
    for network in ("actor", "critic"):
        for metric in ("dormant_fraction", "effective_rank", "stable_rank", "weight_growth"):
            assert math.isfinite(last[f"plasticity/{network}_{metric}"])
    assert last["plasticity/weight_magnitude"] > 0
    assert last["plasticity/alarms"] == 0
    assert not same(weights(plain), weights(agent))
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
    assert log.dumped[-1]["plasticity/alarms"] >= 1


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
    with pytest.raises(IllegalConfiguration, match="an instance of Protect"):
        pliant.sb3.Protect(ContinualBackprop)
    with pytest.raises(IllegalConfiguration, match="an instance of Protect"):
        ppo().learn(64, callback=pliant.sb3.Protect)  # the class, which Stable-Baselines3 takes for a function
    with pytest.raises(IllegalConfiguration, match="needs a model, its optimizer and the methods"):
        pliant.attach(nn.Linear(2, 2), EAGER)


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
    vector = sb3.common.vec_env.VecNormalize(sb3.common.vec_env.DummyVecEnv([lambda: RandomEnv(VECTOR, DISCRETE)]))
    agent = agent_of(sb3.PPO, env=vector, **ROLLOUT)
    agent.learn(64)
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
