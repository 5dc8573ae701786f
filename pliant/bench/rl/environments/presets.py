"""Changing environments by name: as published, and small enough for two cores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import Any, final

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs

from pliant.bench.rl.environments.changing import Changing
from pliant.bench.rl.environments.parameters import Together
from pliant.bench.rl.environments.schedule import ShiftSchedule
from pliant.bench.rl.environments.values import Choice, Cycle, Each, LogUniform, Permutations, Uniform, Values
from pliant.bench.streams.base import generator
from pliant.errors import IllegalConfiguration

__all__ = ["ENVIRONMENTS", "Preset", "ZeroPadded", "make"]


@final
@dataclass(frozen=True)
class Preset:
    """What :func:`make` makes under a name.

    Attributes:
        ids: the environment of Gymnasium, or several that follow each other.
        wrap: name of the wrapper that changes it.
        schedule: of the mini setting.
        total_steps: environment steps of a run with the mini setting.
        options: of the environment, in both settings.
        paper: the published schedule, where there is one; its runs have ten phases.
        zeros: numbers of the published observation that were always 0, and are not there any more.
        extra: further arguments of the wrapper.
    """

    ids: tuple[str, ...]
    wrap: str
    schedule: ShiftSchedule
    total_steps: int
    options: Mapping[str, Any] = field(default_factory=dict)
    paper: ShiftSchedule | None = None
    zeros: int = 0
    extra: Mapping[str, Any] = field(default_factory=dict)


@final
class ZeroPadded(gymnasium.ObservationWrapper[Any, Any, Any], RecordConstructorArgs):
    """Observations followed by zeros, so that a network has as many inputs as it had in a published setting.

    How many inputs there are decides how large the first weights are at the beginning.

    Args:
        env: With a Box of one dimension.
        zeros: How many to append.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], zeros: int) -> None:
        RecordConstructorArgs.__init__(self, zeros=zeros)
        super().__init__(env)
        space = env.observation_space
        assert isinstance(space, spaces.Box)
        assert space.dtype is not None
        self._zeros = np.zeros(zeros, dtype=space.dtype)
        self.observation_space = spaces.Box(
            np.concatenate([space.low, self._zeros]), np.concatenate([space.high, self._zeros]), dtype=space.dtype.type
        )

    def observation(self, observation: Any) -> Any:
        """The observation and the zeros."""
        return np.concatenate([observation, self._zeros])


_SLIPPERY = LogUniform(0.02, 2.0)
_PUBLISHED = ShiftSchedule(_SLIPPERY, every=2_000_000, takes_effect="episode_end", counted_from="change")
_MINI = 50_000
# Ant-v3 of gym 0.23 on MuJoCo 2.1: contact forces are in the observation and in the reward, and always 0.
_ANT = {"include_cfrc_ext_in_observation": False, "contact_cost_weight": 0.0}


def _mujoco(environment: str, wrap: str, values: Values, *, starts_unchanged: bool = False, **more: Any) -> Preset:
    schedule = ShiftSchedule(values, every=_MINI, starts_unchanged=starts_unchanged)
    return Preset((environment,), wrap, schedule, 10 * _MINI, **more)


ENVIRONMENTS: dict[str, Preset] = {
    "slippery_ant": _mujoco("Ant-v5", "ChangingFriction", _SLIPPERY, options=_ANT, paper=_PUBLISHED, zeros=84),
    "slippery_hopper": _mujoco("Hopper-v5", "ChangingFriction", _SLIPPERY, paper=_PUBLISHED),
    "slippery_walker": _mujoco("Walker2d-v5", "ChangingFriction", _SLIPPERY, paper=_PUBLISHED),
    "changing_gravity": _mujoco("Hopper-v5", "ChangingGravity", Uniform(5.0, 15.0)),
    "changing_wind": _mujoco("Hopper-v5", "ChangingWind", Uniform(-20.0, 20.0)),
    "changing_gain": _mujoco("Walker2d-v5", "ChangingGain", Each(Uniform(0.3, 1.7), 6), starts_unchanged=True),
    "changing_mass": _mujoco("Hopper-v5", "ChangingMass", LogUniform(0.5, 2.0), starts_unchanged=True),
    "permuted_sensors": Preset(("Pendulum-v1",), "PermutedSensors", ShiftSchedule(Permutations(3), 20_000), 200_000),
    "permuted_hopper": _mujoco("Hopper-v5", "PermutedSensors", Permutations(11)),
    "changing_cart_pole": Preset(
        ("CartPole-v1",),
        "ChangingParameters",
        ShiftSchedule(
            Together(
                {
                    **{"length": LogUniform(0.25, 1.5), "masspole": LogUniform(0.05, 0.5)},
                    **{"force_mag": Uniform(6.0, 14.0), "action_sign": Choice((1.0, -1.0))},
                }
            ),
            10_000,
        ),
        200_000,
    ),
    "changing_acrobot": Preset(
        ("Acrobot-v1",),
        "ChangingParameters",
        ShiftSchedule(
            Together(
                {
                    **{"LINK_LENGTH_1": Uniform(0.6, 1.2), "LINK_MASS_1": Uniform(0.5, 1.5)},
                    **{"LINK_MASS_2": Uniform(0.5, 1.5), "action_sign": Choice((1.0, -1.0))},
                }
            ),
            20_000,
        ),
        200_000,
    ),
    "changing_pendulum": Preset(
        ("Pendulum-v1",),
        "ChangingParameters",
        ShiftSchedule(
            Together(
                {
                    **{"l": Uniform(0.7, 1.3), "m": Uniform(0.7, 1.3), "target_angle": Cycle((0.0, np.pi))},
                    **{"action_sign": Choice((1.0, -1.0))},
                }
            ),
            10_000,
        ),
        200_000,
    ),
    "changing_mountain_car": Preset(
        ("MountainCarContinuous-v0",),
        "ChangingParameters",
        ShiftSchedule(
            Together({"goal_position": Cycle((0.45, -1.1)), "action_sign": Choice((1.0, -1.0))}),
            20_000,
        ),
        200_000,
    ),
    "classic_tasks": Preset(
        ("CartPole-v1", "Acrobot-v1", "Pendulum-v1"),
        "SwitchingTasks",
        ShiftSchedule(Cycle((0, 1, 2)), 20_000),
        360_000,
        extra={"reward_scales": (1.0, 1.0, 1 / 16)},
    ),
}
"""What can be made, by name."""


def make(
    name: str,
    seed: int = 0,
    *,
    setting: str = "mini",
    index: int = 0,
    num_envs: int = 1,
    every: int | None = None,
    schedule: ShiftSchedule | None = None,
    total_steps: int | None = None,
    **options: Any,
) -> gymnasium.Env[Any, Any]:
    """Make a changing environment.

    Args:
        name: One of :data:`ENVIRONMENTS`.
        seed: Of the changes, and of where episodes begin: two environments with the same arguments are the same.
        setting: ``"mini"``, or ``"paper"`` where one is published (``slippery_ant``; and its schedule on Hopper and
            Walker2d, which the paper leaves alone).
        index: Which of several environments that step together; they change alike and begin elsewhere.
        num_envs: How many step together.
        every: Another interval between changes.
        schedule: Another schedule; not with ``every``.
        total_steps: Environment steps of the run, summed over all environments; a schedule that does not fit is an
            error. None: not checked, but for the settings' own.
        **options: Of the environment (``gymnasium.make``), over those of the setting.

    Returns:
        The environment of Gymnasium in its wrappers, the changing one outermost.

    Raises:
        IllegalConfiguration: for a name or setting that does not exist, or a schedule that does not fit.

    >>> environment = make("changing_cart_pole", seed=1, every=100, total_steps=1000)
    >>> observation, info = environment.reset()
    >>> info["shift"], sorted(environment.get_wrapper_attr("value"))
    (0, ['action_sign', 'force_mag', 'length', 'masspole'])
    """
    preset = ENVIRONMENTS.get(name)
    if preset is None:
        raise IllegalConfiguration(f"there is no environment {name!r}; there are {', '.join(sorted(ENVIRONMENTS))}.")
    if setting not in ("mini", "paper"):
        raise IllegalConfiguration(f"there is no setting {setting!r}; there are 'mini' and 'paper'.")
    if setting == "paper" and preset.paper is None:
        raise IllegalConfiguration(f"{name} has no published setting: setting='mini'.")
    if schedule is not None and every is not None:
        raise IllegalConfiguration("give either every or schedule.")
    published = preset.paper if setting == "paper" else None
    chosen = schedule or published or preset.schedule
    if every is not None:
        chosen = replace(chosen, every=every)
    if total_steps is None and schedule is None and every is None:
        total_steps = 10 * published.every if published else preset.total_steps
    given = {**preset.options, **options}
    made = [_made(each, given, seed, index) for each in preset.ids]
    inner: Any = made[0] if len(made) == 1 else made
    if published and preset.zeros and not set(options) & set(preset.options):
        inner = ZeroPadded(inner, preset.zeros)
    # by name, because most wrappers need MuJoCo, and classic control does not
    wrap: type[Changing] = getattr(import_module("pliant.bench.rl.environments"), preset.wrap)
    return wrap(inner, chosen, seed=seed, num_envs=num_envs, total_steps=total_steps, **preset.extra)


def _made(environment: str, options: Mapping[str, Any], seed: int, index: int) -> gymnasium.Env[Any, Any]:
    made: gymnasium.Env[Any, Any] = gymnasium.make(environment, disable_env_checker=True, **options)
    # From here on, a reset without a seed goes on with this randomness.
    made.reset(seed=int(generator("environment starts", seed, index).integers(2**31)))
    return made
