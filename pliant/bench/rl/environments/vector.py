"""Many instances of a small changing environment in one object: for studies with thousands of shifts."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from pliant.bench.rl.environments.schedule import ShiftSchedule
from pliant.bench.streams.base import generator, require
from pliant.errors import IllegalConfiguration

__all__ = ["ChangingVector"]


class ChangingVector(VectorEnv[Any, Any, Any]):
    """Base of the vectorised changing environments; subclasses say what a step does and what a change changes.

    An instance whose episode has ended begins the next one in the same step (``AutoresetMode.SAME_STEP``): what is
    returned is then the first observation of the new episode, and ``info["final_obs"]`` has the last of the old one.
    The clock counts a step of each instance. ``info["shift"]`` is the number of the present phase of each instance;
    where episodes ended, ``info["episode"]`` has their returns ``r`` and lengths ``l``.

    Attributes:
        num_envs: N, the instances.
        schedule: what changes, and when.
        seed: of the schedule, and of the first ``reset`` if that has no seed of its own.
        episode_steps: after so many steps an episode is cut off (``truncated``).
        steps: environment steps of all instances so far.
    """

    purpose: ClassVar[str]
    metadata = {"autoreset_mode": AutoresetMode.SAME_STEP, "render_modes": []}  # noqa: RUF012 (as the base)

    def __init__(
        self,
        num_envs: int,
        schedule: ShiftSchedule,
        observation_space: gymnasium.Space[Any],
        action_space: gymnasium.Space[Any],
        *,
        seed: int,
        episode_steps: int,
        total_steps: int | None = None,
    ) -> None:
        require(num_envs >= 1, self, f"num_envs={num_envs!r} must be 1 or more")
        require(episode_steps >= 1, self, f"episode_steps={episode_steps!r} must be 1 or more")
        if total_steps is not None:
            schedule.check(total_steps)
        self.num_envs, self.schedule, self.seed, self.episode_steps = num_envs, schedule, seed, episode_steps
        self.single_observation_space, self.single_action_space = observation_space, action_space
        self.observation_space = batch_space(observation_space, num_envs)
        self.action_space = batch_space(action_space, num_envs)
        self.steps = 0
        self._started = False
        self._everyone = np.ones(num_envs, dtype=np.bool_)
        self._shift = np.zeros(num_envs, dtype=np.int64)
        self._due = np.full(num_envs, schedule.begin(), dtype=np.int64)
        self._elapsed = np.zeros(num_envs, dtype=np.int64)
        self._returns = np.zeros(num_envs)
        self._at_once = schedule.takes_effect == "at_once"
        self._np_random, self._np_random_seed = generator(f"{self.purpose} starts", seed), seed

    @abstractmethod
    def _adopt(self, which: NDArray[np.bool_], value: Any) -> None:
        """Instances ``which`` [N] change to ``value``."""

    @abstractmethod
    def _begin(self, which: NDArray[np.bool_]) -> None:
        """Instances ``which`` [N] begin an episode."""

    @abstractmethod
    def _advance(self, actions: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """One step of all: rewards [N], and who has come to the end of an episode [N]."""

    @abstractmethod
    def _observe(self) -> NDArray[np.float32]:
        """Observations [N, ...] of all, in an array of their own."""

    @abstractmethod
    def _inside(self) -> dict[str, Any]:
        """State of the instances, as lists of numbers."""

    @abstractmethod
    def _go_inside(self, state: dict[str, Any]) -> None:
        """Put back what ``_inside`` returned."""

    @property
    def shift(self) -> NDArray[np.int64]:
        """Number of the present phase of each instance, [N]."""
        return self._shift.copy()

    @property
    def value(self) -> Any:
        """What instance 0 has changed to; None before the first change of a schedule that starts unchanged."""
        return self._value(int(self._shift[0]))

    def _value(self, shift: int) -> Any:
        return self.schedule.value(shift, self.seed, self.purpose)

    def _adopt_shifts(self, which: NDArray[np.bool_]) -> None:
        for shift in np.unique(self._shift[which]):
            self._adopt(which & (self._shift == shift), self._value(int(shift)))

    def _turn(self, which: NDArray[np.bool_]) -> None:
        for index in np.flatnonzero(which):
            self._shift[index], self._due[index] = self.schedule.turn(self.steps, int(self._shift[index]))
        self._adopt_shifts(which)

    def _info(self) -> dict[str, Any]:
        return {"shift": self._shift.copy(), "_shift": self._everyone.copy()}

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Begin an episode in every instance; the clock of the schedule goes on, and what is due takes effect.

        Args:
            seed: Where the episodes begin from now on; None: as the seed of the environment says.
            options: Not used.
        """
        super().reset(seed=seed)
        if not self._started:
            self._started = True
            self._adopt_shifts(self._everyone)
        self._turn(self.steps >= self._due)
        self._restart(self._everyone)
        return self._observe(), self._info()

    def _restart(self, which: NDArray[np.bool_]) -> None:
        self._elapsed[which] = 0
        self._returns[which] = 0.0
        self._begin(which)

    def step(
        self, actions: NDArray[Any]
    ) -> tuple[NDArray[np.float32], NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
        """One step of every instance.

        Args:
            actions: ``[N, ...]``.

        Returns:
            Observations ``[N, ...]``, rewards ``[N]``, who terminated ``[N]``, who was cut off ``[N]``, and infos.

        Raises:
            IllegalConfiguration: before the first ``reset``.
        """
        if not self._started:
            raise IllegalConfiguration(f"{type(self).__name__}: call reset() before the first step()")
        rewards, terminated = self._advance(np.asarray(actions))
        self._elapsed += 1
        self._returns += rewards
        self.steps += self.num_envs
        truncated = (self._elapsed >= self.episode_steps) & ~terminated
        done = terminated | truncated
        ended = bool(done.any())
        infos: dict[str, Any] = {}
        if ended:
            infos = {
                **{"final_obs": self._observe(), "_final_obs": done.copy()},
                **{"episode": {"r": self._returns.copy(), "l": self._elapsed.copy()}, "_episode": done.copy()},
            }
        due = self.steps >= self._due
        if not self._at_once:
            due &= done
        if due.any():
            self._turn(due)
        if ended:
            self._restart(done)
        return self._observe(), rewards, terminated, truncated, {**infos, **self._info()}

    def set_shift(self, shift: int) -> None:
        """Jump to the beginning of a phase in every instance, for evaluations; episodes go on.

        Args:
            shift: Its number, from 0.
        """
        last = self.schedule.last_shift
        require(0 <= shift <= last, self, f"there is no shift {shift}; the last is {last}")
        self.steps = shift * self.schedule.every
        self._shift[:] = shift
        self._due[:] = self.schedule.turn(self.steps, shift - 1)[1] if shift else self.schedule.begin()
        self._adopt_shifts(self._everyone)

    def state_dict(self) -> dict[str, Any]:
        """All that a run needs to go on to the bit, in plain numbers, lists and strings."""
        return {
            "steps": self.steps,
            "shift": self._shift.tolist(),
            "due": self._due.tolist(),
            "elapsed": self._elapsed.tolist(),
            "returns": self._returns.tolist(),
            "started": self._started,
            "random": self.np_random.bit_generator.state,
            "inside": self._inside(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where ``state_dict`` was called, on an environment that was made with the same arguments.

        Args:
            state: As ``state_dict`` returned it.

        Raises:
            IllegalConfiguration: if it has another number of instances.
        """
        given = len(state["shift"])
        require(given == self.num_envs, self, f"the state is of {given} instances, and these are {self.num_envs}")
        self.steps, self._started = int(state["steps"]), bool(state["started"])
        for mine, name in ((self._shift, "shift"), (self._due, "due"), (self._elapsed, "elapsed")):
            mine[:] = state[name]
        self._returns[:] = state["returns"]
        self.np_random.bit_generator.state = state["random"]
        self._adopt_shifts(self._everyone)
        self._go_inside(state["inside"])
