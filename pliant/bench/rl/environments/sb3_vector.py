"""Vectorised changing environments as Stable-Baselines3 wants them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pliant.bench.rl.environments.presets import make
from pliant.bench.rl.environments.vector import ChangingVector
from pliant.errors import IllegalConfiguration

__all__ = ["SB3Vector", "make_vector"]

try:
    from stable_baselines3.common.monitor import Monitor
    from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv
except ImportError as error:
    raise IllegalConfiguration(
        f"vectors of environments need stable-baselines3, which cannot be imported ({error}): pip install 'pliant[rl]'."
    ) from error


class SB3Vector(VecEnv):
    """A :class:`ChangingVector` as a ``VecEnv`` of Stable-Baselines3.

    Nothing is lost on the way: ``infos[i]`` has ``shift``, at the end of an episode ``terminal_observation``,
    ``TimeLimit.truncated`` and the ``episode`` (return ``r``, length ``l``) that agents log, so that no ``VecMonitor``
    is needed. All instances are one object, ``environment``: ``get_attr`` and ``env_method`` ask it once and repeat the
    answer.

    Args:
        environment: What is wrapped.

    >>> from pliant.bench.rl.environments.reach import ShiftingReach
    >>> vector = SB3Vector(ShiftingReach(2, every=100, seed=0))
    >>> vector.reset().shape, vector.step(np.array([0, 1]))[3][0]["shift"]
    ((2, 32), 0)
    """

    def __init__(self, environment: ChangingVector) -> None:
        self.environment = environment
        self._actions: NDArray[Any] | None = None
        self._began = time.time()
        super().__init__(environment.num_envs, environment.single_observation_space, environment.single_action_space)

    def reset(self) -> NDArray[np.float32]:
        """Begin an episode in every instance."""
        observations, info = self.environment.reset(seed=self._seeds[0])
        self.reset_infos = [{"shift": int(shift)} for shift in info["shift"]]
        self._reset_seeds()
        self._reset_options()
        return observations

    def step_async(self, actions: NDArray[Any]) -> None:
        """Remember what to do."""
        self._actions = actions

    def step_wait(self) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_], list[dict[str, Any]]]:
        """Do it."""
        assert self._actions is not None, "step_async() comes first"
        observations, rewards, terminated, truncated, info = self.environment.step(self._actions)
        done = terminated | truncated
        infos: list[dict[str, Any]] = [
            {"shift": shift, "TimeLimit.truncated": cut}
            for shift, cut in zip(info["shift"].tolist(), truncated.tolist(), strict=True)
        ]
        for index in np.flatnonzero(done):
            infos[index]["terminal_observation"] = info["final_obs"][index]
            infos[index]["episode"] = {
                "r": float(info["episode"]["r"][index]),
                "l": int(info["episode"]["l"][index]),
                "t": round(time.time() - self._began, 6),
            }
        return observations, rewards.astype(np.float32), done, infos

    def close(self) -> None:
        """Nothing to close."""
        self.environment.close()

    def _answer(self, answer: Any, indices: Any) -> list[Any]:
        return [answer for _ in self._get_indices(indices)]

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """An attribute of the environment, once for each instance."""
        return self._answer(getattr(self.environment, attr_name), indices)

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Set an attribute of the environment, which all instances share."""
        setattr(self.environment, attr_name, value)

    def env_method(self, method_name: str, *method_args: Any, indices: Any = None, **method_kwargs: Any) -> list[Any]:
        """Call a method of the environment once; its answer, once for each instance."""
        return self._answer(getattr(self.environment, method_name)(*method_args, **method_kwargs), indices)

    def env_is_wrapped(self, wrapper_class: type[Any], indices: Any = None) -> list[bool]:
        """No instance is wrapped in anything."""
        return self._answer(False, indices)

    def get_images(self) -> Sequence[NDArray[Any] | None]:
        """There is nothing to see."""
        return [None for _ in range(self.num_envs)]


def make_vector(name: str, seed: int = 0, num_envs: int = 1, *, processes: bool = False, **options: Any) -> VecEnv:
    """Make several changing environments that step together, as a ``VecEnv`` of Stable-Baselines3.

    All change alike: the same values, at the same time (each at its own end of an episode where the schedule waits for
    that). The steps of the schedule are those of all environments together. Episodes begin differently in each.

    Args:
        name: As of :func:`make`.
        seed: As of :func:`make`.
        num_envs: How many.
        processes: Each environment in a process of its own (``SubprocVecEnv``), or one after the other
            (``DummyVecEnv``).
        **options: As of :func:`make`.

    >>> vector = make_vector("changing_cart_pole", seed=0, num_envs=2, every=100, total_steps=1000)
    >>> vector.reset().shape, vector.get_attr("shift")
    ((2, 4), [0, 0])
    """
    if num_envs < 1:
        raise IllegalConfiguration(f"make_vector: num_envs={num_envs!r} must be 1 or more")

    def maker(index: int) -> Callable[[], Monitor]:
        return lambda: Monitor(make(name, seed, index=index, num_envs=num_envs, **options))

    makers = [maker(index) for index in range(num_envs)]
    return SubprocVecEnv(makers) if processes else DummyVecEnv(makers)  # type: ignore[arg-type]
