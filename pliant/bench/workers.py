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

from pliant.bench.runner import Ending, Job, Progress, run_job, write_failed
from pliant.errors import IllegalConfiguration, RecordError

if TYPE_CHECKING:
    from multiprocessing.context import SpawnProcess
    from multiprocessing.synchronize import Event

__all__ = ["GRACE_SECONDS", "Waiting", "run_in_workers"]

GRACE_SECONDS = 10.0
"""After Ctrl-C: how long workers may take to reach their next task boundary before they are ended."""


class Waiting:
    """Jobs that wait for a worker, and those that lost theirs: tried again while they get further each time."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self._jobs = collections.deque(jobs)
        self._reached: dict[Job, int] = {}

    def __len__(self) -> int:
        """How many wait."""
        return len(self._jobs)

    def take(self) -> Job | None:
        """The next one, or None."""
        return self._jobs.popleft() if self._jobs else None

    def put_back(self, job: Job) -> None:
        """A job that nobody has begun: it is the next."""
        self._jobs.appendleft(job)

    def died(self, job: Job, num_done: int, how: str) -> None:
        """A job's worker is gone after so many tasks: it goes on from its checkpoint, or fails the second time.

        Instead of failing, several experiments in one stack are run one by one, which takes less memory.
        """
        if num_done > self._reached.get(job, -1):
            self._reached[job] = num_done
            self._jobs.append(job)
        elif len(job.experiments) > 1:
            job.forget()
            self._jobs.extend(job.alone())
        else:
            text = f"{how} after task {num_done}, as before; run again to retry from the last checkpoint"
            write_failed(job, text, "worker_died")


def _work(connection: Connection, stop: Event) -> None:
    """Run jobs until None arrives; the parent alone reacts to Ctrl-C and sets ``stop``."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    # A parent that is gone closes the pipe: there is nobody left to work for.
    with contextlib.suppress(EOFError, BrokenPipeError):
        connection.send(("ready", None))
        while (job := connection.recv()) is not None:
            try:
                finished = run_job(job, lambda progress: connection.send(("progress", progress)), stop.is_set)
                connection.send(("done", finished))
            except RecordError as error:  # the folder or the disk, which the other jobs share
                connection.send(("refused", error))
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
        self.ready = False

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


class _Pool:
    """The workers of one run, and the jobs between them."""

    def __init__(self, jobs: Sequence[Job], on_progress: Callable[[Progress], None]) -> None:
        self.waiting = Waiting(jobs)
        self.on_progress = on_progress
        self.num_stopped = 0
        self.workers: list[_Worker] = []
        self._context = multiprocessing.get_context("spawn")
        try:
            self.stop = self._context.Event()
        except OSError as error:
            raise _no_worker(error) from error

    def start(self) -> None:
        """One worker more; where none can be started, those that are there do the work."""
        try:
            worker = _Worker(self._context, self.stop)
        except OSError as error:
            if not self.workers:
                raise _no_worker(error) from error
            return
        self.workers.append(worker)
        self.feed(worker)

    def feed(self, worker: _Worker) -> None:
        """Give it the next job, or let it go."""
        worker.give(self.waiting.take())
        if worker.job is None:
            self.drop(worker)

    def drop(self, worker: _Worker) -> None:
        """It has nothing to do any more, or is dead."""
        self.workers.remove(worker)
        worker.process.join(GRACE_SECONDS)
        worker.connection.close()

    def handle(self, worker: _Worker) -> None:
        """Take what it has sent, and see whether it lives."""
        alive = worker.process.is_alive()  # asked first: what it sent before it died is still read below
        for kind, content in worker.receive():
            if kind == "ready":
                worker.ready = True
            elif kind == "progress":
                worker.num_done = content.num_done
                self.on_progress(content)
            elif kind == "refused":
                worker.give(None)
                self.workers.remove(worker)
                raise content
            elif kind in ("done", "error"):
                if kind == "error" and worker.job is not None:
                    write_failed(worker.job, content, "exception")
                self.num_stopped += kind == "done" and not content
                self.feed(worker)
                return
            else:
                alive = False
        if not alive:
            self.bury(worker)

    def bury(self, worker: _Worker) -> None:
        """It has died: its job is tried again, or fails; another worker takes its place while there is work."""
        self.drop(worker)
        how = f"worker process ended with exit code {worker.process.exitcode}"
        if worker.job is not None and worker.ready:
            self.waiting.died(worker.job, worker.num_done, how)
        elif worker.job is not None:  # it has not even started: no fault of the job
            self.waiting.put_back(worker.job)
            if not self.workers:
                raise _no_worker(how)
            return
        if self.waiting:
            self.start()

    def finish(self) -> None:
        """Let every worker stop at its next task boundary; a second Ctrl-C does not wait for it."""
        self.stop.set()
        deadline = time.monotonic() + GRACE_SECONDS
        with contextlib.suppress(KeyboardInterrupt):
            while self.workers and time.monotonic() < deadline:
                wait([worker.connection for worker in self.workers], timeout=0.1)
                for worker in list(self.workers):
                    if any(kind in ("done", "error", "refused", "end") for kind, _ in worker.receive()):
                        self.workers.remove(worker)
                        worker.give(None)


def _no_worker(why: object) -> IllegalConfiguration:
    return IllegalConfiguration(
        f"no worker process could be started ({why}); end other processes, or run everything in this one with 0 "
        "workers (what was finished is kept)"
    )


def run_in_workers(jobs: Sequence[Job], num_workers: int, on_progress: Callable[[Progress], None]) -> Ending:
    """Run all jobs over ``num_workers`` spawned processes.

    A worker that dies is replaced, and its job goes on from its last checkpoint; if it dies again without having got
    further, the seeds of its job are recorded as failed (and tried again by a later run). The other jobs go on.

    Raises:
        RecordError: the results folder cannot be used, or the disk is full; the other workers have stopped at their
            next task boundary then.
        IllegalConfiguration: no worker process can be started.
    """
    pool = _Pool(jobs, on_progress)
    interrupted = False
    try:
        for _ in range(min(num_workers, len(jobs))):
            pool.start()
        while pool.workers:
            wait([item for worker in pool.workers for item in (worker.connection, worker.process.sentinel)])
            for worker in list(pool.workers):
                pool.handle(worker)
    except KeyboardInterrupt:
        interrupted = True
        pool.finish()
    except RecordError:
        pool.finish()
        raise
    finally:
        for worker in pool.workers:
            worker.process.terminate()
        for worker in pool.workers:
            worker.process.join(GRACE_SECONDS)
    return Ending(interrupted, pool.num_stopped)
