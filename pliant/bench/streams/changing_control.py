"""A small control task whose goal, sensors and actions change: a thousand shifts in minutes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, final

from pliant.bench.streams.agents import AgentStream
from pliant.bench.streams.base import require

if TYPE_CHECKING:
    from pliant.bench.rl.worlds import World

__all__ = ["ChangingControl"]

_CHANGES = ("goal", "sensors", "actions")


@final
@dataclass(frozen=True)
class ChangingControl(AgentStream):
    """An agent steers a point to a place that it cannot see; each task draws goal, sensors or actions anew.

    The agent is PPO of Stable-Baselines3. Nothing tells it that something has changed, and episodes go on. A return is
    the mean reward of a step: the progress towards the goal, which is 1 for the best policy and about 0 for a random
    one. See :class:`~pliant.bench.rl.environments.reach.ShiftingReach`. Needs the extra ``rl``.

    Attributes:
        num_envs: instances that step together, all in the same phase.
        rollout_length: steps of each instance between two rounds of updates.
        num_epochs: passes over a rollout.
        batch_size: transitions per update.
        phase_steps: environment steps of a task, summed over the instances: whole rollouts.
        gamma: discount.
        gae_lambda: of generalised advantage estimation.
        clip_range: of the ratio of probabilities.
        entropy_weight: of the policy's entropy in the loss.
        value_weight: of the value's squared error in the loss.
        max_grad_norm: gradients longer than this are shortened.
        changes: what a task draws anew, of ``goal``, ``sensors`` and ``actions``.
        actions: ``discrete`` (four moves) or ``continuous`` (two numbers).
        num_sensors: numbers of an observation.
        size: places along a side of the square.
        width: of the sensors, as a share of the side.
        episode_steps: an episode is cut off after so many steps.

    Source: an environment of this library.
    """

    name: ClassVar[str] = "changing_control"

    num_envs: int = 16
    rollout_length: int = 16
    num_epochs: int = 10
    batch_size: int = 128
    phase_steps: int = 1024
    gamma: float = 0.9
    gae_lambda: float = 0.9
    entropy_weight: float = 0.01
    value_weight: float = 0.5
    max_grad_norm: float = 0.5
    changes: tuple[str, ...] = _CHANGES
    actions: str = "discrete"
    num_sensors: int = 32
    size: int = 9
    width: float = 0.25
    episode_steps: int = 50

    def __post_init__(self) -> None:
        """Refuse what is out of range; the environment refuses the rest."""
        super().__post_init__()
        whole = self.phase_steps % self.rollout_steps == 0
        require(
            whole,
            self,
            f"phase_steps={self.phase_steps} must be whole rollouts of {self.rollout_steps} steps, so that the world "
            "changes between two of them",
        )
        known = bool(self.changes) and set(self.changes) <= set(_CHANGES)
        require(known, self, f"changes={self.changes!r} must be some of {', '.join(_CHANGES)}")
        kinds = ("discrete", "continuous")
        require(self.actions in kinds, self, f"actions={self.actions!r} must be one of {', '.join(kinds)}")
        require(self.num_sensors >= 4 and self.size >= 3, self, "num_sensors must be at least 4, and size at least 3")
        require(self.width > 0 and self.episode_steps >= 1, self, "width and episode_steps must be above zero")

    @property
    def num_inputs(self) -> int:
        """Sensors."""
        return self.num_sensors

    @property
    def num_classes(self) -> int:
        """Moves, or numbers of an action."""
        return 4 if self.actions == "discrete" else 2

    def make_world(self, seed: int, num_tasks: int) -> World:
        """The square of a seed."""
        self.prepare()
        from pliant.bench.rl.environments.reach import ShiftingReach
        from pliant.bench.rl.worlds import ReachWorld

        return ReachWorld(
            ShiftingReach(
                self.num_envs,
                self.phase_steps,
                seed=seed,
                num_sensors=self.num_sensors,
                size=self.size,
                width=self.width,
                actions=self.actions,
                changes=self.changes,
                episode_steps=self.episode_steps,
            )
        )
