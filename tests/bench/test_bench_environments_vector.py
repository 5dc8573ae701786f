"""Many small changing environments at once, alone and under Stable-Baselines3."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv

from pliant import IllegalConfiguration
from pliant.bench.rl.environments import (
    Cycle,
    LogUniform,
    ReachTasks,
    SB3Vector,
    ShiftingReach,
    ShiftSchedule,
    make_vector,
)


def reach(num_envs: int = 6, every: int | None = 120, **options) -> ShiftingReach:
    environment = ShiftingReach(num_envs, every, **options)
    environment.reset()
    return environment


@pytest.mark.parametrize("actions", ["discrete", "continuous"])
def test_the_best_policy_earns_one_per_step_and_a_random_one_nothing(actions: str):
    environment, random = reach(8, 800, actions=actions), np.random.default_rng(0)
    best = np.concatenate([environment.step(environment.best_actions())[1] for _ in range(400)])
    if actions == "discrete":
        # but for a shift that puts the goal under a point that was going to its old one
        assert np.mean(best == 1.0) > 0.999
    else:
        assert 0.95 < best.mean() < 1
        assert best.max() <= 1 + 1e-12
    blind = random.integers(0, 4, (400, 8)) if actions == "discrete" else random.uniform(-1, 1, (400, 8, 2))
    rewards = np.array([environment.step(action)[1] for action in blind])
    assert abs(rewards.mean()) < 0.08
    assert rewards.min() >= -1 - 1e-12


def test_rewards_are_the_way_that_is_left():
    environment = reach(4, 10**6)
    for _ in range(30):
        before = environment._distance()
        actions = environment.np_random.integers(0, 4, 4)
        _, rewards, terminated, truncated, _ = environment.step(actions)
        going = ~(terminated | truncated)
        assert (rewards[going] == (before - environment._distance())[going]).all()
        assert (before[terminated] == 1).all()  # one step away


def test_observations_are_the_permuted_readings_of_fixed_sensors():
    environment = reach(5, 60)
    seen, _, _, _, _ = environment.step(np.zeros(5, dtype=int))
    first = environment.value
    offsets = environment.position[:, None] * 8 - environment._centres
    readings = np.exp(-(offsets**2).sum(2) / (2 * (0.25 * 8) ** 2))
    assert seen == pytest.approx(readings[:, first.sensors], abs=1e-6)
    for _ in range(11):
        seen, _, _, _, info = environment.step(np.zeros(5, dtype=int))
    assert info["shift"].tolist() == [1] * 5
    offsets = environment.position[:, None] * 8 - environment._centres
    readings = np.exp(-(offsets**2).sum(2) / (2 * (0.25 * 8) ** 2))
    assert environment.value.sensors != first.sensors
    assert seen == pytest.approx(readings[:, environment.value.sensors], abs=1e-6)


@pytest.mark.parametrize("actions", ["discrete", "continuous"])
def test_only_what_shall_change_changes_and_actions_keep_spanning_the_plane(actions: str):
    environment = reach(1, 10, actions=actions, changes=("actions",), num_sensors=8)
    tasks, planes = [], []
    for shift in range(30):
        environment.set_shift(shift)
        tasks.append(environment.value)
        planes.append(abs(np.linalg.det(environment._directions()[0])))
    assert len({task.goal for task in tasks}) == len({task.sensors for task in tasks}) == 1
    assert len({task.actions for task in tasks}) > 10
    assert planes == [1.0] * 30


def test_changes_come_at_once_or_with_the_next_episode_of_each():
    at_once = reach(6, 120)
    shifts = [at_once.step(np.zeros(6, dtype=int))[4]["shift"].tolist() for _ in range(45)]
    assert shifts == [[step * 6 // 120] * 6 for step in range(1, 46)]

    waiting = ShiftingReach(6, schedule=ShiftSchedule(ReachTasks(), every=120), episode_steps=15)
    waiting.reset()
    before, mixed = np.zeros(6, dtype=int), False
    for step in range(1, 200):
        _, _, terminated, truncated, info = waiting.step(waiting.np_random.integers(0, 4, 6))
        ended = terminated | truncated
        assert (info["shift"][~ended] == before[~ended]).all()
        assert (info["shift"][ended] == step * 6 // 120).all()
        before = info["shift"]
        mixed |= len(set(before)) > 1
    assert mixed


def test_an_episode_that_ends_hands_over_its_last_observation_return_and_length():
    environment = reach(3, 10**6, episode_steps=5, seed=2, size=4)
    returns, lengths = np.zeros(3), np.zeros(3, dtype=int)
    cuts = ends = 0
    for _ in range(60):
        where = environment.position
        seen, rewards, terminated, truncated, info = environment.step(environment.np_random.integers(0, 4, 3))
        returns, lengths = returns + rewards, lengths + 1
        done = terminated | truncated
        assert ("final_obs" in info) == done.any()
        assert not (terminated & truncated).any()
        assert (lengths[truncated] == 5).all()
        if done.any():
            assert info["_episode"].tolist() == info["_final_obs"].tolist() == done.tolist()
            assert info["episode"]["r"][done].tolist() == returns[done].tolist()
            assert info["episode"]["l"][done].tolist() == lengths[done].tolist()
            assert (info["final_obs"][terminated] != seen[terminated]).any(1).all()
            assert (np.abs(environment.position[~done] - where[~done]).sum(1) <= 1 / 3 + 1e-9).all()
        returns[done], lengths[done] = 0, 0
        cuts, ends = cuts + truncated.sum(), ends + terminated.sum()
    assert min(cuts, ends) > 3
    assert environment.metadata["autoreset_mode"] == AutoresetMode.SAME_STEP


@pytest.mark.parametrize("takes_effect", ["at_once", "episode_end"])
@pytest.mark.parametrize("counted_from", ["start", "change"])
def test_it_goes_on_to_the_bit(takes_effect: str, counted_from: str):
    schedule = ShiftSchedule(ReachTasks(), 70, takes_effect=takes_effect, counted_from=counted_from)

    def made(seed: int = 3) -> ShiftingReach:
        return ShiftingReach(5, schedule=schedule, seed=seed, episode_steps=12)

    def lived(environment, steps: int) -> list:
        told = []
        for step in range(steps):
            seen, rewards, terminated, truncated, info = environment.step(np.arange(step, step + 5) % 4)
            told.append([seen.tolist(), rewards.tolist(), terminated.tolist(), truncated.tolist(), str(info)])
        return told

    first, second = made(), made()
    assert np.array_equal(first.reset()[0], second.reset()[0])
    assert not np.array_equal(made(4).reset()[0], first._observe())
    assert lived(first, 33) == lived(second, 33)
    state = json.loads(json.dumps(first.state_dict()))
    told = lived(first, 60)
    assert first.shift.min() > 2
    third = made()
    third.load_state_dict(state)
    assert lived(third, 60) == told


def test_tasks_may_come_again():
    pair = tuple(ReachTasks(8).value(shift, seed=9) for shift in (0, 1))
    environment = reach(2, None, num_sensors=8, schedule=ShiftSchedule(Cycle(pair), 20, takes_effect="at_once"))
    seen = []
    for _ in range(4):
        seen.append(environment.value)
        for _ in range(10):
            environment.step(environment.best_actions())
    assert seen == [*pair, *pair]


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda: ShiftingReach(4), "either every or schedule"),
        (lambda: ShiftingReach(4, 100, total_steps=100), "nothing would ever change"),
        (lambda: ShiftingReach(4, 100, actions="both"), "'discrete' or 'continuous'"),
        (lambda: ShiftingReach(4, 100, changes=("goals",)), "must be some of"),
        (lambda: ShiftingReach(0, 100), "num_envs"),
        (lambda: ShiftingReach(4, 100, size=2), "size"),
        (lambda: ShiftingReach(4, 100).step(np.zeros(4, dtype=int)), r"call reset\(\)"),
        (lambda: reach(schedule=ShiftSchedule(LogUniform(1, 2), 50), every=None), "no ReachTask"),
        (lambda: reach(schedule=ShiftSchedule(ReachTasks(8), 50), every=None), "does not fit 32 sensors"),
        (lambda: reach(2).load_state_dict(reach(3).state_dict()), "of 3 instances"),
        (lambda: reach(2).set_shift(-1), "no shift -1"),
        (lambda: make_vector("changing_pendulum", num_envs=0), "num_envs"),
    ],
)
def test_what_cannot_be_is_refused_at_the_start(build, says: str):
    with pytest.raises(IllegalConfiguration, match=says):
        build()


# under Stable-Baselines3


def test_the_adapter_hands_everything_on():
    plain, vector = (
        ShiftingReach(3, 60, seed=1, episode_steps=6),
        SB3Vector(ShiftingReach(3, 60, seed=1, episode_steps=6)),
    )
    vector.seed(11)
    assert np.array_equal(vector.reset(), plain.reset(seed=11)[0])
    for step in range(60):
        actions = np.arange(step, step + 3) % 4
        seen, rewards, done, infos = vector.step(actions)
        theirs, their_rewards, terminated, truncated, info = plain.step(actions)
        assert np.array_equal(seen, theirs)
        assert rewards.dtype == np.float32
        assert rewards.tolist() == their_rewards.tolist()
        assert done.tolist() == (terminated | truncated).tolist()
        assert [each["shift"] for each in infos] == info["shift"].tolist()
        assert [each["TimeLimit.truncated"] for each in infos] == truncated.tolist()
        for index in np.flatnonzero(done):
            assert np.array_equal(infos[index]["terminal_observation"], info["final_obs"][index])
            assert infos[index]["episode"]["r"] == info["episode"]["r"][index]
    assert vector.get_attr("size", [0, 2]) == [9, 9]
    vector.env_method("set_shift", 7)
    assert vector.get_attr("shift")[0].tolist() == [7, 7, 7]
    assert vector.env_is_wrapped(DummyVecEnv) == [False] * 3


@pytest.mark.wide
def test_an_unmodified_agent_learns_in_it_and_unlearns_at_a_shift():
    vector = SB3Vector(ShiftingReach(16, 6000, seed=0, size=5, num_sensors=16, episode_steps=20))
    network = {"net_arch": [32], "activation_fn": torch.nn.ReLU}
    agent = PPO(
        *("MlpPolicy", vector, 3e-3, 32, 128, 6),
        **{"gamma": 0.8, "ent_coef": 0.02, "seed": 0, "device": "cpu", "policy_kwargs": network},
    )
    rewards: list[float] = []
    agent.learn(12_000, callback=lambda now, _: rewards.append(float(now["rewards"].mean())) or True)
    shift = 6000 // 16
    early, before, after = (np.mean(rewards[a:b]) for a, b in ((0, 30), (shift - 60, shift), (shift, shift + 30)))
    assert early < 0.35
    assert before > 0.7
    assert after < before - 0.4
    assert len(agent.ep_info_buffer) > 50


def test_environments_side_by_side_change_alike_and_begin_elsewhere():
    vector = make_vector("changing_cart_pole", seed=2, num_envs=3, every=90, total_steps=10**4)
    start = vector.reset()
    assert len({tuple(row) for row in start}) == 3
    seen = []
    for step in range(1, 200):
        _, _, done, infos = vector.step(np.full(3, step % 2))
        seen.append([info["shift"] for info in infos])
        for index in np.flatnonzero(done):
            assert vector.reset_infos[index]["shift"] == step * 3 // 90
    assert max(seen[-1]) == 6
    lengths = [environment.unwrapped.length for environment in vector.envs]
    shifts = vector.get_attr("shift")
    assert len(set(zip(shifts, lengths, strict=True))) == len(set(shifts))
    again = make_vector("changing_cart_pole", seed=2, num_envs=3, every=90)
    assert np.array_equal(again.reset(), start)


@pytest.mark.wide
def test_processes_change_as_one_process_does():
    both = [
        make_vector("slippery_hopper", seed=1, num_envs=2, every=40, processes=processes) for processes in (False, True)
    ]
    starts = [vector.reset() for vector in both]
    assert np.array_equal(*starts)
    for step in range(60):
        actions = np.sin(step + np.arange(6)).reshape(2, 3).astype(np.float32)
        (seen, rewards, _, infos), (theirs, their_rewards, _, their_infos) = (vector.step(actions) for vector in both)
        assert np.array_equal(seen, theirs)
        assert np.array_equal(rewards, their_rewards.astype(np.float32))
        assert [info["shift"] for info in infos] == [info["shift"] for info in their_infos]
    assert both[0].get_attr("changes") == both[1].get_attr("changes") != [[], []]
    for vector in both:
        vector.close()
