"""When an environment changes: a schedule as frozen data, and the clock that follows it.

The clock counts environment steps over the whole life of an environment, episodes and resets included. ``every`` counts
the steps of the agent: with several environments side by side, each step of the vector is as many environment steps as
there are environments. As all of them step together, each environment needs no more than their number (``num_envs``)
to know the time of all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

from pliant.bench.rl.environments.values import Values
from pliant.bench.streams.base import require

__all__ = ["NEVER", "Clock", "ShiftSchedule"]

NEVER = 2**62
"""A step that no clock reaches."""


@final
@dataclass(frozen=True)
class ShiftSchedule:
    r"""To which values an environment changes, and when.

    Attributes:
        values: the sequence; phase :math:`k` has value :math:`k` (:math:`k - 1` with ``starts_unchanged``).
        every: environment steps between changes, summed over all environments of a vector.
        takes_effect: ``"episode_end"``: a change that is due waits for the next ``reset``, so that an episode is lived
            under one value; ``"at_once"``: it comes between two steps.
        counted_from: ``"start"``: phase :math:`k` is due at step :math:`k \cdot` ``every``, whatever was late before;
            if an episode is longer than ``every``, phases are left out. ``"change"``: the next one is due ``every``
            steps after the last took effect, and none is left out.
        starts_unchanged: the first phase is the environment as it is.

    Source: Slippery Ant (Dohare et al., 2024) changes at the first end of an episode at which 2,000,000 steps have
        passed since the last change, and its first phase has a drawn value: ``"episode_end"``, ``"change"``, False.

    >>> from pliant.bench.rl.environments.values import LogUniform
    >>> ShiftSchedule(LogUniform(0.02, 2.0), every=2_000_000).num_phases(20_000_000)
    10
    """

    values: Values
    every: int
    takes_effect: str = "episode_end"
    counted_from: str = "start"
    starts_unchanged: bool = False

    def __post_init__(self) -> None:
        """Refuse what is out of range."""
        require(isinstance(self.values, Values), self, f"values={self.values!r} is no sequence of values")
        whole = isinstance(self.every, int) and not isinstance(self.every, bool) and self.every >= 1
        require(whole, self, f"every={self.every!r} must be a whole number of steps, 1 or more")
        for name, allowed in (("takes_effect", ("episode_end", "at_once")), ("counted_from", ("start", "change"))):
            given = getattr(self, name)
            require(given in allowed, self, f"{name}={given!r} must be {' or '.join(map(repr, allowed))}")

    def num_phases(self, total_steps: int) -> int:
        """Phases that a run of so many environment steps can reach."""
        reached = -(-total_steps // self.every)
        return min(reached, self.last_shift + 1)

    @property
    def last_shift(self) -> int:
        """The shift behind which nothing changes any more; :data:`NEVER` if there is none."""
        if not self.values.ends or self.values.num_values is None:
            return NEVER
        return self.values.num_values - 1 + self.starts_unchanged

    def value(self, shift: int, seed: int, purpose: str) -> Any:
        """The value of phase ``shift``; None where the environment is unchanged."""
        if self.starts_unchanged:
            return None if shift == 0 else self.values.value(shift - 1, seed, purpose)
        return self.values.value(shift, seed, purpose)

    def begin(self) -> int:
        """The step at which the first change is due."""
        return self.every if self.last_shift > 0 else NEVER

    def turn(self, steps: int, shift: int) -> tuple[int, int]:
        """The phase that begins when a change that is due takes effect, and when the next one is due.

        Args:
            steps: Environment steps so far.
            shift: Number of the phase that ends.
        """
        if self.counted_from == "start":
            shift = min(steps // self.every, self.last_shift)
            due = (shift + 1) * self.every
        else:
            shift, due = shift + 1, steps + self.every
        return shift, due if shift < self.last_shift else NEVER

    def check(self, total_steps: int) -> None:
        """Refuse a run in which the schedule does not come to its end.

        Args:
            total_steps: Environment steps of the run, summed over all environments.

        Raises:
            IllegalConfiguration: if nothing changes within the run, or if some of the values that are listed, or of
                the first cycle, would never be seen.
        """
        require(
            self.every < total_steps,
            self,
            f"every={self.every:,}, but the run ends after {total_steps:,} environment steps: nothing would ever "
            f"change; make the run longer or `every` smaller",
        )
        listed = self.values.num_values
        if listed is None:
            return
        wanted, reached = listed + self.starts_unchanged, -(-total_steps // self.every)
        require(
            reached >= wanted,
            self,
            f"the schedule is longer than the run: {wanted} phases of {self.every:,} steps do not fit into "
            f"{total_steps:,} environment steps, which reach {reached}; make the run longer, `every` smaller, or "
            f"leave values out",
        )


@final
class Clock:
    """Counts the steps, and says which shift it is.

    Attributes:
        steps: environment steps so far.
        shift: number of the present phase.
        due: the step at which the next phase is due.

    >>> from pliant.bench.rl.environments.values import Uniform
    >>> clock = Clock(ShiftSchedule(Uniform(0, 1), every=10), stride=4)
    >>> [clock.advance() for _ in range(3)]      # 4, 8, 12 steps
    [False, False, True]
    >>> clock.turn(), clock.due
    (1, 20)
    """

    __slots__ = ("_schedule", "_stride", "due", "shift", "steps")

    def __init__(self, schedule: ShiftSchedule, stride: int = 1) -> None:
        self._schedule, self._stride = schedule, stride
        self.steps, self.shift = 0, 0
        self.due = schedule.begin()

    def advance(self) -> bool:
        """One step of all environments; whether a change is due."""
        self.steps += self._stride
        return self.steps >= self.due

    def turn(self) -> int:
        """The change that is due takes effect; the number of the phase that begins."""
        self.shift, self.due = self._schedule.turn(self.steps, self.shift)
        return self.shift

    def go_to(self, shift: int) -> None:
        """Jump to the beginning of a phase: evaluations do, and tests."""
        require(
            0 <= shift <= self._schedule.last_shift, self._schedule, f"there is no shift {shift}: the values have ended"
        )
        self.shift, self.steps = shift, shift * self._schedule.every
        self.due = self.steps + self._schedule.every if shift < self._schedule.last_shift else NEVER

    def state_dict(self) -> dict[str, int]:
        """What a resumed run needs."""
        return {"steps": self.steps, "shift": self.shift, "due": self.due}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on where ``state_dict`` was called."""
        self.steps, self.shift, self.due = int(state["steps"]), int(state["shift"]), int(state["due"])
