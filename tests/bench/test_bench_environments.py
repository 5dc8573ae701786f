"""Schedules, clocks and wrappers: what changes when, in one environment and in several, and going on to the bit."""

from __future__ import annotations

import json
import math

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from pliant import IllegalConfiguration, NoEffect, NotYetSupported
from pliant.bench.rl.environments import (
    ENVIRONMENTS,
    ChangingParameters,
    Choice,
    Cycle,
    Listed,
    LogUniform,
    Permutations,
    PermutedSensors,
    RandomWalk,
    ShiftSchedule,
    SwitchingTasks,
    Together,
    Uniform,
    environment_state,
    load_environment_state,
    make,
)


class Counting(gymnasium.Env):
    """Three numbers that say how many steps the episode has had; it ends after ``length`` of them."""

    observation_space = spaces.Box(np.array([0, 0, -1]), np.array([100, 1, 5]), dtype=np.float64)
    action_space = spaces.Discrete(2)
    render_mode = None

    def __init__(self, length: int = 7, cut: bool = False) -> None:
        self.length, self.cut, self.count = length, cut, 0

    def _seen(self):
        return np.array([self.count, 1.0, -1.0])

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.count = 0
        return self._seen(), {}

    def step(self, action):
        self.count += 1
        ended = self.count >= self.length
        return self._seen(), 0.0, ended and not self.cut, ended and self.cut, {}


def changes_of(environment, steps: int) -> list[tuple[int, int]]:
    environment.reset(seed=0)
    for _ in range(steps):
        _, _, terminated, truncated, _ = environment.step(0)
        if terminated or truncated:
            environment.reset()
    return environment.changes


def sensors(every: int = 10, length: int = 7, cut: bool = False, num_envs: int = 1, **more) -> PermutedSensors:
    return PermutedSensors(Counting(length, cut), ShiftSchedule(Permutations(3), every, **more), num_envs=num_envs)


# sequences of values


def test_log_uniform_and_uniform_have_their_distributions():
    for sequence, to_unit in (
        (LogUniform(0.02, 2.0), lambda value: math.log(value / 0.02) / math.log(100)),
        (Uniform(-3.0, 5.0), lambda value: (value + 3) / 8),
    ):
        drawn = np.sort([to_unit(sequence.value(shift, 7)) for shift in range(2000)])
        steps = np.arange(2000) / 2000
        assert max((drawn - steps).max(), (steps + 1 / 2000 - drawn).max()) < 1.63 / math.sqrt(2000)  # 1 %, Kolmogorov


def test_values_depend_on_shift_seed_and_purpose_alone():
    for sequence in (LogUniform(1, 2), Choice((1, 2, 3, 4)), RandomWalk(0, 1, 0.2), Permutations(9)):
        forwards = [sequence.value(shift, 1, "friction") for shift in range(40)]
        backwards = [sequence.value(shift, 1, "friction") for shift in reversed(range(40))]
        assert forwards == backwards[::-1]
        assert forwards != [sequence.value(shift, 2, "friction") for shift in range(40)]
        assert forwards != [sequence.value(shift, 1, "gravity") for shift in range(40)]


def test_choice_takes_each_value_as_often():
    drawn = [Choice((0, 1, 2)).value(shift, seed) for seed in range(100) for shift in (0, 1, 2, 9)]
    assert np.bincount(drawn).tolist() == pytest.approx([400 / 3] * 3, abs=40)


@pytest.mark.parametrize("log", [False, True])
def test_a_random_walk_has_its_steps_and_stays_between_its_walls(log: bool):
    walk = RandomWalk(1.0, 100.0, step_size=0.05 if log else 1.0, start=30.0, log=log)
    values = np.array([walk.value(shift, 0) for shift in range(800)])
    assert values.min() >= 1
    assert values.max() <= 100
    steps = np.diff(np.log(values) if log else values)
    assert steps.std() == pytest.approx(walk.step_size, rel=0.1)
    assert values.max() - values.min() > 20


def test_a_walk_is_thrown_back_by_its_walls():
    values = np.array([RandomWalk(0, 1, step_size=5.0).value(shift, 3) for shift in range(1, 500)])
    assert np.histogram(values, bins=4, range=(0, 1))[0].tolist() == pytest.approx([125] * 4, abs=45)


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda: LogUniform(0.0, 1.0), "above zero"),
        (lambda: Uniform(2.0, 1.0), "less than high"),
        (lambda: Uniform(0.0, math.nan), "finite"),
        (lambda: Choice((1.0,)), "give 2"),
        (lambda: RandomWalk(0, 1, 0.1, start=2.0), "between low"),
        (lambda: RandomWalk(0, 1, math.nan), "step_size"),
        (lambda: Permutations(1), "nothing to permute"),
        (lambda: Together({}), "at least one"),
        (lambda: ShiftSchedule(Uniform(0, 1), every=0), "1 or more"),
        (lambda: ShiftSchedule(Uniform(0, 1), every=2.5), "whole number"),
        (lambda: ShiftSchedule(Uniform(0, 1), every=5, takes_effect="soon"), "'episode_end' or 'at_once'"),
        (lambda: ShiftSchedule(0.3, every=5), "no sequence"),
        (lambda: ShiftSchedule(Uniform(0, 1), every=100).check(100), "nothing would ever change"),
        (lambda: ShiftSchedule(Listed((1, 2, 3)), every=100).check(200), "3 phases of 100 steps"),
        (lambda: ShiftSchedule(Cycle((1, 2)), 100, starts_unchanged=True).check(200), "which reach 2"),
        (lambda: sensors().set_shift(-1), "no shift -1"),
        (lambda: PermutedSensors(Counting(), ShiftSchedule(Permutations(4), 9)), "no permutation of the 3"),
        (lambda: PermutedSensors(Counting(), ShiftSchedule(Listed(((0, 1, 2), (0, 1))), 9)), "no permutation"),
        (lambda: sensors(num_envs=0), "num_envs"),
        (lambda: make("slippery_aunt"), "no environment 'slippery_aunt'"),
        (lambda: make("changing_wind", setting="paper"), "no published setting"),
        (lambda: make("changing_pendulum", every=100, total_steps=50), "nothing would ever change"),
    ],
)
def test_what_cannot_be_is_refused_at_the_start(build, says: str):
    with pytest.raises(IllegalConfiguration, match=says):
        build()


def test_a_schedule_that_just_fits_is_not_refused():
    ShiftSchedule(Uniform(0, 1), every=100).check(101)
    ShiftSchedule(Listed((1, 2, 3)), every=100).check(201)


# when


def test_at_once_is_between_two_steps():
    environment = sensors(takes_effect="at_once")
    environment.reset()
    shifts, sums = [], []
    for step in range(1, 41):
        seen, _, terminated, _, info = environment.step(0)
        assert sorted(seen) == sorted([environment.env.count, 1, -1])
        assert seen.tolist() == environment._permuted(np.array([environment.env.count, 1, -1])).tolist()
        shifts.append(info["shift"])
        sums.append(step // 10)
        if terminated:
            environment.reset()
    assert shifts == sums
    assert environment.changes == [(10, 1), (20, 2), (30, 3), (40, 4)]


@pytest.mark.parametrize("cut", [False, True])
def test_a_change_waits_for_the_end_of_the_episode(cut: bool):
    assert changes_of(sensors(cut=cut), 45) == [(14, 1), (21, 2), (35, 3), (42, 4)]


def test_as_published_the_time_is_counted_from_the_last_change():
    assert changes_of(sensors(counted_from="change"), 45) == [(14, 1), (28, 2), (42, 3)]


def test_long_episodes_leave_phases_out_or_put_them_off():
    assert changes_of(sensors(length=25), 80) == [(25, 2), (50, 5), (75, 7)]
    assert changes_of(sensors(length=25, counted_from="change"), 80) == [(25, 1), (50, 2), (75, 3)]


def test_behind_the_last_value_nothing_changes():
    environment = PermutedSensors(Counting(), ShiftSchedule(Listed(((0, 1, 2), (2, 1, 0))), 10))
    assert changes_of(environment, 60) == [(14, 1)]
    assert environment.value == (2, 1, 0)


def test_the_first_phase_may_be_the_environment_as_it_is():
    environment = sensors(starts_unchanged=True)
    assert environment.value is None
    assert environment.reset()[0].tolist() == [0, 1, -1]
    changes_of(environment, 14)
    assert environment.value == Permutations(3).value(0, 0, "sensors")


def test_a_reset_with_a_seed_does_not_turn_back_the_clock():
    environment = sensors(takes_effect="at_once")
    changes_of(environment, 15)
    environment.reset(seed=0)
    assert (environment.shift, environment.clock.steps) == (1, 15)


def test_two_kinds_of_change_are_counted_together():
    inner = ChangingParameters(
        gymnasium.make("CartPole-v1"),
        ShiftSchedule(Together({"length": Uniform(0.5, 1.0)}), every=3, takes_effect="at_once"),
    )
    both = PermutedSensors(inner, ShiftSchedule(Permutations(4), every=2, takes_effect="at_once"))
    both.reset(seed=0)
    assert [both.step(0)[4]["shift"] for _ in range(6)] == [0, 1, 2, 3, 3, 5]


def test_the_space_covers_every_order():
    environment = sensors(every=1, takes_effect="at_once")
    assert environment.observation_space == spaces.Box(-1, 100, (3,), np.float64)
    with pytest.raises(NoEffect, match="must be a Box"):
        PermutedSensors(gymnasium.make("FrozenLake-v1"), ShiftSchedule(Permutations(3), 9))


# several at once


@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP])
def test_several_environments_count_the_steps_of_all(mode):
    """40 steps of all: at once, so that all change together; where a reset takes a step, all change a little later."""
    vector = SyncVectorEnv([lambda: sensors(every=40, takes_effect="at_once", num_envs=4)] * 4, autoreset_mode=mode)
    vector.reset(seed=0)
    shifts = np.array([vector.step(np.zeros(4, dtype=int))[4]["shift"] for _ in range(24)])
    assert (shifts == shifts[:, :1]).all()
    first = int((shifts[:, 0] == 0).sum())
    assert first == (9 if mode == AutoresetMode.SAME_STEP else 10)  # episodes of 7: one reset lies before
    orders = {environment.value for environment in vector.envs}
    assert len(orders) == 1


# classic control


def settled(name: str, **numbers: float) -> ChangingParameters:
    values = Listed((numbers,))
    return ChangingParameters(gymnasium.make(name, disable_env_checker=True), ShiftSchedule(values, every=10**6))


@pytest.mark.parametrize(("length", "gravity"), [(0.5, 10.0), (2.0, 10.0), (1.0, 2.5)])
def test_a_pendulum_swings_as_long_as_its_length_and_gravity_say(length: float, gravity: float):
    """A rod about its end: T = 2 pi sqrt(2 l / 3 g) for small swings."""
    swinging = settled("Pendulum-v1", l=length, g=gravity)
    swinging.reset()
    bare = swinging.unwrapped
    bare.state, bare.dt = np.array([math.pi + 0.02, 0.0]), 0.002
    times = []
    for step in range(6000):
        before = bare.state[1]
        bare.step([0.0])
        if before > 0 >= bare.state[1]:
            times.append(step * bare.dt)
    assert np.diff(times).mean() == pytest.approx(2 * math.pi * math.sqrt(2 * length / (3 * gravity)), rel=0.01)


def test_a_pendulum_may_have_to_hang():
    upright, hanging = settled("Pendulum-v1", m=1.0), settled("Pendulum-v1", target_angle=math.pi)
    for environment, best in ((upright, 0.0), (hanging, math.pi)):
        environment.reset(seed=0)
        for angle in (0.0, 1.0, math.pi, -2.0):
            environment.unwrapped.state = np.array([angle, 0.5])
            reward = environment.step(np.array([1.0], dtype=np.float32))[1]
            off = math.remainder(angle - best, 2 * math.pi)
            assert reward == pytest.approx(-(off**2 + 0.1 * 0.25 + 0.001))


def test_a_cart_follows_its_forces_masses_and_signs():
    def acceleration(action: int, **numbers: float) -> tuple[float, float]:
        environment = settled("CartPole-v1", **numbers)
        environment.reset()
        bare = environment.unwrapped
        bare.state = np.zeros(4)
        environment.step(action)
        return float(bare.state[1] / bare.tau), float(bare.state[3] / bare.tau)

    def expected(force: float, cart: float, pole: float, half: float) -> tuple[float, float]:
        total = cart + pole
        turning = -force / total / (half * (4 / 3 - pole / total))
        return force / total - pole * half * turning / total, turning

    assert acceleration(1, length=1.0, masspole=0.4) == pytest.approx(expected(10, 1.0, 0.4, 1.0))
    assert acceleration(1, force_mag=4.0, masscart=3.0) == pytest.approx(expected(4, 3.0, 0.1, 0.5))
    assert acceleration(1, action_sign=-1) == acceleration(0, masscart=1.0) == acceleration(1, force_mag=-10.0)


def test_a_longer_acrobot_moves_its_centres_of_mass_and_its_torques_can_be_reversed():
    longer = settled("Acrobot-v1", LINK_LENGTH_1=1.6)
    assert (longer.unwrapped.LINK_COM_POS_1, longer.unwrapped.LINK_COM_POS_2) == (0.8, 0.5)
    ends = []
    for sign, action in ((1, 2), (-1, 0)):
        environment = settled("Acrobot-v1", action_sign=sign)
        environment.reset(seed=0)
        ends.append(environment.step(action)[0].tolist())
    assert ends[0] == ends[1]
    longer.close()
    assert longer.unwrapped.LINK_COM_POS_1 == 0.5


@pytest.mark.parametrize("name", ["MountainCarContinuous-v0", "MountainCar-v0"])
@pytest.mark.parametrize("goal", [0.45, -1.1])
def test_a_car_reaches_the_goal_on_either_side(name: str, goal: float):
    environment = settled(name, goal_position=goal)
    environment.reset(seed=0)
    bare = environment.unwrapped
    for _ in range(400):  # push in the direction of movement
        right = bare.state[1] >= 0
        action = (2 if right else 0) if name == "MountainCar-v0" else np.array([1.0 if right else -1.0])
        before = bare.state[0]
        _, reward, terminated, truncated, _ = environment.step(action)
        if terminated:
            break
        assert not truncated
    assert (before < goal <= bare.state[0]) if goal > 0 else (bare.state[0] <= goal < before)
    assert reward == pytest.approx(99.9 if "Continuous" in name else -1.0)


@pytest.mark.parametrize(
    ("error", "name", "values", "says"),
    [
        (NoEffect, "CartPole-v1", Listed(({"masscart": 1.0}, {"l": 1.0})), "has no 'l' to change; it has action_sign"),
        (NoEffect, "FrozenLake-v1", Listed(({"g": 1.0},)), "no environment of classic control"),
        (IllegalConfiguration, "CartPole-v1", Uniform(0, 1), "mapping"),
        (IllegalConfiguration, "CartPole-v1", Together({"length": Uniform(-1, 1)}), "length=-1"),
        (IllegalConfiguration, "Pendulum-v1", Together({"action_sign": Cycle((1.0, 0.5, -1.0))}), "must be 1 or -1"),
    ],
)
def test_parameters_that_cannot_be_changed(error, name: str, values, says: str):
    with pytest.raises(error, match=says):
        ChangingParameters(gymnasium.make(name), ShiftSchedule(values, every=10))


def test_tasks_follow_each_other_behind_one_observation_and_one_action():
    environment = make("classic_tasks", every=30, total_steps=200)
    assert (environment.observation_space.shape, environment.action_space.shape) == ((6,), (1,))
    seen, names, _ = environment.reset(seed=0)[0], [], None
    for _ in range(800):
        bare = environment.unwrapped
        names.append(type(bare).__name__)
        seen, reward, terminated, truncated, _ = environment.step(np.array([-1.0], dtype=np.float32))
        size = bare.observation_space.shape[0]
        assert not seen[size:].any()
        assert abs(reward) <= 1.04
        if names[-1] == "PendulumEnv":
            assert bare.last_u == -2.0
        if terminated or truncated:
            environment.reset()
    order = [one for one, before in zip(names, [None, *names], strict=False) if one != before]
    assert order[:3] == ["CartPoleEnv", "AcrobotEnv", "PendulumEnv"]
    assert order[3] == "CartPoleEnv"


def test_discrete_actions_divide_the_range():
    environment = make("classic_tasks")
    environment.reset(seed=0)
    assert [environment._translated(np.array([x])) for x in (-1, -0.01, 0.01, 1)] == [0, 0, 1, 1]
    environment.set_shift(1)
    assert [environment._translated(np.array([x])) for x in (-1, -0.34, -0.33, 0.33, 0.34, 1)] == [0, 0, 1, 1, 2, 2]


def test_tasks_that_do_not_go_together():
    two = [gymnasium.make("CartPole-v1"), gymnasium.make("Pendulum-v1")]
    with pytest.raises(IllegalConfiguration, match="numbers from 0 to 1"):
        SwitchingTasks(two, ShiftSchedule(Cycle((0, 1, 2)), 10))
    with pytest.raises(IllegalConfiguration, match="episode_end"):
        SwitchingTasks(two, ShiftSchedule(Cycle((0, 1)), 10, takes_effect="at_once"))
    with pytest.raises(IllegalConfiguration, match="Box of one dimension"):
        SwitchingTasks([two[0], gymnasium.make("FrozenLake-v1")], ShiftSchedule(Cycle((0, 1)), 10))
    with pytest.raises(NoEffect, match="nothing to switch to"):
        SwitchingTasks(two[:1], ShiftSchedule(Cycle((0, 1)), 10))


# presets, and going on


@pytest.mark.filterwarnings("ignore:.*WARN:UserWarning")  # it would rather check the environment without its wrappers
@pytest.mark.parametrize("name", [name for name in ENVIRONMENTS if "v5" not in ENVIRONMENTS[name].ids[0]])
def test_presets_keep_the_contract_of_gymnasium(name: str):
    check_env(make(name), skip_render_check=True)


@pytest.mark.parametrize("name", sorted(ENVIRONMENTS))
def test_a_preset_is_reproducible_and_goes_on_to_the_bit(name: str):
    every = 11 if name != "classic_tasks" else 25

    def lived(environment, steps: int) -> list[list[float]]:
        told = []
        for step in range(steps):
            space = environment.action_space
            discrete = isinstance(space, spaces.Discrete)
            action = step % int(space.n) if discrete else np.sin(step + np.arange(space.shape[0])).astype(np.float32)
            seen, reward, terminated, truncated, info = environment.step(action)
            told.append([*np.asarray(seen).tolist(), float(reward), info["shift"]])
            if terminated or truncated or step % 17 == 16:  # most of these do not end within a hundred steps
                told.append(environment.reset()[0].tolist())
        return told

    first, second, third = (make(name, seed=3, every=every) for _ in range(3))
    start = first.reset()[0]
    assert np.array_equal(second.reset()[0], start)
    assert not np.array_equal(make(name, seed=4, every=every).reset()[0], start)
    lived(first, 40)
    state = json.loads(json.dumps(environment_state(first)))
    told = lived(first, 60)
    lived(second, 13)  # somewhere else altogether
    for other in (second, third):
        load_environment_state(other, state)
        assert lived(other, 60) == told
    assert first.shift == second.shift > 0


def test_a_humanoid_goes_on_to_the_bit_inside_a_monitor():
    from stable_baselines3.common.monitor import Monitor

    def made():
        humanoid = gymnasium.make("Humanoid-v5")
        return Monitor(PermutedSensors(humanoid, ShiftSchedule(Permutations(348), every=5)))

    first, second = made(), made()
    first.reset(seed=1)
    for _ in range(10):
        first.step(np.zeros(17))
    load_environment_state(second, environment_state(first))
    for _ in range(10):
        one, other = first.step(np.full(17, 0.1)), second.step(np.full(17, 0.1))
        assert np.array_equal(one[0], other[0])
        assert one[1] == other[1]
    assert first.rewards == second.rewards


def test_a_memory_that_is_not_known_is_not_forgotten():
    averaged = gymnasium.wrappers.NormalizeObservation(gymnasium.make("CartPole-v1"))
    averaged.reset(seed=0)
    with pytest.raises(NotYetSupported, match="NormalizeObservation has a memory"):
        environment_state(averaged)
    with pytest.raises(NotYetSupported, match="StickyAction has a memory"):
        environment_state(gymnasium.wrappers.StickyAction(gymnasium.make("CartPole-v1"), 0.5))
    with pytest.raises(NotYetSupported, match="Counting has a memory"):
        environment_state(sensors())
    with pytest.raises(IllegalConfiguration, match="has a PermutedSensors in its place"):
        load_environment_state(make("permuted_sensors"), environment_state(make("changing_pendulum")))


@pytest.mark.parametrize("name", ["changing_wind", "changing_mass", "slippery_ant", "changing_pendulum"])
def test_a_specification_makes_the_same_again(name: str):
    environment = make(name, seed=5, every=40)
    again = gymnasium.make(environment.spec)
    assert type(again) is type(environment)
    assert (again.schedule, again.seed, again.value) == (environment.schedule, 5, environment.value)


def test_wrappers_that_only_transform_are_known():
    clipped = gymnasium.wrappers.ClipAction(gymnasium.wrappers.ClipReward(make("changing_pendulum"), -1.0, 1.0))
    clipped.reset()
    environment_state(clipped)


def test_slippery_ant_as_published():
    environment = make("slippery_ant", seed=1, setting="paper")
    schedule = environment.schedule
    assert schedule == ShiftSchedule(LogUniform(0.02, 2.0), 2_000_000, "episode_end", "change", False)
    seen, _ = environment.reset()
    assert (seen.shape, environment.observation_space.shape) == ((111,), (111,))
    assert not seen[27:].any()
    assert environment.unwrapped.model.geom_friction[:, 0].tolist() == pytest.approx([environment.value] * 14)
    _, reward, _, _, info = environment.step(np.full(8, 0.5, dtype=np.float32))
    assert reward == pytest.approx(info["x_velocity"] + 1.0 - 0.5 * 8 * 0.25)
    assert make("slippery_ant").observation_space.shape == (27,)
    other = make("slippery_ant", seed=1, setting="paper")
    load_environment_state(other, environment_state(environment))
    one, same = (each.step(np.full(8, -0.5, dtype=np.float32)) for each in (environment, other))
    assert one[0].tolist() == same[0].tolist()
    assert one[1] == same[1]


def test_a_picture_is_permuted_as_a_whole():
    class Picture(Counting):
        observation_space = spaces.Box(0, 255, (2, 3), np.uint8)

        def _seen(self):
            return np.arange(6, dtype=np.uint8).reshape(2, 3)

    order = (5, 3, 1, 4, 2, 0)
    seen, _ = PermutedSensors(Picture(), ShiftSchedule(Listed((order,)), 9)).reset()
    assert (seen.tolist(), seen.dtype) == ([[5, 3, 1], [4, 2, 0]], np.uint8)
