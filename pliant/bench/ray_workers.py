"""Jobs on the machines of a Ray cluster, through the interface of the local workers.

Nothing but the driver touches the results folder, so that the machines need not share a disk: a worker runs its job in
a temporary folder and sends back its progress, each checkpoint that it has written, and at the end its records. When a
worker or a whole machine is gone, the job goes on elsewhere from the last checkpoint that arrived, with the same bits.

The machines need Pliant and the same version of PyTorch; a stream that reads files needs them under the same path on
each; and what ``my.module:Class`` names must be importable there. The cluster is the one that this process is connected
to already, else the one that the environment variable ``RAY_ADDRESS`` names, else one on this machine alone.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import os
import queue
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pliant import records
from pliant.bench.checkpoint import checkpoint_path, write_checkpoint
from pliant.bench.runner import Ending, Job, Progress, run_job, write_missing
from pliant.bench.workers import GRACE_SECONDS, Waiting
from pliant.errors import IllegalConfiguration

__all__ = ["run_on_ray"]

_POLL_SECONDS = 1.0
"""How often a job asks whether it should stop, and its machine looks for a new checkpoint, at most."""


class _Flag:
    """Lives on the driver's machine: tells all jobs at once to stop."""

    def __init__(self) -> None:
        self.raised = False

    def hoist(self) -> None:
        self.raised = True

    def is_up(self) -> bool:
        return self.raised


def _asker(flag: Any) -> Callable[[], bool]:
    """A function for :func:`run_job` that asks the flag, now and then; a flag that is gone says nothing."""
    ray: Any = importlib.import_module("ray")
    last = 0.0

    def ask() -> bool:
        nonlocal last
        if time.monotonic() - last < _POLL_SECONDS:
            return False
        last = time.monotonic()
        try:
            return bool(ray.get(flag.is_up.remote(), timeout=5))
        except ray.exceptions.RayError:
            return False

    return ask


def _work(job: Job, start: bytes | None, flag: Any, paths: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """Run a job on this machine; yields ``progress``, ``checkpoint``, ``records``, and ``done`` or ``stopped``.

    Args:
        job: The job; its results folder is the driver's.
        start: The content of its checkpoint.
        flag: Says when to stop.
        paths: Where the driver imports from.
    """
    sys.path.extend(path for path in paths if path not in sys.path)
    with tempfile.TemporaryDirectory(prefix="pliant-") as results:
        here = dataclasses.replace(job, results=results)
        path = checkpoint_path(here.folder, here.members)
        if start is not None:
            write_checkpoint(here.folder, here.members, start)
        messages: queue.Queue[tuple[str, Any]] = queue.Queue()

        def run() -> None:
            try:
                finished = run_job(here, lambda progress: messages.put(("progress", progress)), _asker(flag))
                messages.put(("done" if finished else "stopped", None))
            except Exception as error:  # raised again below, where Ray hears of it
                messages.put(("error", error))

        threading.Thread(target=run, daemon=True).start()
        known = _stamp(path)
        ended = False
        while not ended:
            message: tuple[str, Any] | None = None
            with contextlib.suppress(queue.Empty):
                message = messages.get(timeout=_POLL_SECONDS)
            if message is not None and message[0] == "error":
                raise message[1]
            ended = message is not None and message[0] in ("done", "stopped")
            stamp = _stamp(path)
            if stamp != known:
                known = stamp
                with contextlib.suppress(FileNotFoundError):  # the job has ended meanwhile and needs none
                    yield "checkpoint", path.read_bytes()
            if message is not None and message[0] == "done":
                yield "records", records.read_records(results)
            if message is not None:
                yield message


def _stamp(path: Path) -> tuple[int, int] | None:
    """Changes with every checkpoint, each of which is a file of its own."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_mtime_ns


@dataclass(eq=False)
class _Running:
    """One job on the cluster, and what has been heard of it."""

    job: Job
    generator: Any
    num_done: int = 0


class _Cluster:
    """The jobs of one run on the cluster."""

    def __init__(self, jobs: Sequence[Job], num_workers: int | None, on_progress: Callable[[Progress], None]) -> None:
        self.ray = _connected()
        self.waiting = Waiting(jobs)
        self.limit = len(jobs) if num_workers is None else num_workers
        self.on_progress = on_progress
        self.num_stopped = 0
        self.running: list[_Running] = []
        here = self.ray.get_runtime_context().get_node_id()
        strategies: Any = importlib.import_module("ray.util.scheduling_strategies")
        strategy = strategies.NodeAffinitySchedulingStrategy(node_id=here, soft=True)
        self.flag = self.ray.remote(_Flag).options(num_cpus=0, scheduling_strategy=strategy).remote()
        # Ray itself repeats nothing: what was heard of a job would be heard twice, and it would begin anew.
        options = {"num_cpus": 1, "max_retries": 0, "num_returns": "streaming"}
        self.work = self.ray.remote(_work).options(**options)

    def fill(self) -> None:
        """Hand over jobs; Ray starts them when it has a CPU for each."""
        while len(self.running) < self.limit and (job := self.waiting.take()) is not None:
            path = checkpoint_path(job.folder, job.members)
            start = path.read_bytes() if path.is_file() else None
            self.running.append(_Running(job, self.work.remote(job, start, self.flag, sys.path)))

    def hear(self, timeout: float) -> None:
        """Take the next message of every job that has one."""
        generators = [running.generator for running in self.running]
        ready, _ = self.ray.wait(generators, num_returns=1, timeout=timeout)
        for running in [item for item in self.running if any(item.generator is found for found in ready)]:
            try:
                kind, content = self.ray.get(next(running.generator))
            except StopIteration:
                self._lost(running, "the worker said nothing more")
            except self.ray.exceptions.RayError as error:
                self._lost(running, _reason(error))
            else:
                self._take(running, kind, content)

    def _take(self, running: _Running, kind: str, content: Any) -> None:
        job = running.job
        if kind == "progress":
            running.num_done = content.num_done
            self.on_progress(content)
        elif kind == "checkpoint":
            write_checkpoint(job.folder, job.members, content)
        elif kind == "records":
            write_missing(job, content)
        else:
            self.num_stopped += kind == "stopped"
            self.running.remove(running)

    def _lost(self, running: _Running, why: str) -> None:
        self.running.remove(running)
        self.waiting.died(running.job, running.num_done, f"worker on the cluster ended ({why})")

    def finish(self) -> None:
        """Let every job stop at its next task boundary, and end those that do not in time."""
        with contextlib.suppress(KeyboardInterrupt):
            self.flag.hoist.remote()
            deadline = time.monotonic() + GRACE_SECONDS
            while self.running and time.monotonic() < deadline:
                self.hear(timeout=0.5)
        for running in self.running:
            with contextlib.suppress(self.ray.exceptions.RayError):
                self.ray.cancel(running.generator, force=True)


def _reason(error: BaseException) -> str:
    """The first line of what Ray says, which may be a page; of an error inside the job, its own."""
    cause = getattr(error, "cause", None) or error
    return f"{type(cause).__name__}: {(str(cause).strip().splitlines() or [''])[0]}"[:200]


def _connected() -> Any:
    """Ray, connected to a cluster with at least one CPU."""
    ray: Any = importlib.import_module("ray")
    if not ray.is_initialized():
        try:
            ray.init(address=os.environ.get("RAY_ADDRESS"), log_to_driver=False, logging_level="ERROR")
        except (ConnectionError, RuntimeError, ValueError) as error:
            first = (str(error).strip().splitlines() or [""])[0]
            raise IllegalConfiguration(f"no Ray cluster could be reached ({first}); see RAY_ADDRESS") from error
    if not ray.cluster_resources().get("CPU"):
        raise IllegalConfiguration("the Ray cluster has no CPU for jobs; start its nodes with --num-cpus")
    return ray


def run_on_ray(jobs: Sequence[Job], num_workers: int | None, on_progress: Callable[[Progress], None]) -> Ending:
    """Run all jobs on a Ray cluster; see :func:`pliant.bench.workers.run_in_workers`, which does the same here.

    Args:
        jobs: What to run; each takes one CPU.
        num_workers: At most so many at a time; None: as many as the cluster has CPUs for.
        on_progress: Called in this process after every task of every job.

    Raises:
        IllegalConfiguration: No cluster can be reached, or it has no CPU.
        StorageError: The driver's disk is full.
    """
    cluster = _Cluster(jobs, num_workers, on_progress)
    try:
        while cluster.waiting or cluster.running:
            cluster.fill()
            cluster.hear(timeout=5.0)
    except KeyboardInterrupt:
        cluster.finish()
        return Ending(True, cluster.num_stopped)
    except records.StorageError:
        cluster.finish()
        raise
    return Ending(False, cluster.num_stopped)
