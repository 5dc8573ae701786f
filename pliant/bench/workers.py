"""Worker processes: each runs one job after another, reports over its own pipe, and may die without harm."""

from __future__ import annotations

import collections
import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Any

from pliant.bench.runner import Job, Progress, run_job, write_failed

if TYPE_CHECKING:
    from multiprocessing.context import SpawnProcess
    from multiprocessing.synchronize import Event

__all__ = ["run_in_workers"]

_GRACE_SECONDS = 10.0
"""After Ctrl-C: how long workers may take to reach their next task boundary before they are ended."""


def _work(connection: Connection, stop: Event) -> None:
    """Run jobs until None arrives; the parent alone reacts to Ctrl-C and sets ``stop``."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    # A parent that is gone closes the pipe: there is nobody left to work for.
    with contextlib.suppress(EOFError, BrokenPipeError):
        while (job := connection.recv()) is not None:
            try:
                finished = run_job(job, lambda progress: connection.send(("progress", progress)), stop.is_set)
                connection.send(("done", finished))
            except Exception as error:
                connection.send(("error", f"{type(error).__name__}: {error}"))


def _die_with_parent() -> None:
    """End at once when the parent was killed: a task may last minutes, and nobody waits for it any more."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


@contextlib.contextmanager
def _sigint_ignored() -> Iterator[None]:
    """Ignore SIGINT meanwhile: a process started now inherits that, and so survives Ctrl-C while it starts up."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


class _Worker:
    """One process with its pipe and the job that it is busy with."""

    def __init__(self, context: multiprocessing.context.SpawnContext, stop: Event) -> None:
        self.connection, theirs = context.Pipe()
        self.process: SpawnProcess = context.Process(target=_work, args=(theirs, stop), daemon=True)
        with _sigint_ignored():
            self.process.start()
        theirs.close()
        self.job: Job | None = None
        self.num_done = 0

    def give(self, job: Job | None) -> None:
        self.job = job
        self.num_done = 0
        with contextlib.suppress(BrokenPipeError):  # a dead worker shows at its sentinel
            self.connection.send(job)

    def receive(self) -> Iterator[tuple[str, Any]]:
        """Yield the messages that have arrived, the end of the pipe included as ``("end", None)``."""
        try:
            while self.connection.poll():
                yield self.connection.recv()
        except (EOFError, OSError):
            yield ("end", None)


def run_in_workers(jobs: Sequence[Job], num_workers: int, on_progress: Callable[[Progress], None]) -> bool:
    """Run all jobs over ``num_workers`` spawned processes; returns whether Ctrl-C ended it.

    A worker that dies is replaced; the seeds of its job are recorded as failed (and tried again by a later run,
    from their last checkpoint), the other jobs go on.
    """
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    waiting = collections.deque(jobs)
    workers: list[_Worker] = []

    def feed(worker: _Worker) -> None:
        worker.give(waiting.popleft() if waiting else None)
        if worker.job is None:
            workers.remove(worker)
            worker.process.join(_GRACE_SECONDS)
            worker.connection.close()

    def handle(worker: _Worker) -> None:
        alive = worker.process.is_alive()  # asked first: what it sent before it died is still read below
        for kind, content in worker.receive():
            if kind == "progress":
                worker.num_done = content.num_done
                on_progress(content)
            elif kind in ("done", "error"):
                if kind == "error" and worker.job is not None:
                    write_failed(worker.job, content, "exception")
                feed(worker)
                return
            else:
                alive = False
        if not alive:
            worker.process.join(_GRACE_SECONDS)
            workers.remove(worker)
            worker.connection.close()
            if worker.job is not None:
                how = f"worker process ended with exit code {worker.process.exitcode} after task {worker.num_done}"
                write_failed(worker.job, f"{how}; run again to retry from the last checkpoint", "worker_died")
            if waiting:
                start()

    def start() -> None:
        worker = _Worker(context, stop)
        workers.append(worker)
        feed(worker)

    interrupted = False
    try:
        for _ in range(min(num_workers, len(jobs))):
            start()
        while workers:
            wait([item for worker in workers for item in (worker.connection, worker.process.sentinel)])
            for worker in list(workers):
                handle(worker)
    except KeyboardInterrupt:
        interrupted = True
        stop.set()
        deadline = time.monotonic() + _GRACE_SECONDS
        with contextlib.suppress(KeyboardInterrupt):  # a second Ctrl-C: do not wait for the task boundary
            while workers and time.monotonic() < deadline:
                wait([worker.connection for worker in workers], timeout=0.1)
                for worker in list(workers):
                    if any(kind in ("done", "error", "end") for kind, _ in worker.receive()):
                        workers.remove(worker)
                        worker.give(None)
    finally:
        for worker in workers:
            worker.process.terminate()
        for worker in workers:
            worker.process.join(_GRACE_SECONDS)
    return interrupted
