"""Streams of an agent: its tasks are the phases of an environment that changes, and not sets of examples."""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, final

from pliant.bench.streams.base import require
from pliant.errors import IllegalConfiguration

if TYPE_CHECKING:
    from pliant.bench.rl.worlds import World

__all__ = ["AgentStream", "Phase"]


@final
@dataclass(frozen=True)
class Phase:
    """One task of an agent: the steps until the next change of its environment, or an equal part of them.

    Attributes:
        num_env_steps: environment steps, summed over the instances: whole rollouts.
        rollout_steps: of them, those that are collected for one round of updates.
        steps_per_rollout: optimizer steps of such a round.
        num_bytes: memory of a rollout.
    """

    num_env_steps: int
    rollout_steps: int
    steps_per_rollout: int
    num_bytes: int

    @property
    def num_steps(self) -> int:
        """Optimizer steps that the task takes."""
        return -(-self.num_env_steps // self.rollout_steps) * self.steps_per_rollout

    def cut(self, num_steps: int) -> Phase:
        """Return the task cut to about so many optimizer steps, at least one rollout."""
        rollouts = max(1, num_steps // self.steps_per_rollout)
        return replace(self, num_env_steps=min(self.num_env_steps, rollouts * self.rollout_steps))


@dataclass(frozen=True)
class AgentStream(ABC):
    """Base of the streams of agents: PPO's options, and what follows from them; a subclass has an environment.

    Attributes:
        num_envs: instances of the environment that step together.
        rollout_length: steps of each instance between two rounds of updates.
        num_epochs: passes over a rollout.
        batch_size: transitions per update; must divide a rollout.
        phase_steps: environment steps between two changes, summed over the instances. PPO takes whole rollouts: a task
            ends with the first that ends at or after its last step.
        gamma: discount.
        gae_lambda: of generalised advantage estimation.
        clip_range: of the ratio of probabilities.
        entropy_weight: of the policy's entropy in the loss.
        value_weight: of the value's squared error in the loss.
        max_grad_norm: gradients longer than this are shortened.
    """

    trainer: ClassVar[str] = "pliant.bench.rl.agents:Agent"
    loss: ClassVar[str] = "ppo"
    score: ClassVar[str] = "return"
    name: ClassVar[str]

    num_envs: int = 1
    rollout_length: int = 2048
    num_epochs: int = 10
    batch_size: int = 128
    phase_steps: int = 2_000_000
    gamma: float = 0.99
    gae_lambda: float = 0.95
    clip_range: float = 0.2
    entropy_weight: float = 0.0
    value_weight: float = 1.0
    max_grad_norm: float = 1e9

    def __post_init__(self) -> None:
        """Refuse what is out of range."""
        for option in ("num_envs", "rollout_length", "num_epochs", "phase_steps"):
            require(getattr(self, option) >= 1, self, f"{option} must be at least 1")
        size = self.rollout_steps
        fits = self.batch_size >= 2 and size % self.batch_size == 0
        require(
            fits, self, f"batch_size={self.batch_size} must be at least 2, and divide the {size} steps of a rollout"
        )
        parts = self.num_parts
        require(parts >= 1 and self.phase_steps % parts == 0, self, f"parts={parts} must divide phase_steps")
        cut = f"phase_steps={self.phase_steps}" + (f" in parts={parts}" if parts > 1 else "")
        enough = self.phase_steps // parts >= size
        require(enough, self, f"{cut} is less than one rollout of {size} steps: a task would have nothing to learn")
        for option in ("gamma", "gae_lambda"):
            require(0 <= getattr(self, option) <= 1, self, f"{option} must be in [0, 1]")
        for option in ("clip_range", "max_grad_norm"):
            require(getattr(self, option) > 0, self, f"{option} must be above zero")
        for option in ("entropy_weight", "value_weight"):
            require(getattr(self, option) >= 0, self, f"{option} must not be negative")

    @property
    @abstractmethod
    def num_inputs(self) -> int:
        """Features of an observation."""

    @property
    @abstractmethod
    def num_classes(self) -> int:
        """Outputs of the policy: a logit for each discrete action, or the mean of each continuous one."""

    @abstractmethod
    def make_world(self, seed: int, num_tasks: int) -> World:
        """Return the environment that belongs to a seed, for a run of so many tasks."""

    @property
    def num_parts(self) -> int:
        """Tasks between two changes; methods hear of a task boundary only where something changes."""
        return 1

    @property
    def task_steps(self) -> int:
        """Environment steps of a task."""
        return self.phase_steps // self.num_parts

    @property
    def rollout_steps(self) -> int:
        """Environment steps between two rounds of updates."""
        return self.num_envs * self.rollout_length

    @property
    def task_bytes(self) -> int:
        """Memory of a rollout: observations, and a handful of numbers for each step; single precision."""
        return 4 * self.rollout_steps * (self.num_inputs + self.num_classes + 6)

    def prepare(self) -> None:
        """Make sure that what agents need is installed.

        Raises:
            IllegalConfiguration: it is not.
        """
        self.check_installed("gymnasium", "Gymnasium")
        self.check_installed("stable_baselines3", "Stable-Baselines3")

    def check_installed(self, module: str, name: str) -> None:
        """Raise IllegalConfiguration unless a module can be imported."""
        if importlib.util.find_spec(module) is None:
            raise IllegalConfiguration(
                f"the stream {self.name} needs {name}, which is not installed: pip install 'pliant[rl]'"
            )

    def task(self, index: int, seed: int) -> Any:
        """Return task ``index``: how long it is; what has changed is known by the environment alone."""
        require(index >= 0, self, f"there is no task {index}")
        steps = self.num_epochs * (self.rollout_steps // self.batch_size)
        return Phase(self.task_steps, self.rollout_steps, steps, self.task_bytes)
