"""A point in a square that looks for a place: so small that a thousand shifts take minutes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, final

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from pliant.bench.rl.environments.schedule import ShiftSchedule
from pliant.bench.rl.environments.values import Values
from pliant.bench.rl.environments.vector import ChangingVector
from pliant.bench.streams.base import generator, require

__all__ = ["ReachTask", "ReachTasks", "ShiftingReach"]

_MOVES = np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
CHANGES = ("goal", "sensors", "actions")


@final
@dataclass(frozen=True)
class ReachTask:
    """One phase of :class:`ShiftingReach`.

    Attributes:
        goal: the place looked for, as shares of the square's sides in [0, 1].
        sensors: which sensor is read at each place of the observation, ``[K]``.
        actions: which of the four moves (right, left, up, down) each action is, ``[4]``; for continuous actions, the
            move along which each coordinate of the action points is ``actions[0]`` and the next one across it.
    """

    goal: tuple[float, float]
    sensors: tuple[int, ...]
    actions: tuple[int, int, int, int]


@final
@dataclass(frozen=True)
class ReachTasks(Values):
    """Random phases of :class:`ShiftingReach`, independent of each other; what does not change keeps its first value.

    Attributes:
        num_sensors: K, as of the environment.
        changes: what is drawn anew at each shift, of ``"goal"``, ``"sensors"`` and ``"actions"``.

    >>> first, second = (ReachTasks(8, changes=("sensors",)).value(shift, seed=0) for shift in (0, 1))
    >>> first.goal == second.goal, first.sensors == second.sensors
    (True, False)
    """

    num_sensors: int = 32
    changes: tuple[str, ...] = CHANGES

    def __post_init__(self) -> None:
        """Refuse what is out of range."""
        require(self.num_sensors >= 4, self, f"num_sensors={self.num_sensors!r} must be 4 or more")
        known = bool(self.changes) and set(self.changes) <= set(CHANGES)
        require(known, self, f"changes={self.changes!r} must be some of {', '.join(map(repr, CHANGES))}")

    def value(self, shift: int, seed: int, purpose: str = "") -> ReachTask:
        """The task of one phase."""
        goal, sensors, actions = (
            generator(f"shift {purpose} {what}", seed, shift if what in self.changes else 0) for what in CHANGES
        )
        x, y = goal.random(2)
        moves = [int(move) for move in actions.permutation(4)]
        return ReachTask(
            (float(x), float(y)),
            tuple(int(index) for index in sensors.permutation(self.num_sensors)),
            (moves[0], moves[1], moves[2], moves[3]),
        )


@final
class ShiftingReach(ChangingVector):
    r"""A point in a square must reach a place that it cannot see, by sensors and moves whose meaning changes.

    The point :math:`p \in [0, L-1]^2` is seen through :math:`K` sensors, each of which responds to a place of its own,
    :math:`\exp(-\lVert p - c_k \rVert^2 / 2 w^2)` in [0, 1], in an order that changes. A step moves it by 1 (discrete
    actions: along one axis; continuous ones: by the action, shortened to length 1), not beyond the walls. The reward is
    the progress :math:`d(p) - d(p')` towards the goal, in [-1, 1], with :math:`d` the distance that moves have to cover
    (the sum of the coordinates for discrete actions, else the Euclidean). So the best policy earns 1 in every step
    (discrete; a little less with continuous actions, whose last step is shorter), and a random one about 0: the mean
    reward per step is the share of what can be had. An episode ends at the goal (continuous: within 0.5 of it); where a
    shift puts the goal under a point, it must leave and come back.

    A shift draws a goal, an order of the sensors, and a meaning of the actions; the policy and the values that were
    learnt are then wrong everywhere, and nothing tells the agent. By default it takes effect at once, while episodes go
    on, so that all instances are always in the same phase.

    Args:
        num_envs: N instances, which share the phases.
        every: environment steps between shifts, summed over the instances; not with ``schedule``.
        schedule: anything else than a new task ``every`` so many steps, at once.
        seed: of the schedule, of the places that sensors respond to, and of where episodes begin.
        num_sensors: K.
        size: L, the places along one side.
        width: w as a share of the side.
        actions: ``"discrete"`` (four moves) or ``"continuous"`` (``[-1, 1]^2``).
        changes: what a shift draws anew.
        episode_steps: an episode is cut off after so many steps.
        total_steps: environment steps of the run, to be told at once if the schedule does not fit.

    Raises:
        IllegalConfiguration: for options out of range, or a schedule that does not fit into the run.

    >>> environment = ShiftingReach(4, every=64, seed=0)
    >>> observations, info = environment.reset()
    >>> observations.shape, info["shift"].tolist()
    ((4, 32), [0, 0, 0, 0])
    >>> for _ in range(16):
    ...     observations, rewards, terminated, truncated, info = environment.step(environment.best_actions())
    >>> rewards.tolist(), info["shift"].tolist()
    ([1.0, 1.0, 1.0, 1.0], [1, 1, 1, 1])
    """

    purpose: ClassVar[str] = "reach"

    def __init__(
        self,
        num_envs: int = 16,
        every: int | None = None,
        *,
        schedule: ShiftSchedule | None = None,
        seed: int = 0,
        num_sensors: int = 32,
        size: int = 9,
        width: float = 0.25,
        actions: str = "discrete",
        changes: tuple[str, ...] = CHANGES,
        episode_steps: int = 50,
        total_steps: int | None = None,
    ) -> None:
        require(actions in ("discrete", "continuous"), self, f"actions={actions!r} must be 'discrete' or 'continuous'")
        require(size >= 3, self, f"size={size!r} must be 3 or more")
        require(0 < width < float("inf"), self, f"width={width!r} must be above zero")
        require((every is None) != (schedule is None), self, "give either every or schedule")
        if schedule is None:
            assert every is not None
            schedule = ShiftSchedule(ReachTasks(num_sensors, tuple(changes)), every, takes_effect="at_once")
        require(not schedule.starts_unchanged, self, "there is no task without a drawn one: starts_unchanged=False")
        self.discrete = actions == "discrete"
        super().__init__(
            num_envs,
            schedule,
            spaces.Box(0.0, 1.0, (num_sensors,), np.float32),
            spaces.Discrete(4) if self.discrete else spaces.Box(-1.0, 1.0, (2,), np.float32),
            seed=seed,
            episode_steps=episode_steps,
            total_steps=total_steps,
        )
        self.size, self._last = size, size - 1.0
        self._width = width * self._last
        self._centres = generator("reach sensors", seed).random((num_sensors, 2)) * self._last
        self._position = np.zeros((num_envs, 2))
        self._goal = np.zeros((num_envs, 2))
        self._order = np.zeros((num_envs, num_sensors), dtype=np.int64)
        self._moves = np.zeros((num_envs, 4, 2))
        self._rows = np.arange(num_envs)

    @property
    def position(self) -> NDArray[np.float64]:
        """Where the points are, as shares of the sides in [0, 1], ``[N, 2]``: for the coverage of states."""
        return self._position / self._last

    def _adopt(self, which: NDArray[np.bool_], value: ReachTask) -> None:
        require(isinstance(value, ReachTask), self, f"the value {value!r} of the schedule is no ReachTask")
        num_sensors = self._order.shape[1]
        fits = sorted(value.sensors) == list(range(num_sensors)) and sorted(value.actions) == [0, 1, 2, 3]
        require(fits, self, f"{value!r} does not fit {num_sensors} sensors and 4 moves")
        goal = np.asarray(value.goal) * self._last
        self._goal[which] = np.rint(goal) if self.discrete else goal
        self._order[which] = value.sensors
        self._moves[which] = _MOVES[list(value.actions)]

    def _begin(self, which: NDArray[np.bool_]) -> None:
        waiting = which.copy()
        while waiting.any():
            drawn = self.np_random.random((int(waiting.sum()), 2)) * self._last
            self._position[waiting] = np.rint(drawn) if self.discrete else drawn
            waiting &= self._arrived()

    def _distance(self) -> NDArray[np.float64]:
        offset = self._goal - self._position
        return np.asarray(np.abs(offset).sum(1) if self.discrete else np.sqrt(np.square(offset).sum(1)))

    def _arrived(self) -> NDArray[np.bool_]:
        return self._distance() <= (0.0 if self.discrete else 0.5)

    def _directions(self) -> NDArray[np.float64]:
        """For continuous actions: where each coordinate of the action points, ``[N, 2, 2]``."""
        first = self._moves[:, 0]
        second = self._moves[:, 1]
        across = np.abs((first * second).sum(1)) < 0.5
        return np.stack([first, np.where(across[:, None], second, self._moves[:, 2])], axis=1)

    def _advance(self, actions: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        before = self._distance()
        if self.discrete:
            move = self._moves[self._rows, actions]
        else:
            given = np.clip(actions.astype(np.float64), -1.0, 1.0)
            given /= np.maximum(np.sqrt(np.square(given).sum(1, keepdims=True)), 1.0)
            move = (given[:, :, None] * self._directions()).sum(1)
        self._position = np.clip(self._position + move, 0.0, self._last)
        after = self._distance()
        return before - after, after <= (0.0 if self.discrete else 0.5)

    def _observe(self) -> NDArray[np.float32]:
        offset = self._position[:, None, :] - self._centres
        readings = np.exp(np.square(offset).sum(2) / (-2.0 * self._width**2)).astype(np.float32)
        return np.asarray(readings[self._rows[:, None], self._order])

    def best_actions(self) -> NDArray[Any]:
        """Actions of a policy that knows everything, ``[N]`` or ``[N, 2]``: what can be had."""
        offset = self._goal - self._position
        if self.discrete:
            gains = (self._moves * np.sign(offset)[:, None, :]).sum(2)
            return np.asarray(gains.argmax(1))
        length = np.sqrt(np.square(offset).sum(1, keepdims=True))
        towards = offset / np.maximum(length, 1.0)
        return np.asarray((self._directions() * towards[:, None, :]).sum(2), dtype=np.float32)

    def _inside(self) -> dict[str, Any]:
        return {"position": self._position.tolist()}

    def _go_inside(self, state: dict[str, Any]) -> None:
        self._position = np.array(state["position"], dtype=np.float64)
