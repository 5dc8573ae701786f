"""What the wrappers of MuJoCo environments share: fields of the model, and whether they matter."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from pliant.bench.rl.environments.changing import Changing
from pliant.bench.streams.base import generator
from pliant.errors import IllegalConfiguration, NoEffect

__all__ = ["ChangingModel", "mujoco", "simulator"]

try:
    import mujoco  # type: ignore[import-untyped]
except ImportError as error:
    raise IllegalConfiguration(
        f"this environment needs mujoco, which cannot be imported ({error}): pip install 'pliant[rl]'."
    ) from error


def simulator(environment: Any, wanted_by: str) -> Any:
    """Return the ``MjModel`` of an environment.

    Args:
        environment: Of Gymnasium, wrapped or not.
        wanted_by: Who asks, for the message.

    Raises:
        NoEffect: if it has none.
    """
    model = getattr(environment.unwrapped, "model", None)
    if not isinstance(model, mujoco.MjModel):
        raise NoEffect(
            f"{wanted_by}: {environment} has no MuJoCo model, so there is nothing to change; wrap a MuJoCo environment "
            f"such as Ant-v5, or use ChangingParameters for classic control."
        )
    return model


class ChangingModel(Changing):
    """Base of the wrappers that change fields of the MuJoCo model; a subclass names them.

    ``reset`` of an environment leaves the model as it is, so that a change lasts until the next one; and models are
    never shared between environments.
    """

    fields: ClassVar[tuple[str, ...]]
    """Names of what is changed, and put back, such as ``opt.gravity``."""

    probe: ClassVar[float]
    """A value that the environment does not have, to see whether it makes a difference."""

    @property
    def _model(self) -> Any:
        return simulator(self.env, type(self).__name__)

    def _read(self) -> dict[str, Any]:
        self._check()
        original = self._fields()
        before = self._acceleration()
        self._write(self.probe)
        after = self._acceleration()
        self._put_back(original)
        if np.array_equal(before, after):
            raise NoEffect(
                f"{type(self).__name__}: {self.env} does not depend on {self.quantity}: its accelerations are the same "
                f"with another one; choose another environment or quantity."
            )
        return original

    def _check(self) -> None:
        """Refuse an environment that cannot be changed, before anything is tried."""

    def _fields(self) -> dict[str, Any]:
        return {name: np.copy(self._get(name)) for name in self.fields}

    def _get(self, name: str) -> Any:
        found = self._model
        for part in name.split("."):
            found = getattr(found, part)
        return found

    def _set(self, name: str, value: Any) -> None:
        owner, _, last = name.rpartition(".")
        found = self._get(owner) if owner else self._model
        if isinstance(getattr(found, last), np.ndarray):
            getattr(found, last)[...] = value
        else:
            setattr(found, last, value)

    def _put_back(self, original: dict[str, Any]) -> None:
        for name, value in original.items():
            self._set(name, value if value.ndim else value.item())

    def _acceleration(self) -> Any:
        """Accelerations in a random state near the first one, under random controls; nothing else sees the state."""
        model, random = self._model, generator("effect of a change")
        data = mujoco.MjData(model)
        data.qvel[:] = random.standard_normal(model.nv)
        data.ctrl[:] = random.uniform(-1.0, 1.0, model.nu)
        mujoco.mj_forward(model, data)
        return data.qacc.copy()
