"""The cost budget: what monitoring may cost, what it has cost, and which heavy metric can be afforded now."""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import torch

__all__ = ["Ledger", "Task"]

Task = tuple[str, str]
"""A heavy metric and the unit group (or ``"model"``) that it is measured on."""

_RATE = 1e10
"""Multiply-adds a second, a cautious guess for what has not been measured yet."""
_WINDOWS = 9
_USED = 0.8


class Ledger:
    r"""Keeps the time spent on monitoring below a share of the time spent on training steps.

    After :math:`n` steps of :math:`t` seconds, :math:`0.8\,\beta\,n\,t` seconds may have been spent; a fifth of the
    budget :math:`\beta` is left for what no clock shows, such as caches that are cold after a reading. Light readings
    and the hooks are paid first. What is left is shared out equally among the heavy tasks; a task is run when its
    account holds what it cost the last time (before the first time: what its arithmetic would cost at ten billion
    multiply-adds a second). So a heavy metric is measured about every

    .. math:: \frac{c \, H}{(0.8\,\beta - \ell)\, t} \quad\text{steps}

    with :math:`c` its seconds, :math:`H` the number of heavy tasks, and :math:`\ell` the share of the light readings.

    Args:
        budget: The share :math:`\beta`; ``None`` for no limit.
        process_group: The processes that must decide alike; the slowest one's clock counts.

    Attributes:
        spent: Seconds spent so far.
        steps: Steps so far.
        light: Seconds of the light readings among ``spent``.
    """

    def __init__(self, budget: float | None, process_group: Any) -> None:
        self.budget, self._process_group = budget, process_group
        self.spent = self.light = 0.0
        self.steps = 0
        self._windows: deque[float] = deque(maxlen=_WINDOWS)
        self._lights: deque[float] = deque(maxlen=_WINDOWS)
        self._costs: dict[Task, float] = {}
        self._accounts: dict[Task, float] = {}
        self._measured: dict[Task, float] = {}

    @property
    def step_seconds(self) -> float:
        """A training step without monitoring: the median of the latest windows, so that a pause counts for nothing."""
        return statistics.median(self._windows) if self._windows else 0.0

    @property
    def share(self) -> float:
        """Time spent on monitoring over the time of all steps so far."""
        total = self.steps * self.step_seconds
        return self.spent / total if total > 0 else 0.0

    @property
    def tasks(self) -> tuple[Task, ...]:
        """The heavy tasks."""
        return tuple(self._accounts)

    def register(self, tasks: Mapping[Task, float]) -> None:
        """Name the heavy tasks, with the multiply-adds that each takes; those that are known keep their accounts."""
        for task, work in tasks.items():
            self._costs.setdefault(task, work / _RATE)
            self._accounts.setdefault(task, 0.0)

    def settle(self, steps: int, window: float | None, light: float) -> None:
        """Book a light reading, and pay out what the steps since the last one have earned.

        Args:
            steps: Optimizer steps since the last reading.
            window: Seconds of a step, as measured just now, if they were.
            light: Seconds of this light reading, hooks included.
        """
        tasks = list(self._accounts)
        numbers = [light, -1.0 if window is None else window, *(self._measured.get(task, -1.0) for task in tasks)]
        light, slowest, *measured = self._agreed(numbers)
        if slowest >= 0:
            self._windows.append(slowest)
        for task, seconds in zip(tasks, measured, strict=True):
            if seconds >= 0:
                self._costs[task] = seconds
                self._accounts[task] -= seconds
                self.spent += seconds
        self._measured.clear()
        self.spent += light
        self.light += light
        self._lights.append(light)
        self.steps += steps
        if self.budget is None or not tasks:
            return
        self._pay(_USED * self.budget * self.step_seconds * steps - light)

    def _pay(self, earned: float) -> None:
        """Share out what was earned; an account is no savings bank, so what it cannot hold goes to the others."""
        open_ = list(self._accounts)
        while open_ and earned:
            each, earned, still_open = earned / len(open_), 0.0, []
            for task in open_:
                room = 2 * self._costs[task] - self._accounts[task]
                self._accounts[task] += min(each, room)
                if each > room:
                    earned += each - room
                else:
                    still_open.append(task)
            open_ = still_open

    def _agreed(self, numbers: Sequence[float]) -> list[float]:
        if self._process_group is None:
            return list(numbers)
        device = "cuda" if torch.distributed.get_backend(self._process_group) == "nccl" else "cpu"
        shared = torch.tensor(numbers, dtype=torch.float64, device=device)
        torch.distributed.all_reduce(shared, torch.distributed.ReduceOp.MAX, group=self._process_group)
        agreed: list[float] = shared.tolist()
        return agreed

    def due(self) -> list[Task]:
        """The heavy tasks that can be afforded now, in the order in which they were registered."""
        if self.budget is None:
            return list(self._accounts)
        return [task for task, account in self._accounts.items() if account >= self._costs[task] and self.step_seconds]

    def book(self, task: Task, seconds: float) -> None:
        """A heavy task was run; it is paid at the next :meth:`settle`, when the processes agree on what it cost."""
        self._measured[task] = seconds

    def interval(self, task: Task) -> float | None:
        """About how many steps lie between two runs of a task; infinite if it will never be affordable."""
        if self.budget is None or not self.step_seconds or not self.steps:
            return None
        left = _USED * self.budget * self.step_seconds - self.light / self.steps
        return self._costs[task] * len(self._accounts) / left if left > 0 else float("inf")

    def light_share(self, every: int) -> float:
        """The share of the time that light readings take at present, if there is one in ``every`` steps."""
        seconds = every * self.step_seconds
        return statistics.median(self._lights) / seconds if seconds and self._lights else 0.0

    def spaced(self, every: int) -> int:
        """How many steps should lie between light readings, so that they take no more than half of the budget."""
        if self.budget is not None and self.light_share(every) > self.budget / 2 and len(self._lights) > 1:
            return 2 * every
        return every

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers and strings."""
        return {
            "spent": self.spent,
            "light": self.light,
            "steps": self.steps,
            "windows": list(self._windows),
            "lights": list(self._lights),
            "measured": [[metric, where, seconds] for (metric, where), seconds in self._measured.items()],
            "tasks": [[metric, where, self._costs[metric, where], a] for (metric, where), a in self._accounts.items()],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        self.spent, self.light, self.steps = state["spent"], state["light"], state["steps"]
        self._windows = deque(state["windows"], maxlen=_WINDOWS)
        self._lights = deque(state["lights"], maxlen=_WINDOWS)
        for metric, where, cost, account in state["tasks"]:
            self._costs[metric, where], self._accounts[metric, where] = cost, account
        self._measured = {(metric, where): seconds for metric, where, seconds in state["measured"]}
