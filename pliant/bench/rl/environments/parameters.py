"""Changing the dynamics and goals of classic control: lengths, masses, forces, signs, places to reach."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, final

import numpy as np
from gymnasium import spaces
from gymnasium.envs.classic_control import (
    AcrobotEnv,
    CartPoleEnv,
    Continuous_MountainCarEnv,
    MountainCarEnv,
    PendulumEnv,
)

from pliant.bench.rl.environments.changing import Changing
from pliant.bench.rl.environments.values import Values
from pliant.bench.streams.base import require
from pliant.errors import NoEffect

__all__ = ["PARAMETERS", "ChangingParameters", "Together"]

_ABOVE, _ANY = (1e-6, math.inf), (-math.inf, math.inf)

PARAMETERS: dict[type, dict[str, tuple[float, float]]] = {
    CartPoleEnv: {
        **{"gravity": (0.0, math.inf), "masscart": _ABOVE, "masspole": _ABOVE, "length": _ABOVE, "force_mag": _ANY},
        **{"tau": _ABOVE, "action_sign": (-1.0, 1.0)},
    },
    AcrobotEnv: {
        **{"LINK_LENGTH_1": _ABOVE, "LINK_LENGTH_2": _ABOVE, "LINK_MASS_1": _ABOVE, "LINK_MASS_2": _ABOVE},
        **{"LINK_MOI": _ABOVE, "action_sign": (-1.0, 1.0)},
    },
    PendulumEnv: {
        **{"g": (0.0, math.inf), "m": _ABOVE, "l": _ABOVE, "target_angle": _ANY, "action_sign": (-1.0, 1.0)},
    },
    MountainCarEnv: {
        **{"force": _ANY, "gravity": (0.0, math.inf), "goal_position": (-1.2, 0.6), "action_sign": (-1.0, 1.0)},
    },
    Continuous_MountainCarEnv: {"power": _ANY, "goal_position": (-1.2, 0.6), "action_sign": (-1.0, 1.0)},
}
"""What can be changed in which environment, and between which numbers."""

_VALLEY = -math.pi / 6
_REACHED = 100.0  # the reward of MountainCarContinuous at its goal


@final
@dataclass(frozen=True)
class Together(Values):
    """Several named quantities that change at the same time, each by a sequence of its own.

    Attributes:
        parts: from names to sequences of numbers.

    >>> from pliant.bench.rl.environments.values import Cycle
    >>> Together({"length": Cycle((0.5, 1.0)), "force_mag": Cycle((10.0, -10.0))}).value(1, seed=0)
    {'length': 1.0, 'force_mag': -10.0}
    """

    parts: Mapping[str, Values]

    def __post_init__(self) -> None:
        """Refuse what is out of range."""
        require(bool(self.parts), self, "name at least one quantity")
        for name, values in self.parts.items():
            usable = isinstance(values, Values) and values.bounds is not None
            require(usable, self, f"{name}={values!r} is no sequence of numbers")

    def value(self, shift: int, seed: int, purpose: str = "") -> dict[str, float]:
        """One number for each name."""
        return {name: values.value(shift, seed, f"{purpose} {name}") for name, values in self.parts.items()}

    @property
    def num_values(self) -> int | None:
        """Of the longest."""
        given = [values.num_values for values in self.parts.values() if values.num_values is not None]
        return max(given) if given else None

    @property
    def ends(self) -> bool:
        """Whether all end."""
        return all(values.ends for values in self.parts.values())


@final
class ChangingParameters(Changing):
    r"""The dynamics or the goal of an environment of classic control change; no MuJoCo is needed.

    The values are mappings from names to numbers (``Together``), of which :data:`PARAMETERS` lists those of each
    environment; what a value does not name is as it was at first. What follows from a changed number follows: the total
    mass of CartPole, the centres of mass of Acrobot's links. Besides the environments' own,

    * ``action_sign`` -1 turns every action into its opposite (left is right),
    * ``target_angle`` is where Pendulum shall stand, 0 upright and :math:`\pi` hanging: its reward is
      :math:`-(\angle(\theta - \theta^*)^2 + 0.1\, \dot\theta^2 + 0.001\, u^2)`,
    * a ``goal_position`` of MountainCar to the left of the valley's lowest point (-0.52) is reached from the right.

    Args, attributes and errors: see :class:`Changing`.

    Raises:
        NoEffect: if the environment is none of these, or has no quantity of that name.
        IllegalConfiguration: as :class:`Changing`; or for a number that the quantity cannot have.
    """

    quantity: ClassVar[str] = "parameters"

    def _read(self) -> dict[str, Any]:
        bare = self.env.unwrapped
        self._known = next((known for kind, known in PARAMETERS.items() if isinstance(bare, kind)), {})
        if not self._known:
            names = ", ".join(kind.__name__ for kind in PARAMETERS)
            raise NoEffect(f"ChangingParameters: {self.env} is no environment of classic control; these are {names}.")
        self._sign, self._target = 1.0, 0.0
        self._left: float | None = None
        own = [name for name in self._known if name not in ("action_sign", "target_angle")]
        centres = ["LINK_COM_POS_1", "LINK_COM_POS_2"] if isinstance(bare, AcrobotEnv) else []
        return {name: getattr(bare, name) for name in (*own, *centres)}

    def _check_value(self, value: Any) -> None:
        values = self.schedule.values
        if isinstance(values, Together):  # the bounds of each part, as any number between them can come
            for name, part in values.parts.items():
                for number in (*(part.bounds or ()), *part.listed):
                    self._check(name, number)
        require(isinstance(value, Mapping), self, f"the value {value!r} must be a mapping from names to numbers")
        for name, number in value.items():
            self._check(name, number)

    def _check(self, name: str, number: float) -> None:
        if name not in self._known:
            raise NoEffect(
                f"ChangingParameters: {self.env} has no {name!r} to change; it has {', '.join(sorted(self._known))}."
            )
        low, high = self._known[name]
        fits = math.isfinite(number) and low <= number <= high
        require(fits, self, f"{name}={number!r} must be finite and between {low:g} and {high:g}")
        require(name != "action_sign" or number in (-1, 1), self, f"action_sign={number!r} must be 1 or -1")

    def _put_back(self, original: dict[str, Any]) -> None:
        self._write({})

    def _write(self, value: Mapping[str, float]) -> None:
        bare, all_of_it = self.env.unwrapped, {**self._original, **value}
        self._sign = float(all_of_it.pop("action_sign", 1.0))
        self._target = float(all_of_it.pop("target_angle", 0.0))
        self._left = None
        if "goal_position" in all_of_it and all_of_it["goal_position"] < _VALLEY:
            self._left = float(all_of_it["goal_position"])
            all_of_it["goal_position"] = math.inf  # the environment looks to the right of it, where nothing is
        for name, number in all_of_it.items():
            setattr(bare, name, number)
        if isinstance(bare, CartPoleEnv):
            bare.total_mass = bare.masspole + bare.masscart
            bare.polemass_length = bare.masspole * bare.length
        if isinstance(bare, AcrobotEnv):
            for link in ("1", "2"):
                longer = all_of_it[f"LINK_LENGTH_{link}"] / self._original[f"LINK_LENGTH_{link}"]
                setattr(bare, f"LINK_COM_POS_{link}", self._original[f"LINK_COM_POS_{link}"] * longer)

    def _opposite(self, action: Any) -> Any:
        space = self.env.action_space
        if isinstance(space, spaces.Discrete):
            return 2 * int(space.start) + int(space.n) - 1 - action
        return -action

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """One step under the present dynamics, towards the present goal."""
        bare: Any = self.env.unwrapped
        target, left, before = self._target, self._left, bare.state
        if self._sign < 0:
            action = self._opposite(action)
        observation, reward, terminated, truncated, info = super().step(action)
        if target:
            angle = before[0]
            reward += _angle(angle) ** 2 - _angle(angle - target) ** 2
        if left is not None and bare.state[0] <= left:
            terminated = True
            if isinstance(bare, Continuous_MountainCarEnv):
                reward += _REACHED
        return observation, reward, terminated, truncated, info


def _angle(angle: float) -> float:
    """The same angle in [-pi, pi)."""
    return float((angle + np.pi) % (2 * np.pi) - np.pi)
