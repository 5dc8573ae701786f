"""Changing gravity and wind: what pulls and pushes everything."""

from __future__ import annotations

import math
from typing import Any, ClassVar, final

import gymnasium
import numpy as np

from pliant.bench.rl.environments.schedule import ShiftSchedule
from pliant.bench.rl.environments.simulator import ChangingModel
from pliant.bench.streams.base import require
from pliant.errors import NoEffect

__all__ = ["ChangingGravity", "ChangingWind"]

AIR = {"density": 1.2, "viscosity": 1.8e-5}
"""At 20 degrees Celsius: kg/m^3 and kg/(m s)."""


@final
class ChangingGravity(ChangingModel):
    r"""The strength of gravity changes, in a MuJoCo environment; its direction stays.

    The values are accelerations in m/s², 0 or more; Earth has 9.81. What falls freely for a time :math:`t` falls
    :math:`g t^2 / 2`.

    Args, attributes and errors: see :class:`Changing`.

    Raises:
        NoEffect: if the environment has no gravity, or none of its bodies can follow it.
    """

    quantity: ClassVar[str] = "gravity"
    legal: ClassVar[tuple[float, float]] = (0.0, math.inf)
    fields: ClassVar[tuple[str, ...]] = ("opt.gravity",)
    probe: ClassVar[float] = 1.0

    def _check(self) -> None:
        strength = float(np.linalg.norm(self._model.opt.gravity))
        if strength == 0:
            raise NoEffect(f"ChangingGravity: {self.env} has no gravity, so that there is no direction to keep.")
        self._down = self._model.opt.gravity / strength

    def _write(self, value: float) -> None:
        self._model.opt.gravity[:] = value * self._down


@final
class ChangingWind(ChangingModel):
    r"""A wind comes up and changes, in a MuJoCo environment.

    Wind acts through the medium: in the vacuum that most environments are in (density 0), it would do nothing. So the
    medium becomes air, unless the environment has one of its own, as Swimmer has, or you name one; this brings drag
    also where no wind blows. On a box of sides :math:`b` and mass :math:`m` at rest, a wind along the first side
    accelerates by :math:`(\rho\, b_2 b_3 w|w| / 2 + \pi \beta\, (b_1 + b_2 + b_3)\, w) / m`.

    The values are speeds in m/s along ``direction``; a negative one blows the other way.

    Args:
        env: What is wrapped.
        schedule: To which values, and when.
        direction: Of the wind, of any length.
        density: :math:`\rho` of the medium in kg/m³; None: the environment's own, or 1.2 (air) if that is 0.
        viscosity: :math:`\beta` in kg/(m s); None: the environment's own with its own density, else 1.8e-5 (air).
        seed: As of :class:`Changing`, and so on.
        num_envs: Environments that step together.
        total_steps: Steps of the run.

    Raises:
        NoEffect: if nothing can be moved by wind.
        IllegalConfiguration: as :class:`Changing`; or if the density is not above zero.

    Source: MuJoCo's documentation, "Fluid forces", inertia model.
    """

    quantity: ClassVar[str] = "wind"
    fields: ClassVar[tuple[str, ...]] = ("opt.wind", "opt.density", "opt.viscosity")
    probe: ClassVar[float] = 10.0

    def __init__(
        self,
        env: gymnasium.Env[Any, Any],
        schedule: ShiftSchedule,
        *,
        direction: tuple[float, float, float] = (1.0, 0.0, 0.0),
        density: float | None = None,
        viscosity: float | None = None,
        seed: int = 0,
        num_envs: int = 1,
        total_steps: int | None = None,
    ) -> None:
        length = math.hypot(*direction)
        require(0 < length < math.inf, self, f"direction={direction!r} must have a length above zero")
        usable = density is None or 0 < density < math.inf
        require(usable, self, f"density={density!r} must be above zero: without a medium, wind does nothing")
        usable = viscosity is None or 0 <= viscosity < math.inf
        require(usable, self, f"viscosity={viscosity!r} must be zero or more")
        self._direction = np.asarray(direction) / length
        self._medium = density, viscosity
        more = {"direction": direction, "density": density, "viscosity": viscosity}
        super().__init__(env, schedule, seed=seed, num_envs=num_envs, total_steps=total_steps, **more)

    def _check(self) -> None:
        option = self._model.opt
        density, viscosity = self._medium
        own = option.density > 0 and density is None
        if density is None:
            density = option.density if own else AIR["density"]
        if viscosity is None:
            viscosity = option.viscosity if own else AIR["viscosity"]
        self._medium = float(density), float(viscosity)

    def _write(self, value: float) -> None:
        option = self._model.opt
        option.wind[:] = value * self._direction
        option.density, option.viscosity = self._medium
