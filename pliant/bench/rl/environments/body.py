"""Changing actuator gain and body mass: what the agent's own body can do."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, final

import gymnasium
import numpy as np

from pliant.bench.rl.environments.schedule import ShiftSchedule
from pliant.bench.rl.environments.simulator import ChangingModel, mujoco
from pliant.bench.streams.base import require
from pliant.errors import NoEffect, NotYetSupported

__all__ = ["ChangingGain", "ChangingMass"]

_LINEAR_GAINS = (int(mujoco.mjtGain.mjGAIN_FIXED), int(mujoco.mjtGain.mjGAIN_AFFINE))
_LINEAR_BIASES = (int(mujoco.mjtBias.mjBIAS_NONE), int(mujoco.mjtBias.mjBIAS_AFFINE))


@final
class ChangingGain(ChangingModel):
    """The strength of the actuators changes, in a MuJoCo environment: worn motors, a low battery, a crossed wire.

    The values are factors on the force that an actuator exerts at a control: 1 is the environment as it is, 0 a dead
    actuator, a negative one pulls the other way. One number is for all actuators; several
    (``Each(Uniform(0.5, 1.5), 8)``) are for one each. Position and velocity servos become weaker or stronger as a
    whole.

    Args, attributes and errors: see :class:`Changing`.

    Raises:
        NoEffect: if the environment has no actuators.
        NotYetSupported: for actuators whose force is not linear in the control, such as muscles.
    """

    quantity: ClassVar[str] = "gain"
    fields: ClassVar[tuple[str, ...]] = ("actuator_gainprm", "actuator_biasprm")
    probe: ClassVar[float] = 0.5

    def _check(self) -> None:
        model = self._model
        if model.nu == 0:
            raise NoEffect(f"ChangingGain: {self.env} has no actuators.")
        linear = np.isin(model.actuator_gaintype, _LINEAR_GAINS) & np.isin(model.actuator_biastype, _LINEAR_BIASES)
        if not linear.all():
            names = ", ".join(model.actuator(int(index)).name or str(index) for index in np.flatnonzero(~linear))
            raise NotYetSupported(
                f"ChangingGain: the force of {names} in {self.env} is not linear in its control; motors, position and "
                f"velocity servos can be changed."
            )
        self._parameters = model.actuator_gainprm.copy(), model.actuator_biasprm.copy()

    def _check_value(self, value: float | Sequence[float]) -> None:
        _per_entry(self, value, self._model.nu, "actuators")

    def _write(self, value: float | Sequence[float]) -> None:
        model = self._model
        factors = _per_entry(self, value, model.nu, "actuators")
        gain, bias = self._parameters
        model.actuator_gainprm[:, :3] = gain[:, :3] * factors[:, None]
        model.actuator_biasprm[:, :3] = bias[:, :3] * factors[:, None]


@final
class ChangingMass(ChangingModel):
    """The masses of bodies change, and their inertias with them, in a MuJoCo environment: a load, another robot.

    The values are factors above zero: 1 is the environment as it is. One number is for all bodies that are named,
    several are for one each. Masses and inertias are scaled alike, as if the bodies were made of something else; and
    what MuJoCo computes from them beforehand is computed anew.

    Args:
        env: What is wrapped.
        schedule: To which values, and when.
        bodies: Names of the bodies that change; None: all.
        seed: As of :class:`Changing`, and so on.
        num_envs: Environments that step together.
        total_steps: Steps of the run.

    Raises:
        NoEffect: if no body with mass can move.
        IllegalConfiguration: as :class:`Changing`; or for a body that is not there.
    """

    quantity: ClassVar[str] = "mass"
    legal: ClassVar[tuple[float, float]] = (1e-6, math.inf)
    fields: ClassVar[tuple[str, ...]] = (
        *("body_mass", "body_inertia", "body_subtreemass", "body_invweight0", "dof_invweight0", "dof_M0"),
        *("tendon_invweight0", "actuator_acc0", "stat.meaninertia", "stat.meanmass"),
    )
    probe: ClassVar[float] = 2.0

    def __init__(
        self,
        env: gymnasium.Env[Any, Any],
        schedule: ShiftSchedule,
        *,
        bodies: Sequence[str] | None = None,
        seed: int = 0,
        num_envs: int = 1,
        total_steps: int | None = None,
    ) -> None:
        self._bodies = bodies
        super().__init__(env, schedule, seed=seed, num_envs=num_envs, total_steps=total_steps, bodies=bodies)

    def _check(self) -> None:
        model = self._model
        names = [model.body(index).name for index in range(model.nbody)]
        chosen = list(range(1, model.nbody))
        if self._bodies is not None:
            for name in self._bodies:
                known = ", ".join(name for name in names[1:] if name)
                require(name in names[1:], self, f"{self.env} has no body {name!r}; it has {known}")
            chosen = [names.index(name) for name in self._bodies]
        self._chosen = np.array(chosen, dtype=np.int64)
        self._masses = model.body_mass.copy(), model.body_inertia.copy()

    def _check_value(self, value: float | Sequence[float]) -> None:
        _per_entry(self, value, len(self._chosen), "bodies")

    def _write(self, value: float | Sequence[float]) -> None:
        model = self._model
        factors = np.ones(model.nbody)
        factors[self._chosen] = _per_entry(self, value, len(self._chosen), "bodies")
        mass, inertia = self._masses
        model.body_mass[:] = mass * factors
        model.body_inertia[:] = inertia * factors[:, None]
        mujoco.mj_setConst(model, mujoco.MjData(model))


def _per_entry(wrapper: ChangingModel, value: float | Sequence[float], size: int, what: str) -> Any:
    factors = np.asarray(value, dtype=np.float64)
    low, high = wrapper.legal
    legal = bool(np.isfinite(factors).all() and (factors >= low).all() and (factors <= high).all())
    require(legal, wrapper, f"{value!r} must be finite and between {low:g} and {high:g}")
    fits = factors.ndim == 0 or factors.shape == (size,)
    require(fits, wrapper, f"a value has {factors.size} numbers for {size} {what}: give one number, or {size}")
    return np.broadcast_to(factors, (size,))
