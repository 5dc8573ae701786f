"""What a handle does for a model that lives long: it saves and resumes, grows with the model, keeps a log, is quiet."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from pliant.edit_log import EditLog
from pliant.errors import IllegalConfiguration
from pliant.events import EventLog
from pliant.interventions.base import Intervention
from pliant.interventions.context import Progress
from pliant.reminders import Reminders
from pliant.resume import Keeper
from pliant.rounds import Rounds
from pliant.saving import LoadReport, OnMismatch
from pliant.schedule import Schedule

__all__ = ["Lasting"]

_MATURE_AFTER = 1000


class Lasting(ABC):
    """The part of a handle that outlives one process; :class:`pliant.handle.Handle` is the rest.

    Attributes:
        methods: The interventions, in order.
        events: The log of edits.
    """

    methods: tuple[Intervention, ...]
    events: EventLog
    _keeper: Keeper
    _rounds: Rounds
    _reminders: Reminders
    _schedules: list[Schedule]
    _owned: list[list[Any]]
    _writes_logs: bool

    def __init__(self) -> None:
        self._progress = Progress()
        self._logs: list[EditLog] = []
        self._has_loaded = False

    @property
    @abstractmethod
    def is_attached(self) -> bool:
        """Whether its hooks are on."""

    @property
    @abstractmethod
    def num_steps(self) -> int:
        """Real steps of the first optimizer."""

    def _check_attached(self) -> None:
        if not self.is_attached:
            raise IllegalConfiguration("this handle is detached; call pliant.attach again.")

    # ---- before an export ----
    def pause(self) -> None:
        """Begin a quiet period: from now on no unit or weight is given a new start.

        Statistics go on, so do terms of the loss and what acts a little at every step (decay, clipping, projections):
        ``acts_in_quiet`` says which methods do. What is due in the meantime is left out, and not made up for later. The
        period is part of :meth:`state_dict`.
        """
        self._check_attached()
        if not self.is_quiet:
            self._progress.quiet_since = self.num_steps

    def resume(self) -> None:
        """End a quiet period."""
        self._check_attached()
        self._progress.quiet_since = -1

    @contextlib.contextmanager
    def quiet(self) -> Iterator[None]:
        """A quiet period: :meth:`pause` at the beginning of the block, :meth:`resume` at its end.

        Train the last steps before an export in it, so that no unit is exported before it has learnt something;
        :meth:`immature` tells whether the block was long enough.
        """
        self.pause()
        try:
            yield
        finally:
            if self.is_attached:
                self.resume()

    @property
    def is_quiet(self) -> bool:
        """Whether a quiet period is on."""
        return self._progress.is_quiet

    def immature(self, within: int | None = None) -> dict[str, Tensor]:
        """How many units of each group were reset less than so many steps ago, whichever method did it.

        Args:
            within: Steps; ``None``: the longest ``maturity_threshold`` of the attached methods, or 1,000.

        Returns:
            Group name to int64 ``[]``, or ``[S]`` for a stack of members.
        """
        if within is None:
            within = (
                max((int(getattr(method, "maturity_threshold", 0)) for method in self.methods), default=0)
                or _MATURE_AFTER
            )
        steps = {
            group.name: schedule.clock.step
            for schedule, groups in zip(self._schedules, self._owned, strict=True)
            for group in groups
        }
        latest = {name: item for name, item in self._keeper.latest_resets().items() if name in steps}
        return {name: ((item >= 0) & (steps[name] - item < within)).sum(-1) for name, item in latest.items()}

    # ---- what lasts ----
    def log_to(self, path: str | Path, *, max_bytes: int = 10_000_000, backups: int = 5) -> EditLog:
        """Write every edit to a file, one JSON object per line: time, step, method, reason, group, units, and so on.

        A resumed run goes on in the same file (call this before or after :meth:`load_state_dict`);
        :func:`pliant.read_edits` reads it. An accelerator is not waited for: edits are written when 256 have come
        together, and whenever the state is saved. Under several processes the first one writes.

        Args:
            path: The file; folders are made.
            max_bytes: A file that would become larger is renamed to ``<path>.1``, that one to ``<path>.2``, ...
            backups: How many of these are kept.

        Returns:
            The log: ``flush()`` and ``close()``, which :meth:`detach` calls.

        Raises:
            IllegalConfiguration: For a number out of range, or a file that is written to already.
        """
        self._check_attached()
        self._logs = [log for log in self._logs if not log.is_closed]
        if any(log.path.absolute() == Path(path).absolute() for log in self._logs):
            raise IllegalConfiguration(f"this handle writes its edits to {path} already.")
        log = EditLog(
            path,
            self.events,
            max_bytes=max_bytes,
            backups=backups,
            is_resumed=self._has_loaded,
            writes=self._writes_logs,
        )
        self._logs.append(log)
        return log

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to continue bit by bit: plain tensors, numbers and strings.

        It loads with ``torch.load(..., weights_only=True)``.
        """
        self._rounds.observe()
        state = self._keeper.state_dict()
        for log in self._logs:  # what it holds is in the state that will be saved
            log.flush()
        return state

    def load_state_dict(
        self,
        state: Mapping[str, Any],
        on_mismatch: OnMismatch = "error",
        renamed: Mapping[str, str] | None = None,
    ) -> LoadReport:
        """Continue from :meth:`state_dict`.

        Args:
            state: What was saved.
            on_mismatch: ``"error"``: what differs is refused, by name. ``"reinit_group"``: what fits is kept, and the
                state of every unit group whose number of units has changed begins anew (ages, running means; no
                weight is touched). State of the shape of a tensor that has only grown, such as an embedding with
                further rows, keeps its old entries. To carry weights and moments over as well, see
                :meth:`load_grown`.
            renamed: Old module name to its new one, where modules have been renamed since.

        Returns:
            What became of every piece; ``print`` it.

        Raises:
            IllegalConfiguration: If it was saved by a version that this one cannot read, with another number of members
                or optimizers, or nothing of it fits; with ``"error"`` if methods, unit groups or tensors differ.
                Nothing has been changed then.
        """
        return self._go_on(partial(self._keeper.load, state, on_mismatch=on_mismatch, renamed=renamed))

    def load_grown(
        self,
        model: Mapping[str, Any],
        optimizer: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None,
        state: Mapping[str, Any],
        renamed: Mapping[str, str] | None = None,
    ) -> LoadReport:
        """Load a saved model, its optimizer and this handle's state into a model that has grown since.

        Old entries come first: of an embedding or a head with further rows, and of a widened layer, whose old units
        keep their ages and running means with their weights. New entries are those of the model as it is, and their
        moments those of new weights. Where the old units of a wider layer would not come first (a fused projection of
        queries, keys and values), the layer begins anew, which the report says.

        Args:
            model: ``model.state_dict()`` as it was saved.
            optimizer: ``optimizer.state_dict()`` as it was saved, or a list of them; ``None``: it begins anew.
            state: :meth:`state_dict` as it was saved with them.
            renamed: As for :meth:`load_state_dict`.

        Returns:
            What became of every tensor, of the state of every parameter, and of the state of every method.

        Raises:
            IllegalConfiguration: If the three do not belong together, or nothing of them fits. Nothing has been
                changed then.
            NotYetSupported: For sharded models.
        """
        given = [optimizer] if isinstance(optimizer, Mapping) else optimizer
        return self._go_on(partial(self._keeper.load_grown, model, given, state, renamed=renamed))

    def _go_on(self, load: Callable[[], LoadReport]) -> LoadReport:
        """Load, and tell everybody who has to know."""
        self._rounds.observe()
        report = load()
        self._has_loaded = True
        if self._progress.num_boundaries:
            self._reminders.called("task_boundary")
        self._rounds.plan()
        for log in self._logs:
            log.resumed()
        return report

    def _close_logs(self) -> None:
        for log in self._logs:
            log.close()
        self._logs.clear()
