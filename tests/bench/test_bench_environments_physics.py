"""What the wrappers say of physics, measured in MuJoCo."""

from __future__ import annotations

import copy
import math

import gymnasium
import mujoco
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.envs.mujoco import MujocoEnv

from pliant import IllegalConfiguration, NoEffect, NotYetSupported
from pliant.bench.rl.environments import (
    ChangingFriction,
    ChangingGain,
    ChangingGravity,
    ChangingMass,
    ChangingWind,
    Cycle,
    Each,
    Listed,
    LogUniform,
    ShiftSchedule,
    Uniform,
)

STEP = 0.002
HEAD = f'<mujoco><option timestep="{STEP}" gravity="0 0 -9.81"/><worldbody>'
# A flat box lies on the floor: the floor has friction 1, the box 0.5.
FLOOR = (
    f'{HEAD}<geom type="plane" size="50 50 1" friction="1 0.005 0.0001"/><body pos="0 0 0.05"><freejoint/>'
    '<geom type="box" size="0.2 0.2 0.05" mass="2" friction="0.5 0.005 0.0001"/></body></worldbody></mujoco>'
)
SIDES, MASS = np.array([0.2, 0.4, 0.6]), 0.05
AIR = (
    f'{HEAD}<body pos="0 0 50"><freejoint/><geom type="box" size="{SIDES[0] / 2} {SIDES[1] / 2} {SIDES[2] / 2}" '
    f'mass="{MASS}"/></body></worldbody></mujoco>'
)
FORCE, DAMPING, LOAD = 3.0, 1.5, 0.6
RAIL = (
    f'{HEAD}<body name="cart"><joint name="rail" type="slide" axis="1 0 0" damping="{DAMPING}"/>'
    f'<geom type="sphere" size="0.1" mass="{LOAD}"/></body><body name="wheel" pos="0 5 0">'
    '<joint name="axle" type="hinge" axis="0 0 1"/><geom type="box" size="0.5 0.1 0.1" mass="0.7"/></body></worldbody>'
    f'<actuator><motor joint="rail" gear="{FORCE}"/><motor joint="axle" gear="0.2"/>'
    '<position joint="rail" kp="20" kv="1"/></actuator></mujoco>'
)
MUSCLE = (
    f'{HEAD}<body><joint name="rail" type="slide" axis="1 0 0" range="-1 1"/><geom type="sphere" size="0.1"/></body>'
    '</worldbody><actuator><muscle joint="rail" name="biceps"/></actuator></mujoco>'
)


class Simulated(MujocoEnv):
    """One of the little worlds above as an environment of Gymnasium, one simulation step at a time."""

    def __init__(self, path: str) -> None:
        super().__init__(path, 1, spaces.Box(-np.inf, np.inf, (1,), np.float64))

    def step(self, action):
        self.do_simulation(action, 1)
        return self.data.qpos[:1].copy(), 0.0, False, False, {}

    def reset_model(self):
        self.set_state(self.init_qpos, self.init_qvel)
        return self.data.qpos[:1].copy()


@pytest.fixture
def world(tmp_path):
    def make(xml: str) -> Simulated:
        path = tmp_path / "world.xml"
        path.write_text(xml, encoding="utf-8")
        environment = Simulated(str(path))
        environment.reset(seed=0)
        return environment

    return make


def once(*values) -> ShiftSchedule:
    return ShiftSchedule(Listed(values), every=10**6)


def run(environment, steps: int, action=None):
    nothing = np.zeros(environment.unwrapped.model.nu) if action is None else np.asarray(action)
    for _ in range(steps):
        environment.step(nothing)
    return environment.unwrapped.data


def sliding_distance(environment, speed: float = 2.0) -> float:
    bare = environment.unwrapped
    environment.reset(seed=0)
    run(environment, 50)  # it comes to rest on the floor
    start = bare.data.qpos[0]
    bare.data.qvel[0] = speed
    for _ in range(20_000):
        environment.step(np.zeros(0))
        if abs(bare.data.qvel[0]) < 1e-3:
            break
    else:
        pytest.fail("it slides on and on")
    return bare.data.qpos[0] - start


# friction


@pytest.mark.parametrize("friction", [0.1, 0.4, 1.5])
def test_a_box_slides_as_far_as_its_friction_lets_it(world, friction: float):
    slippery = ChangingFriction(world(FLOOR), once(friction))
    assert sliding_distance(slippery) == pytest.approx(2.0**2 / (2 * friction * 9.81), rel=0.02)


def test_less_friction_of_the_floor_alone_would_change_nothing(world):
    """The larger of two frictions counts: without this, setting all geoms would need no test."""
    bare = world(FLOOR)
    bare.model.geom_friction[0, 0] = 0.02
    assert sliding_distance(bare) == pytest.approx(2.0**2 / (2 * 0.5 * 9.81), rel=0.02)


def test_friction_outlives_a_reset_changes_in_time_and_is_put_back(world):
    bare = world(FLOOR)
    before = bare.model.geom_friction.copy()
    slippery = ChangingFriction(bare, ShiftSchedule(Listed((0.1, 0.4)), every=100))
    run(slippery, 99)
    slippery.reset()
    assert (bare.model.geom_friction[:, 0] == 0.1).all()
    run(slippery, 1)
    slippery.reset()
    assert (bare.model.geom_friction[:, 0] == 0.4).all()
    assert (bare.model.geom_friction[:, 1:] == before[:, 1:]).all()
    slippery.restore()
    assert (bare.model.geom_friction == before).all()
    slippery.adopt()
    slippery.close()
    assert (bare.model.geom_friction == before).all()


@pytest.mark.parametrize("name", ["Ant-v5", "Hopper-v5", "Walker2d-v5"])
def test_every_contact_of_a_robot_has_the_friction(name: str):
    slippery = ChangingFriction(gymnasium.make(name), once(0.07))
    seen = 0
    for _ in range(3):
        slippery.reset(seed=0)
        for _ in range(40):
            _, _, terminated, _, _ = slippery.step(slippery.action_space.sample() * 0.3)
            data = slippery.unwrapped.data
            seen += data.ncon
            assert all(data.contact[index].friction[0] == 0.07 for index in range(data.ncon))
            if terminated:
                break
    assert seen > 10


def test_pairs_with_a_friction_of_their_own_follow(world):
    pair = '<contact><pair geom1="floor" geom2="box" friction="1.2 1.2 0.005 0.0001 0.0001"/></contact>'
    xml = FLOOR.replace('type="plane"', 'type="plane" name="floor"').replace('type="box"', 'type="box" name="box"')
    slippery = ChangingFriction(world(xml.replace("</worldbody>", f"</worldbody>{pair}")), once(0.2))
    assert sliding_distance(slippery) == pytest.approx(2.0**2 / (2 * 0.2 * 9.81), rel=0.02)


# gravity


def test_what_falls_falls_as_gravity_says(world):
    falling = ChangingGravity(world(AIR), ShiftSchedule(Listed((3.7, 24.8)), every=500, takes_effect="at_once"))
    data = falling.unwrapped.data
    falling.reset()
    start = data.qpos[2]
    run(falling, 500)  # under 3.7 for a second: that of Mars
    assert start - data.qpos[2] == pytest.approx(3.7 / 2, rel=0.01)
    start, speed = data.qpos[2], data.qvel[2]
    run(falling, 250)  # under 24.8 for half a second: that of Jupiter
    assert start - data.qpos[2] == pytest.approx(-speed * 0.5 + 24.8 * 0.5**2 / 2, rel=0.01)
    falling.close()
    assert falling.unwrapped.model.opt.gravity.tolist() == [0, 0, -9.81]


def test_gravity_keeps_its_direction(world):
    tilted = world(AIR.replace('gravity="0 0 -9.81"', 'gravity="3 0 -4"'))
    ChangingGravity(tilted, once(10.0))
    assert tilted.model.opt.gravity.tolist() == pytest.approx([6, 0, -8])


# wind


@pytest.mark.parametrize("speed", [8.0, -8.0])
def test_wind_pushes_as_the_drag_of_the_box_says(world, speed: float):
    windy = ChangingWind(world(AIR), once(speed), viscosity=0.01)
    windy.reset()
    data = run(windy, 1)
    drag = 0.5 * 1.2 * SIDES[1] * SIDES[2] * speed * abs(speed) + 3 * math.pi * SIDES.mean() * 0.01 * speed
    assert data.qvel[0] / STEP == pytest.approx(drag / MASS, rel=1e-3)
    assert data.qvel[1] == pytest.approx(0, abs=1e-9)


def test_without_a_medium_wind_would_do_nothing_and_the_wrapper_brings_air(world):
    bare = world(AIR)
    bare.model.opt.wind[:] = (8, 0, 0)
    assert run(bare, 10).qvel[0] == 0
    bare.model.opt.wind[:] = 0
    windy = ChangingWind(bare, once(8.0), direction=(0, -3, 0))
    assert (bare.model.opt.density, bare.model.opt.viscosity) == (1.2, 1.8e-5)
    windy.reset()
    assert run(windy, 10).qvel[1] < -0.01
    windy.close()
    assert (bare.model.opt.density, bare.model.opt.viscosity, bare.model.opt.wind.any()) == (0, 0, False)


def test_water_stays_water():
    swimmer = gymnasium.make("Swimmer-v5")
    own = swimmer.unwrapped.model.opt.density
    ChangingWind(swimmer, once(0.1))
    assert own == swimmer.unwrapped.model.opt.density == 4000


# actuators and masses


@pytest.mark.parametrize("factor", [0.5, 2.0, -1.0])
def test_motors_and_servos_exert_the_factor_of_their_force(world, factor: float):
    driven = ChangingGain(world(RAIL), once(factor)).unwrapped
    driven.data.qpos[0], driven.data.qvel[0], driven.data.ctrl[:] = 0.3, 0.7, (0.8, 1.0, 0.5)
    mujoco.mj_forward(driven.model, driven.data)
    assert driven.data.actuator_force.tolist() == pytest.approx([0.8 * factor, factor, (20 * 0.2 - 0.7) * factor])


def test_terminal_speed_follows_gain_and_not_mass_and_mass_sets_the_time_to_it(world):
    plain = RAIL.replace('<position joint="rail" kp="20" kv="1"/>', "")
    for factor, load in ((0.5, 1.0), (1.0, 2.0), (1.5, 0.5)):
        moving = ChangingMass(ChangingGain(world(plain), once(factor)), once(load))
        moving.reset()
        final, time = factor * FORCE / DAMPING, load * LOAD / DAMPING
        data = run(moving, 200, [1, 1])
        assert data.qvel[0] == pytest.approx(final * (1 - math.exp(-200 * STEP / time)), rel=0.01)
        assert run(moving, 2000, [1, 1]).qvel[0] == pytest.approx(final, rel=0.01)
        # the wheel turns freely: its inertia grows with its mass
        inertia = load * 0.7 * (1.0**2 + 0.2**2) / 12
        assert data.qacc[1] == pytest.approx(factor * 0.2 / inertia, rel=0.01)


def test_each_actuator_and_body_may_have_its_own_factor(world):
    moving = ChangingMass(ChangingGain(world(RAIL), once((0.0, 1.0, 0.0))), once((3.0,)), bodies=["wheel"])
    moving.reset()
    data = run(moving, 5, [1, 1, 1])
    assert data.qvel[0] == 0
    assert data.qacc[1] == pytest.approx(0.2 / (3 * 0.7 * (1.0**2 + 0.2**2) / 12), rel=0.01)
    assert moving.unwrapped.model.body("cart").mass[0] == LOAD


def trajectory(environment, steps: int = 40) -> np.ndarray:
    random = np.random.default_rng(0)
    environment.reset(seed=3)
    bare = environment.unwrapped
    return np.array(
        [environment.step(random.uniform(-1, 1, bare.model.nu))[0] for _ in range(steps)],
    )


@pytest.mark.parametrize(
    ("wrap", "values"),
    [
        (ChangingFriction, LogUniform(0.02, 2)),
        (ChangingGravity, Uniform(5, 15)),
        (ChangingWind, Uniform(5, 20)),
        (ChangingGain, Each(Uniform(0.2, 1.8), 3)),
        (ChangingMass, LogUniform(0.3, 0.6)),
    ],
)
def test_a_restored_robot_moves_as_one_that_was_never_changed(wrap, values):
    plain = trajectory(gymnasium.make("Hopper-v5", terminate_when_unhealthy=False))
    changed = wrap(gymnasium.make("Hopper-v5", terminate_when_unhealthy=False), ShiftSchedule(values, every=10**6))
    assert not np.array_equal(trajectory(changed), plain)
    copied = copy.deepcopy(changed)  # Gymnasium makes the simulator of a copy anew
    assert np.array_equal(trajectory(copied), trajectory(changed))
    changed.restore()
    assert np.array_equal(trajectory(changed), plain)


# what cannot be


@pytest.mark.parametrize(
    ("wrap", "name", "says"),
    [
        (ChangingFriction, "CartPole-v1", "no MuJoCo model"),
        (ChangingFriction, "Swimmer-v5", "nothing can touch anything"),
        (ChangingFriction, "InvertedPendulum-v5", "nothing can touch anything"),
        (ChangingGravity, "Swimmer-v5", "does not depend on gravity"),
        (ChangingGain, "MountainCar-v0", "no MuJoCo model"),
    ],
)
def test_an_environment_without_the_quantity_is_refused(wrap, name: str, says: str):
    with pytest.raises(NoEffect, match=says):
        wrap(gymnasium.make(name), once(0.5))


def test_a_world_without_gravity_or_actuators_or_with_muscles_is_refused(world):
    with pytest.raises(NoEffect, match="has no gravity"):
        ChangingGravity(world(AIR.replace("-9.81", "0")), once(1.0))
    with pytest.raises(NoEffect, match="has no actuators"):
        ChangingGain(world(AIR), once(1.0))
    with pytest.raises(NotYetSupported, match="biceps"):
        ChangingGain(world(MUSCLE), once(1.0))


@pytest.mark.parametrize(
    ("wrap", "values", "says"),
    [
        (ChangingFriction, Uniform(-0.5, 1.0), "between 1e-05 and inf"),
        (ChangingFriction, Listed((0.5, float("nan"))), "finite"),
        (ChangingGravity, Cycle((9.81, -9.81)), "gravity must be"),
        (ChangingMass, Uniform(0.0, 1.0), "mass must be"),
        (ChangingGain, Listed(((1.0, 1.0, 1.0), (1.0, 1.0))), "2 numbers for 3 actuators"),
        (ChangingMass, Each(Uniform(0.5, 1.0), 3), "3 numbers for 4 bodies"),
    ],
)
def test_values_that_cannot_be_are_refused_at_the_start(wrap, values, says: str):
    with pytest.raises(IllegalConfiguration, match=says):
        wrap(gymnasium.make("Hopper-v5"), ShiftSchedule(values, every=10))


def test_other_arguments_that_cannot_be(world):
    with pytest.raises(IllegalConfiguration, match="without a medium"):
        ChangingWind(world(AIR), once(1.0), density=0.0)
    with pytest.raises(IllegalConfiguration, match="direction"):
        ChangingWind(world(AIR), once(1.0), direction=(0, 0, 0))
    with pytest.raises(IllegalConfiguration, match=r"no body 'tail'; it has cart, wheel"):
        ChangingMass(world(RAIL), once(2.0), bodies=["tail"])
    with pytest.raises(IllegalConfiguration, match="already wrapped by a ChangingMass"):
        ChangingMass(ChangingMass(world(RAIL), once(2.0)), once(0.5))
    with pytest.raises(IllegalConfiguration, match="nothing would ever change"):
        ChangingGravity(world(AIR), ShiftSchedule(Uniform(1, 2), every=500), total_steps=500)
