"""Who is told of readings and alarms, and when."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

from pliant.monitor.alarms import Alarm
from pliant.monitor.history import Reading
from pliant.monitor.writers import Writer

__all__ = ["Teller"]


class Teller:
    """Passes readings and alarms on: to writers on the first process, to callbacks on every one.

    A callback may attach or detach something, and so change the optimizer's hooks. PyTorch is going through these just
    then, so callbacks run a little later within the same ``optimizer.step()``, after all hooks of the optimizer.

    Args:
        optimizer: The optimizer whose steps are counted.
        writers: What stores readings.
        callbacks: What acts on alarms.
        process_group: The processes, or ``None`` for one.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        writers: Sequence[Writer],
        callbacks: Sequence[Callable[[Alarm], object]],
        process_group: Any,
    ) -> None:
        first = process_group is None or torch.distributed.get_rank(process_group) == 0
        self._optimizer, self._writers = optimizer, tuple(writers) if first else ()
        self._callbacks = tuple(callbacks)
        self._waiting: list[Alarm] = []
        self._hook: Any = None

    def write(self, reading: Reading, alarms: Sequence[Alarm]) -> None:
        """Store a reading, and the alarms that it raised or withdrew."""
        for writer in self._writers:
            writer.write(reading)
            for alarm in alarms:
                writer.write_alarm(alarm)

    def call_back(self, alarms: Sequence[Alarm], *, in_hook: bool) -> None:
        """Tell the callbacks of alarms.

        Args:
            alarms: Those that a reading raised or withdrew.
            in_hook: Whether a hook of the optimizer is running.
        """
        self.let_go()
        if not self._callbacks or not alarms:
            return
        self._waiting += alarms
        if in_hook:  # hooks of all optimizers come after those of this one
            self._hook = register_optimizer_step_post_hook(self._after_the_hooks)
        else:
            self._flush()

    def _after_the_hooks(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if optimizer is self._optimizer:
            self._flush()

    def _flush(self) -> None:
        waiting, self._waiting = self._waiting, []
        for alarm in waiting:
            for callback in self._callbacks:
                try:
                    callback(alarm)
                except Exception as error:
                    error.add_note(f"raised by a function given as on_alarm=, at {alarm}")
                    raise

    def let_go(self) -> None:
        """Remove the hook of the last call: it cannot do so itself while it is running."""
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    def close(self) -> None:
        """No more readings will come."""
        for writer in self._writers:
            writer.close()
