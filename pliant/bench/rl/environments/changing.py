"""The base of all wrappers that change an environment: what is common is here, what changes is theirs."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any, ClassVar

import gymnasium
from gymnasium.utils import RecordConstructorArgs

from pliant.bench.rl.environments.schedule import Clock, ShiftSchedule
from pliant.bench.streams.base import require

__all__ = ["Changing", "layers"]


def layers(environment: Any) -> list[Any]:
    """All wrappers of an environment, the outermost first, and the environment itself, last."""
    found = [environment]
    while isinstance(found[-1], gymnasium.Wrapper):
        found.append(found[-1].env)
    return found


class Changing(gymnasium.Wrapper[Any, Any, Any, Any], RecordConstructorArgs):
    """Base of the wrappers; a subclass says what changes and how it is put back.

    A change that takes effect at once comes between two steps: what the step before it returns is the last of the old
    dynamics (and the first of the new order of sensors). One that waits for the end of an episode comes at the
    beginning of ``reset``. ``info["shift"]`` of every step and reset is the number of the present phase, summed over
    all changing wrappers round the environment; ``changes`` lists when each began.

    Neither ``reset`` nor its seed sets the clock back: it counts what the agent has lived through. ``restore`` and
    ``close`` put the environment back as it was found.

    Args:
        env: What is wrapped.
        schedule: To which values, and when.
        seed: Of the values. Environments that shall change alike have the same one.
        num_envs: How many environments step together, so that each counts the steps of all.
        total_steps: Steps of the run, summed over all environments: if the schedule does not fit, that is said now.
        **more: Arguments of a subclass, for the environment's ``spec``.

    Attributes:
        clock: counts the steps, and the phases.
        changes: ``(steps, shift)`` of each change so far: how many steps had been taken when which phase began.

    Raises:
        IllegalConfiguration: for values that the quantity cannot have, a schedule that does not fit into the run, or a
            second wrapper for the same quantity.
        NoEffect: if the environment has nothing that could change.
    """

    quantity: ClassVar[str]
    """What changes, in one word; it is also the purpose of the random values."""

    legal: ClassVar[tuple[float, float]] = (-math.inf, math.inf)
    """The lowest and the highest number that the quantity can be."""

    def __init__(
        self,
        env: gymnasium.Env[Any, Any],
        schedule: ShiftSchedule,
        *,
        seed: int = 0,
        num_envs: int = 1,
        total_steps: int | None = None,
        **more: Any,
    ) -> None:
        # so that gymnasium.make(environment.spec) makes the same again
        arguments = {"schedule": schedule, "seed": seed, "num_envs": num_envs, "total_steps": total_steps, **more}
        RecordConstructorArgs.__init__(self, **arguments)
        super().__init__(env)
        require(isinstance(schedule, ShiftSchedule), self, f"schedule={schedule!r} is no ShiftSchedule")
        require(num_envs >= 1, self, f"num_envs={num_envs!r} must be 1 or more")
        for layer in layers(env):
            twice = isinstance(layer, Changing) and layer.quantity == self.quantity
            require(not twice, self, f"{env} is already wrapped by a {type(layer).__name__}: one would undo the other")
        if total_steps is not None:
            schedule.check(total_steps)
        bounds = schedule.values.bounds
        if bounds is not None:
            inside = self.legal[0] <= bounds[0] and bounds[1] <= self.legal[1]
            finite = math.isfinite(bounds[0]) and math.isfinite(bounds[1])
            low, high = self.legal
            require(
                inside and finite,
                self,
                f"{schedule.values!r} leads to values from {bounds[0]:g} to {bounds[1]:g}, but {self.quantity} must be "
                f"finite and between {low:g} and {high:g}",
            )
        self.schedule, self.seed, self.num_envs = schedule, seed, num_envs
        self.clock = Clock(schedule, num_envs)
        self.changes: list[tuple[int, int]] = []
        self._at_once = schedule.takes_effect == "at_once"
        self._original = self._read()
        for value in schedule.values.listed or (schedule.values.value(0, seed, self.quantity),):
            self._check_value(value)
        self.adopt()

    @abstractmethod
    def _read(self) -> Any:
        """What must be put back to restore the environment; NoEffect if there is nothing to change."""

    def _check_value(self, value: Any) -> None:
        """Refuse a value that does not fit the environment; called at the start for all that are listed."""

    @abstractmethod
    def _write(self, value: Any) -> None:
        """Change the environment to ``value``."""

    @abstractmethod
    def _put_back(self, original: Any) -> None:
        """Restore what ``_read`` returned."""

    @property
    def shift(self) -> int:
        """Number of the present phase."""
        return self.clock.shift

    @property
    def value(self) -> Any:
        """What the environment has changed to; None while it is unchanged."""
        return self.schedule.value(self.clock.shift, self.seed, self.quantity)

    def adopt(self) -> None:
        """Let the environment have the value of the present phase (again)."""
        value = self.value
        if value is None:
            self._put_back(self._original)
        else:
            self._write(value)

    def restore(self) -> None:
        """Put the environment back as it was found, until the next change or ``adopt``."""
        self._put_back(self._original)

    def set_shift(self, shift: int) -> None:
        """Jump to the beginning of a phase, for evaluations.

        Args:
            shift: Its number, from 0.
        """
        self.clock.go_to(shift)
        self.adopt()

    def _change(self) -> None:
        shift = self.clock.turn()
        self.changes.append((self.clock.steps, shift))
        self.adopt()

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """One step, and the change that comes behind it, if one takes effect at once."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        clock = self.clock
        if clock.advance() and self._at_once:
            self._change()
        info["shift"] = info.get("shift", 0) + clock.shift
        return observation, reward, terminated, truncated, info

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """The change that is due, and the beginning of an episode."""
        if self.clock.steps >= self.clock.due:
            self._change()
        observation, info = self.env.reset(seed=seed, options=options)
        info["shift"] = info.get("shift", 0) + self.clock.shift
        return observation, info

    def close(self) -> None:
        """Restore the environment, and close it."""
        self.restore()
        super().close()

    def state_dict(self) -> dict[str, Any]:
        """The state of this wrapper; :func:`environment_state` has that of everything inside, too."""
        return {"clock": self.clock.state_dict(), "changes": [list(change) for change in self.changes]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where ``state_dict`` was called, with the value of that phase.

        Args:
            state: As ``state_dict`` returned it, of a wrapper that was made with the same arguments.
        """
        self.clock.load_state_dict(state["clock"])
        self.changes = [(int(steps), int(shift)) for steps, shift in state["changes"]]
        self.adopt()

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Environments of Gymnasium are made anew when they are copied, with none of the changes.
        self.__dict__.update(state)
        self.adopt()
