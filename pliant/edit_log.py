"""Every edit in a file: one JSON object per line, rotated by size, whole after a kill, continued by a resumed run."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pliant.errors import IllegalConfiguration, RecordError
from pliant.events import Entry, Event, EventLog
from pliant.records.atomic import StorageError, sync_folder

__all__ = ["EditLog", "LoggedEvent", "read_edits"]

_MAX_WAITING = 256


@dataclass(frozen=True)
class LoggedEvent:
    """One edit, as the file has it.

    Attributes:
        time: Seconds since 1970, when it was noted.
        number: Which edit it is, from 1; a resumed run counts on. Of a run of edits of whole tensors, the first one's.
        event: What was done, see :class:`~pliant.events.Event`.
        dry_run: Whether it was only reported.

    Example:
        >>> import tempfile, torch, pliant
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> optimizer, x = torch.optim.SGD(model.parameters(), lr=0.1), torch.randn(16, 4)
        >>> handle = pliant.attach(model, optimizer, pliant.ReDo(tau=1.0, every=1), example_inputs=x, dry_run=True)
        >>> log = handle.log_to(tempfile.mkdtemp() + "/edits.jsonl")
        >>> model(x).square().mean().backward()
        >>> optimizer.step()
        >>> [(item.number, item.event.step, item.event.action, item.dry_run) for item in pliant.read_edits(log.path)]
        [(1, 1, 'reset', True)]
        >>> handle.detach()
    """

    time: float
    number: int
    event: Event
    dry_run: bool = False


class EditLog:
    """Made by ``handle.log_to(path)``.

    Each line is written whole and at once, so that a killed process leaves complete lines; :meth:`flush`, which
    ``handle.state_dict()`` calls, brings them to the disk. On an accelerator the edits stay on the device until 256
    have come together, or until :meth:`flush`: a resumed run repeats what was lost with the process, because it begins
    at the saved state. Of a run of edits of whole tensors (weight decay at every step) there is a line when it
    begins, and one at each :meth:`flush` with how long it has become; :func:`read_edits` shows the last one.

    Args:
        path: The file; folders are made.
        events: The log of the handle.
        max_bytes: A file that would become larger is renamed to ``<path>.1``, that one to ``<path>.2``, and so on.
        backups: How many of these are kept.
        is_resumed: Whether the handle goes on from a saved state.
        writes: Whether this process writes: under several, the first one.

    Attributes:
        path: The file.

    Example:
        >>> import tempfile, torch, pliant
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> optimizer, x = torch.optim.SGD(model.parameters(), lr=0.1), torch.randn(16, 4)
        >>> handle = pliant.attach(model, optimizer, pliant.ReDo(tau=1.0, every=1), example_inputs=x)
        >>> log = handle.log_to(tempfile.mkdtemp() + "/edits.jsonl")
        >>> model(x).square().mean().backward()
        >>> optimizer.step()
        >>> [json.loads(line).get("action") for line in log.path.read_text().splitlines()]  # the first says: a new run
        [None, 'reset']
        >>> handle.detach()
        >>> log.is_closed
        True
    """

    def __init__(
        self, path: str | Path, events: EventLog, *, max_bytes: int, backups: int, is_resumed: bool, writes: bool
    ) -> None:
        if max_bytes < 1 or backups < 0:
            raise IllegalConfiguration("log_to: max_bytes must be at least 1, and backups at least 0.")
        self.path = Path(path)
        self._events, self._max_bytes, self._backups, self._writes = events, max_bytes, backups, writes
        self._waiting: list[tuple[float, Entry]] = []
        self._runs: dict[int, tuple[float, Entry, int]] = {}
        self._descriptor: int | None = None
        self._size = 0
        self._begins = True
        self._is_resumed = is_resumed
        self._stop: Callable[[], None] | None = events.pass_to(self._take)
        if is_resumed:
            self._begin()

    @property
    def is_closed(self) -> bool:
        """Whether nothing is written any more."""
        return self._stop is None

    # ---- called by the handle ----
    def resumed(self) -> None:
        """The handle has loaded a state: what an earlier process did after it is done again, and counts no more."""
        self.flush()
        self._runs.clear()
        self._is_resumed = True
        self._begin()

    def _take(self, entry: Entry) -> None:
        self._waiting.append((time.time(), entry))
        if len(self._waiting) >= _MAX_WAITING or all(item.can_be_read for _, item in self._waiting):
            self._write_waiting()

    def flush(self) -> None:
        """Write what waits, and bring it to the disk."""
        self._write_waiting()
        self._write_runs()
        if self._descriptor is not None:
            os.fsync(self._descriptor)

    def close(self) -> None:
        """Write what waits, and write no more."""
        if self._stop is not None:
            self._stop()
        self._stop = None
        self.flush()
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    # ---- writing ----
    def _begin(self) -> None:
        """Say from which edit on the lines that follow count."""
        self._begins = False
        begins = {"begins": "resumed" if self._is_resumed else "new", "time": time.time()}
        self._write({**begins, "after": self._events.num_edits if self._is_resumed else 0})

    def _write_waiting(self) -> None:
        waiting, self._waiting = self._waiting, []
        if waiting and self._begins:
            self._begin()
        for at, entry in waiting:
            line = self._line(at, entry)
            if line is None:  # no unit was hit after all
                continue
            self._write(line)
            if not line["units"]:
                if len(self._runs) >= _MAX_WAITING:
                    self._write_runs()
                    self._runs = {n: item for n, item in self._runs.items() if _is_open(item[1], self._events.step)}
                self._runs[entry.number] = at, entry, line["count"]

    def _write_runs(self) -> None:
        """Runs of edits that have become longer since their last line."""
        for number, (at, run, count) in list(self._runs.items()):
            now = getattr(run, "count", 1)
            if now != count:
                self._write(self._line(at, run))
                self._runs[number] = at, run, now

    def _write(self, line: dict[str, Any] | None) -> None:
        if line is None or not self._writes:
            return
        data = (json.dumps(line, allow_nan=False) + "\n").encode("utf-8")
        try:
            if self._descriptor is None:
                self._descriptor = self._opened()
            if self._size and self._size + len(data) > self._max_bytes:
                self._rotate()
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]
        except OSError as error:
            raise StorageError(f"{self.path}: the log of edits cannot be written ({error}).") from error
        self._size += len(data)

    def _line(self, at: float, entry: Entry) -> dict[str, Any] | None:
        event = entry.event()
        if event is None:
            return None
        line = {"time": at, "number": entry.number, **event.to_dict()}
        if event.output_change is not None and not math.isfinite(event.output_change):
            line["output_change"] = None  # JSON has no NaN
        if not event.units:
            line["until"] = self._events.num_edits
        return line | ({"dry_run": True} if self._events.dry_run else {})

    def _opened(self) -> int:
        """The file, for appending; a line that a power failure has torn is cut off."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        self._size = os.fstat(descriptor).st_size
        start = max(0, self._size - 2**20)
        tail = os.pread(descriptor, self._size - start, start)
        if tail and not tail.endswith(b"\n"):
            self._size = start + tail.rfind(b"\n") + 1
            os.ftruncate(descriptor, self._size)
        return descriptor

    def _rotate(self) -> None:
        assert self._descriptor is not None
        os.fsync(self._descriptor)
        os.close(self._descriptor)
        self._descriptor = None
        if self._backups:
            free = next((n for n in range(1, self._backups) if not _backup(self.path, n).exists()), self._backups)
            for number in range(free, 1, -1):  # whenever this is cut short, no file is lost and the order is right
                _backup(self.path, number - 1).replace(_backup(self.path, number))
            self.path.replace(_backup(self.path, 1))
        else:
            self.path.unlink()
        self._descriptor = self._opened()
        sync_folder(self.path.parent)


def _is_open(entry: Entry, step: int) -> bool:
    """Whether a run may still go on."""
    return getattr(entry, "last_step", 0) >= step - 1


def _backup(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}.{number}")


def read_edits(path: str | Path, *, superseded: bool = False) -> list[LoggedEvent]:
    """The edits in a log that ``handle.log_to(path)`` has written, oldest first, those of rotated files included.

    Where a process was killed and another one went on from a saved state, the edits between that state and the kill
    are in the file twice. Only those that led to the present weights are returned, so that the log of a run that was
    killed now and then is that of a run that was not.

    Args:
        path: The file that was given to ``log_to``.
        superseded: Also return what was done, lost with its process, and done again.

    Returns:
        The edits; of a run of edits of whole tensors the latest line.

    Raises:
        RecordError: If there is no such file, or a line in the middle of it cannot be read.

    Example:
        >>> import tempfile, torch, pliant
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> handle = pliant.attach(model, optimizer, pliant.ReDo(tau=1.0, every=2), example_inputs=torch.randn(3, 4))
        >>> path = tempfile.mkdtemp() + "/edits.jsonl"
        >>> log = handle.log_to(path)
        >>> for _ in range(4):
        ...     model(torch.randn(16, 4)).square().mean().backward()
        ...     optimizer.step()
        >>> [item.event.step for item in pliant.read_edits(path)]
        [2, 4]
        >>> handle.detach()
    """
    path = Path(path)
    numbered = (part.name.removeprefix(f"{path.name}.") for part in path.parent.glob(f"{path.name}.*"))
    numbers = sorted((int(text) for text in numbered if text.isdigit()), reverse=True)
    files = [*(_backup(path, number) for number in numbers), *([path] if path.exists() else [])]
    if not files:
        raise RecordError(f"{path}: there is no log of edits. handle.log_to(path) writes one")
    done: list[LoggedEvent] = []  # by runs that are over
    lines: dict[int, list[tuple[int, LoggedEvent]]] = {}  # of the run that is read: number to its lines, and until when
    for line in _lines(files):
        if "begins" not in line:
            item, until = _logged(line)
            lines.setdefault(item.number, []).append((until, item))
        elif line["begins"] == "new" or superseded:
            done, lines = done + _latest(lines), {}
        else:
            kept = (
                (n, [(until, item) for until, item in known if until <= line["after"]]) for n, known in lines.items()
            )
            lines = {number: known for number, known in kept if known}
    return done + _latest(lines)


def _latest(lines: Mapping[int, Sequence[tuple[int, LoggedEvent]]]) -> list[LoggedEvent]:
    return [known[-1][1] for known in lines.values()]


def _lines(files: list[Path]) -> Iterator[dict[str, Any]]:
    for file in files:
        for number, text in enumerate(file.read_bytes().split(b"\n"), start=1):
            if not text:
                continue
            try:
                line = json.loads(text)
                if not isinstance(line, dict) or not ("begins" in line or "action" in line):
                    raise ValueError("it is no edit")
            except ValueError as error:
                if file == files[-1] and number == file.read_bytes().count(b"\n") + 1:
                    continue  # being written, or torn by a power failure
                raise RecordError(f"{file}, line {number}: not a line of a log of edits ({error})") from error
            yield line


def _logged(line: Mapping[str, Any]) -> tuple[LoggedEvent, int]:
    """An edit, and the number of edits when its line was written: it tells of those up to then."""
    fields: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in line.items()}
    at, number, dry_run = fields.pop("time"), fields.pop("number"), fields.pop("dry_run", False)
    until = fields.pop("until", number)
    return LoggedEvent(at, number, Event(**fields), dry_run), until
