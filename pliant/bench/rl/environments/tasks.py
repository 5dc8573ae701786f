"""One environment after the other, behind one observation and one action."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, final

import gymnasium
import numpy as np
from gymnasium import spaces

from pliant.bench.rl.environments.changing import Changing
from pliant.bench.rl.environments.schedule import ShiftSchedule
from pliant.bench.streams.base import require
from pliant.errors import NoEffect

__all__ = ["SwitchingTasks"]


@final
class SwitchingTasks(Changing):
    r"""A sequence of environments as one: CartPole, then Acrobot, then Pendulum, and round again.

    The observation is that of the present environment, followed by zeros up to the longest. The action is one number
    for each dimension of the widest, in [-1, 1]: an environment with a Box takes as many as it has, scaled to its
    bounds; one with ``n`` discrete actions divides the first number's range into ``n`` equal parts, from the lowest on.
    Rewards are multiplied by a factor for each environment, as their sizes differ widely.

    The values are numbers of the environments, from 0. A change waits for the end of an episode, as no environment can
    go on in the middle of another's.

    Args:
        envs: The environments, each with Box observations of one dimension, and Discrete or Box actions.
        schedule: Which comes when; for example ``ShiftSchedule(Cycle((0, 1, 2)), every=50_000)``.
        reward_scales: One factor for each environment; None: 1.
        seed: As of :class:`Changing`, and so on.
        num_envs: Vectors' environments that step together (each of these is one, whatever the number of tasks).
        total_steps: Steps of the run.

    Raises:
        NoEffect: for fewer than two environments.
        IllegalConfiguration: as :class:`Changing`; or for spaces that cannot be unified, or a value that is no number
            of an environment.
    """

    quantity: ClassVar[str] = "task"

    def __init__(
        self,
        envs: Sequence[gymnasium.Env[Any, Any]],
        schedule: ShiftSchedule,
        *,
        reward_scales: Sequence[float] | None = None,
        seed: int = 0,
        num_envs: int = 1,
        total_steps: int | None = None,
    ) -> None:
        self.envs = list(envs)
        if len(self.envs) < 2:
            raise NoEffect(f"SwitchingTasks: {len(self.envs)} environment leaves nothing to switch to; give two.")
        require(schedule.takes_effect == "episode_end", self, "takes_effect must be 'episode_end'")
        bounds = schedule.values.bounds
        if bounds is not None:
            inside = bounds[0] >= 0 and bounds[1] <= len(self.envs) - 1
            require(inside, self, f"{schedule.values!r} must be of numbers from 0 to {len(self.envs) - 1}")
        self._scales = [1.0] * len(self.envs) if reward_scales is None else [float(scale) for scale in reward_scales]
        require(len(self._scales) == len(self.envs), self, f"give {len(self.envs)} reward_scales, one for each")
        for env in self.envs:
            fits = isinstance(env.observation_space, spaces.Box) and len(env.observation_space.shape) == 1
            require(fits, self, f"{env} has observations {env.observation_space}: they must be a Box of one dimension")
            acts = env.action_space
            fits = isinstance(acts, spaces.Discrete) or (isinstance(acts, spaces.Box) and acts.is_bounded("both"))
            require(fits, self, f"{env} has actions {acts}: they must be Discrete, or a Box with bounds")
        self.present = 0
        super().__init__(self.envs[0], schedule, seed=seed, num_envs=num_envs, total_steps=total_steps)
        boxes = [env.observation_space for env in self.envs if isinstance(env.observation_space, spaces.Box)]
        lows, highs = [float(box.low.min()) for box in boxes], [float(box.high.max()) for box in boxes]
        widths = [1 if isinstance(env.action_space, spaces.Discrete) else _size(env.action_space) for env in self.envs]
        longest = max(box.shape[0] for box in boxes)
        self.observation_space = spaces.Box(min(*lows, 0.0), max(*highs, 0.0), (longest,), np.float32)
        self.action_space = spaces.Box(-1.0, 1.0, (max(widths),), np.float32)

    @property
    def spec(self) -> None:  # type: ignore[override]
        """None: no single specification makes several environments."""
        return None

    def _read(self) -> int:
        return 0

    def _check_value(self, value: Any) -> None:
        whole = isinstance(value, int) and 0 <= value < len(self.envs)
        require(whole, self, f"the value {value!r} is no number of an environment: 0 to {len(self.envs) - 1}")

    def _write(self, value: Any) -> None:
        self._check_value(value)
        self.present = int(value)
        self.env = self.envs[self.present]

    def _put_back(self, original: int) -> None:
        self._write(original)

    def _padded(self, observation: Any) -> Any:
        assert self.observation_space.shape
        padded = np.zeros(self.observation_space.shape, dtype=np.float32)
        padded[: len(observation)] = observation
        return padded

    def _translated(self, action: Any) -> Any:
        space = self.env.action_space
        given = np.clip(np.asarray(action, dtype=np.float64).reshape(-1), -1.0, 1.0)
        if isinstance(space, spaces.Discrete):
            number = int(space.n)
            return int(space.start) + min(int((given[0] + 1) / 2 * number), number - 1)
        assert isinstance(space, spaces.Box)
        share = (given[: _size(space)].reshape(space.shape) + 1) / 2
        return (space.low + share * (space.high - space.low)).astype(space.dtype)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """One step of the present environment."""
        observation, reward, terminated, truncated, info = super().step(self._translated(action))
        return self._padded(observation), float(reward) * self._scales[self.present], terminated, truncated, info

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """The beginning of an episode of the environment whose turn it is; a seed is given to all of them."""
        if seed is not None:
            for env in self.envs:
                env.reset(seed=seed)
        observation, info = super().reset(seed=seed, options=options)
        return self._padded(observation), info

    def close(self) -> None:
        """Close all environments."""
        self.restore()
        for env in self.envs:
            env.close()


def _size(space: Any) -> int:
    return int(np.prod(space.shape))
