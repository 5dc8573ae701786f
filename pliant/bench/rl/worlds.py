"""What an agent's run needs of its environment beside the steps: its state, and where in it the agent has been."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, final

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from stable_baselines3.common.vec_env import VecEnv

    from pliant.bench.rl.environments.reach import ShiftingReach

__all__ = ["GymnasiumWorld", "ReachWorld", "World", "entropy_of_counts", "robots"]


class World(ABC):
    """An environment for Stable-Baselines3, with a state that can be saved.

    Attributes:
        vector: what the agent steps.
        per_step: the return is a mean over steps; otherwise a mean over the episodes that ended.
    """

    vector: VecEnv
    per_step: bool

    @abstractmethod
    def places(self, observations: NDArray[Any]) -> NDArray[np.int64]:
        """The cells of a fixed grid that the instances are in now: ``[N, M]``, one for each of M grids."""

    @property
    @abstractmethod
    def num_cells(self) -> int:
        """Cells of a grid."""

    @abstractmethod
    def state(self) -> str:
        """All that the environment remembers, as text."""

    @abstractmethod
    def load_state(self, state: str) -> None:
        """Go on where :meth:`state` was called."""


def entropy_of_counts(places_NM: NDArray[np.int64], num_cells: int) -> float:
    r"""State coverage: the entropy of how often each cell was visited, as a share of the largest possible.

    .. math:: -\frac{1}{\log C} \sum_{c=1}^{C} p_c \log p_c

    with :math:`p_c` the share of visits to cell :math:`c`; a mean over M grids. It is 0 where only one cell was ever
    visited, 1 where all were visited equally often. With few visits it is biased downwards, by about
    :math:`(C-1) / (2 N \log C)`.

    Args:
        places_NM: the cell of each visit, for each grid.
        num_cells: C.

    >>> entropy_of_counts(np.array([[0], [1], [2], [3]]), 4), entropy_of_counts(np.array([[2], [2]]), 4)
    (1.0, 0.0)
    """
    entropies = []
    for column in places_NM.T:
        share = np.bincount(column, minlength=num_cells) / len(column)
        share = share[share > 0]
        entropies.append(max(0.0, -float((share * np.log(share)).sum())) / np.log(num_cells))
    return float(np.mean(entropies))


@final
class ReachWorld(World):
    """A point in a square: one grid of 9 by 9 cells over the places of the points themselves.

    The return is the mean reward of a step, which the environment scales such that the best policy earns 1.
    """

    per_step = True
    _SIDE = 9

    def __init__(self, environment: ShiftingReach) -> None:
        from pliant.bench.rl.environments.sb3_vector import SB3Vector

        self.environment = environment
        self.vector = SB3Vector(environment)

    @property
    def num_cells(self) -> int:
        """81."""
        return self._SIDE**2

    def places(self, observations: NDArray[Any]) -> NDArray[np.int64]:
        """From the positions; the observations are these seen by sensors whose order changes."""
        cells = np.minimum((self.environment.position * self._SIDE).astype(np.int64), self._SIDE - 1)
        return np.asarray(cells[:, :1] * self._SIDE + cells[:, 1:])

    def state(self) -> str:
        """JSON."""
        return json.dumps(self.environment.state_dict())

    def load_state(self, state: str) -> None:
        """Go on."""
        self.environment.load_state_dict(json.loads(state))


@final
class GymnasiumWorld(World):
    """Environments of Gymnasium side by side: one grid of 16 cells for each number that is observed.

    Numbers without bounds are first squashed by tanh. The return is that of the episodes that ended.

    Args:
        makers: Each makes one instance.
    """

    per_step = False
    num_cells = 16

    def __init__(self, makers: Sequence[Callable[[], Any]]) -> None:
        from stable_baselines3.common.monitor import Monitor
        from stable_baselines3.common.vec_env import DummyVecEnv

        def watched(maker: Callable[[], Any]) -> Callable[[], Any]:
            return lambda: Monitor(maker())

        self.vector = self._plain = DummyVecEnv([watched(maker) for maker in makers])

    def places(self, observations: NDArray[Any]) -> NDArray[np.int64]:
        """Of the observations."""
        shares = (np.tanh(observations) + 1) / 2
        return np.asarray(np.minimum((shares * self.num_cells).astype(np.int64), self.num_cells - 1))

    def state(self) -> str:
        """JSON, of every instance."""
        from pliant.bench.rl.environments.state import environment_state

        return json.dumps([environment_state(environment) for environment in self._plain.envs])

    def load_state(self, state: str) -> None:
        """Go on."""
        from pliant.bench.rl.environments.state import load_environment_state

        for environment, saved in zip(self._plain.envs, json.loads(state), strict=True):
            load_environment_state(environment, saved)


def robots(
    environment: str, num_envs: int, seed: int, friction: tuple[float, float] | None, phase_steps: int
) -> GymnasiumWorld:
    """Instances of one of MuJoCo's robots, on ground whose friction may change.

    Args:
        environment: Its name in Gymnasium.
        num_envs: How many, all with the same friction.
        seed: Of the frictions, and of where episodes begin.
        friction: The lowest and the highest; None: as it is.
        phase_steps: Steps between two changes, summed over the instances.
    """
    import gymnasium

    from pliant.bench.rl.environments import LogUniform, ShiftSchedule
    from pliant.bench.rl.environments.friction import ChangingFriction

    def maker(rank: int) -> Callable[[], Any]:
        def make() -> Any:
            made: Any = gymnasium.make(environment)
            if friction is not None:
                schedule = ShiftSchedule(LogUniform(*friction), phase_steps)
                made = ChangingFriction(made, schedule, seed=seed, num_envs=num_envs)
            made.reset(seed=seed * num_envs + rank)
            return made

        return make

    return GymnasiumWorld([maker(rank) for rank in range(num_envs)])
