"""Changing sensors: the same world, seen in another order."""

from __future__ import annotations

from typing import Any, ClassVar, final

import numpy as np
from gymnasium import spaces

from pliant.bench.rl.environments.changing import Changing
from pliant.bench.streams.base import require
from pliant.errors import NoEffect

__all__ = ["PermutedSensors"]


@final
class PermutedSensors(Changing):
    r"""The entries of the observation come in another order: :math:`o'_i = o_{\pi(i)}`, in any environment with a Box.

    It is to agents what permuted MNIST is to classifiers: nothing that was learnt about the inputs holds any more. The
    bounds of the observation space become the widest of all entries, as any entry can be anywhere; shape and dtype
    stay. Observations of several dimensions are permuted as a whole.

    The values are permutations of all entries: ``Permutations(size)``.

    Args, attributes and errors: see :class:`Changing`.

    Raises:
        NoEffect: if the observation is no Box, or has one entry.
    """

    quantity: ClassVar[str] = "sensors"

    def _read(self) -> None:
        space = self.env.observation_space
        if not isinstance(space, spaces.Box) or int(np.prod(space.shape)) < 2:
            raise NoEffect(
                f"PermutedSensors: observations of {self.env} are {space}: there must be a Box of two numbers or more."
            )
        self._identity = np.arange(int(np.prod(space.shape))).reshape(space.shape)
        self._order = self._identity
        self.observation_space = spaces.Box(
            space.low.min(), space.high.max(), space.shape, space.dtype.type if space.dtype is not None else np.float32
        )

    def _check_value(self, value: Any) -> None:
        order = np.asarray(value)
        size = self._identity.size
        fits = order.shape == (size,) and np.array_equal(np.sort(order), np.arange(size))
        require(fits, self, f"a value is no permutation of the {size} entries of the observation: Permutations({size})")

    def _write(self, value: Any) -> None:
        self._check_value(value)
        self._order = np.asarray(value, dtype=np.int64).reshape(self._identity.shape)

    def _put_back(self, original: None) -> None:
        self._order = self._identity

    def _permuted(self, observation: Any) -> Any:
        return observation.take(self._order)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """One step, seen in the present order."""
        observation, reward, terminated, truncated, info = super().step(action)
        return self._permuted(observation), reward, terminated, truncated, info

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """The beginning of an episode, seen in the present order."""
        observation, info = super().reset(seed=seed, options=options)
        return self._permuted(observation), info
