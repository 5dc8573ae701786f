"""Robots that walk, on ground whose friction changes or stays: the agents of Dohare et al. (2024)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, final

from pliant.bench.streams.agents import AgentStream
from pliant.bench.streams.base import require

if TYPE_CHECKING:
    from pliant.bench.rl.worlds import World

__all__ = ["Ant", "Hopper", "SlipperyAnt", "Walker"]


@dataclass(frozen=True)
class _Locomotion(AgentStream):
    """Base: one of Gymnasium's robots; PPO's options have the published values."""

    environment: ClassVar[str]
    num_inputs: ClassVar[int]
    num_classes: ClassVar[int]

    friction: tuple[float, float] = (0.0, 0.0)
    parts: int = 10

    @property
    def num_parts(self) -> int:
        """As the option says."""
        return self.parts

    def __post_init__(self) -> None:
        """Refuse what is out of range."""
        super().__post_init__()
        low, high = self.friction if len(self.friction) == 2 else (1.0, 0.0)
        fits = (low, high) == (0.0, 0.0) or 0 < low < high
        require(fits, self, f"friction={self.friction!r} must be two rising numbers above zero, or (0, 0): unchanged")

    def prepare(self) -> None:
        """Also the simulator."""
        super().prepare()
        self.check_installed("mujoco", "MuJoCo")

    def make_world(self, seed: int, num_tasks: int) -> World:
        """The robots of a seed."""
        self.prepare()
        from pliant.bench.rl.worlds import robots

        friction = None if self.friction == (0.0, 0.0) else self.friction
        return robots(self.environment, self.num_envs, seed, friction, self.phase_steps)


@final
@dataclass(frozen=True)
class SlipperyAnt(_Locomotion):
    """Slippery Ant: a four-legged robot walks on ground whose friction changes.

    The agent is PPO of Stable-Baselines3. The friction of everything is drawn log-uniformly when a phase has lasted its
    steps, and takes effect at the beginning of the next episode. A phase is cut into tasks, after each of which is
    measured, and where a run can stop and go on. Needs the extra ``rl``.

    Attributes:
        num_envs: instances that step together; published: one.
        rollout_length: steps of each instance between two rounds of updates.
        num_epochs: passes over a rollout.
        batch_size: transitions per update.
        phase_steps: environment steps between two changes, summed over the instances.
        gamma: discount.
        gae_lambda: of generalised advantage estimation.
        clip_range: of the ratio of probabilities.
        entropy_weight: of the policy's entropy in the loss.
        value_weight: of the value's squared error in the loss.
        max_grad_norm: gradients longer than this are shortened; published: none is.
        friction: the lowest and the highest; (0, 0): it stays as it is.
        parts: tasks between two changes.

    Source: Dohare et al. (2024), Loss of plasticity in deep continual learning, Nature 632, 768-774. Deviations: Ant-v5
        of Gymnasium for Ant-v3 of Gym 0.23 (other observations of contacts, a mended simulator); an episode that was
        cut off is continued by the value of its last state, theirs counts as ended; advantages are normalised in each
        batch of updates, theirs in each rollout; frictions are drawn from the seed, theirs are read from a file.
    """

    name: ClassVar[str] = "slippery_ant"
    environment: ClassVar[str] = "Ant-v5"
    num_inputs: ClassVar[int] = 105
    num_classes: ClassVar[int] = 8

    friction: tuple[float, float] = (0.02, 2.0)


@final
@dataclass(frozen=True)
class Ant(_Locomotion):
    """A four-legged robot walks on ground that never changes: what the policy sees changes because it learns.

    The agent is PPO of Stable-Baselines3; a task is a stretch of steps after which is measured. Needs the extra ``rl``.

    Attributes:
        num_envs: as of ``slippery_ant``, and so are all others.
        rollout_length: steps between two rounds of updates.
        num_epochs: passes over a rollout.
        batch_size: transitions per update.
        phase_steps: environment steps of ``parts`` tasks.
        gamma: discount.
        gae_lambda: of generalised advantage estimation.
        clip_range: of the ratio of probabilities.
        entropy_weight: of the policy's entropy in the loss.
        value_weight: of the value's squared error in the loss.
        max_grad_norm: gradients longer than this are shortened.
        friction: the lowest and the highest; (0, 0): it stays as it is.
        parts: tasks between two changes.

    Source: as ``slippery_ant``, with its deviations.
    """

    name: ClassVar[str] = "ant"
    control: ClassVar[bool] = True
    environment: ClassVar[str] = "Ant-v5"
    num_inputs: ClassVar[int] = 105
    num_classes: ClassVar[int] = 8

    phase_steps: int = 1_000_000


@final
@dataclass(frozen=True)
class Hopper(_Locomotion):
    """A one-legged robot hops on ground that never changes.

    The agent is PPO of Stable-Baselines3; a task is a stretch of steps after which is measured. Needs the extra ``rl``.

    Attributes:
        num_envs: as of ``slippery_ant``, and so are all others.
        rollout_length: steps between two rounds of updates.
        num_epochs: passes over a rollout.
        batch_size: transitions per update.
        phase_steps: environment steps of ``parts`` tasks.
        gamma: discount.
        gae_lambda: of generalised advantage estimation.
        clip_range: of the ratio of probabilities.
        entropy_weight: of the policy's entropy in the loss.
        value_weight: of the value's squared error in the loss.
        max_grad_norm: gradients longer than this are shortened.
        friction: the lowest and the highest; (0, 0): it stays as it is.
        parts: tasks between two changes.

    Source: as ``slippery_ant``, with Hopper-v5 for Hopper-v3.
    """

    name: ClassVar[str] = "hopper"
    control: ClassVar[bool] = True
    environment: ClassVar[str] = "Hopper-v5"
    num_inputs: ClassVar[int] = 11
    num_classes: ClassVar[int] = 3

    phase_steps: int = 1_000_000


@final
@dataclass(frozen=True)
class Walker(_Locomotion):
    """A two-legged robot walks on ground that never changes.

    The agent is PPO of Stable-Baselines3; a task is a stretch of steps after which is measured. Needs the extra ``rl``.

    Attributes:
        num_envs: as of ``slippery_ant``, and so are all others.
        rollout_length: steps between two rounds of updates.
        num_epochs: passes over a rollout.
        batch_size: transitions per update.
        phase_steps: environment steps of ``parts`` tasks.
        gamma: discount.
        gae_lambda: of generalised advantage estimation.
        clip_range: of the ratio of probabilities.
        entropy_weight: of the policy's entropy in the loss.
        value_weight: of the value's squared error in the loss.
        max_grad_norm: gradients longer than this are shortened.
        friction: the lowest and the highest; (0, 0): it stays as it is.
        parts: tasks between two changes.

    Source: as ``slippery_ant``, with Walker2d-v5 for Walker2d-v3.
    """

    name: ClassVar[str] = "walker"
    control: ClassVar[bool] = True
    environment: ClassVar[str] = "Walker2d-v5"
    num_inputs: ClassVar[int] = 17
    num_classes: ClassVar[int] = 6

    phase_steps: int = 1_000_000
