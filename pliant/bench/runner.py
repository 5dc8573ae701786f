"""Runs experiments: several at once over worker processes, resumable, with one record per experiment and seed."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import torch

from pliant import records
from pliant.bench.environment import run_meta
from pliant.bench.experiment import Experiment
from pliant.bench.jobs import DIVERGED, Job, make_jobs, pending_seeds, plan_jobs
from pliant.bench.stacks import make_stack, survey_all, tidy_stacks
from pliant.bench.trainer import Stopped, Trainer, trainer_of
from pliant.errors import IllegalConfiguration, PliantError, RecordError
from pliant.records import Record, StorageError

__all__ = [
    "BACKENDS",
    "Ending",
    "Job",
    "Progress",
    "RunReport",
    "plan_jobs",
    "run_experiments",
    "run_job",
    "write_failed",
    "write_missing",
]

BACKENDS = ("local", "ray")
"""Where jobs run: processes of this machine, or the machines of a Ray cluster."""


@dataclass(frozen=True)
class Progress:
    """Where a job is: sent after every task.

    Attributes:
        experiment_id: which experiment.
        label: its name for people.
        seeds: the seeds of the job.
        num_done: tasks finished.
        num_tasks: tasks in all.
        score: the stream's online score on the last task, mean over the seeds that have not failed.
        mean_score: its running mean over all tasks so far.
        num_failed: seeds that failed so far.
        seconds: its share of the computing time so far, that before an interruption included.
        series: the record's series of that score, as ``online_accuracy``.
    """

    experiment_id: str
    label: str
    seeds: tuple[int, ...]
    num_done: int
    num_tasks: int
    score: float
    mean_score: float
    num_failed: int
    seconds: float
    series: str


@dataclass(frozen=True)
class Ending:
    """How a number of jobs ended: whether by Ctrl-C, and how many jobs were stopped before their end."""

    interrupted: bool = False
    num_stopped: int = 0


@dataclass
class RunReport:
    """What came of a run: numbers of records by outcome, and the message for people."""

    results: str
    num_complete: int = 0
    num_failed: int = 0
    num_wanted: int = 0
    interrupted: bool = False
    out_of_time: bool = False
    failures: list[str] = field(default_factory=list)

    @property
    def message(self) -> str:
        """One line, and one more per failure."""
        lines = [f"{self.num_complete} of {self.num_wanted} records complete in {self.results}"]
        if self.interrupted or self.out_of_time:
            why = "interrupted" if self.interrupted else "the time is up"
            lines[0] = f"{why}: {lines[0]}; run the same command again to continue where it stopped (nothing is lost)"
        return "\n".join([*lines, *self.failures])


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the folder against a second runner; the lock dies with its process, however that ends."""
    try:
        import fcntl
    except ImportError:  # no such locks on this system: two runners at once are the user's to avoid
        yield
        return
    path = folder / ".lock"
    handle: IO[bytes]
    with path.open("wb") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise RecordError(f"{folder}: another process runs this experiment; wait for it, or end it") from error
        yield


def _progress(members: Trainer) -> list[Progress]:
    """How far each experiment of a job is."""
    found = []
    num_seeds = len(members.seeds) // len(members.settings)
    for number, experiment in enumerate(members.settings):
        positions = range(number * num_seeds, (number + 1) * num_seeds)
        alive = [k for k in positions if k not in members.failures]
        rows = [row[alive].mean() for row in members.series[members.online_series]] if alive else []
        found.append(
            Progress(
                experiment_id=experiment.id,
                label=experiment.label,
                seeds=members.seeds[:num_seeds],
                num_done=members.next_task,
                num_tasks=experiment.num_tasks,
                score=float(rows[-1]) if rows else float("nan"),
                mean_score=float(sum(rows) / len(rows)) if rows else float("nan"),
                num_failed=len(positions) - len(alive),
                seconds=members.seconds / len(members.settings),
                series=members.online_series,
            )
        )
    return found


def write_failed(job: Job, error: str, failure: str, members: Trainer | None = None) -> None:
    """Record all seeds of a job as failed, except those that have a complete record already.

    Args:
        job: The job.
        error: Why, for people.
        failure: Why, in one word.
        members: What it had done until then.
    """
    for number, experiment in enumerate(job.experiments):
        pending = pending_seeds(experiment, job.seeds, Path(job.results))
        for position, seed in enumerate(job.seeds, start=number * len(job.seeds)):
            if seed not in pending:
                continue
            record = Record(
                experiment=experiment.to_dict(),
                experiment_id=experiment.id,
                seed=seed,
                status="failed",
                error=error,
                series={} if members is None else members.series_of(position),
                meta={**run_meta(), **experiment.about(), "failure": failure},
            )
            records.write_record(record, job.results)


def write_missing(job: Job, found: Sequence[Record]) -> None:
    """Write those of a job's records that are not final in its results folder yet, and forget its checkpoint."""
    root = Path(job.results)
    pending = {(item.id, seed) for item in job.experiments for seed in pending_seeds(item, job.seeds, root)}
    for record in found:
        if (record.experiment_id, record.seed) in pending:  # the others were written before a kill; they stay
            records.write_record(record, job.results)
    job.forget()


def _records_of(members: Trainer, started: str) -> list[Record]:
    found = []
    for position, (experiment, seed) in enumerate(zip(members.experiments, members.seeds, strict=True)):
        failure = members.failures.get(position)
        meta: dict[str, Any] = {
            **run_meta(),
            "started": started,
            "seconds": round(members.seconds, 3),
            "num_stacked": len(members.seeds),
            **experiment.about(),
        }
        if failure is not None:
            meta |= {"failure": DIVERGED, "failed_task": failure.task}
        record = Record(
            experiment=experiment.to_dict(),
            experiment_id=experiment.id,
            seed=seed,
            status="complete" if failure is None else "failed",
            error=None if failure is None else failure.message,
            series=members.series_of(position),
            meta=meta,
        )
        found.append(record)
    return found


class _Watch:
    """Says when to stop: when told so, or when the next task would, by the longest so far, end after the deadline."""

    def __init__(self, deadline: float | None, should_stop: Callable[[], bool]) -> None:
        self.deadline = deadline
        self.should_stop = should_stop
        self.longest = 0.0
        self.last = time.time()

    def task_done(self) -> None:
        """A task has ended now."""
        now = time.time()
        self.longest, self.last = max(self.longest, now - self.last), now

    def __call__(self) -> bool:
        """Whether the next task should not begin."""
        return self.should_stop() or (self.deadline is not None and time.time() + self.longest > self.deadline)


def run_job(
    job: Job,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> bool:
    """Run one job in this process and write its records; returns False when it was stopped before its end.

    An exception inside the run becomes failed records of all its seeds; of several experiments in one stack, each is
    run by itself then, so that it fails for those alone that have the fault. Only errors about the results folder are
    raised.

    Raises:
        RecordError: the results folder cannot be used, or another process runs this experiment's seeds.
        StorageError: the disk is full; what was finished before is still there.
    """
    with _one_thread():
        return _run_job(job, on_progress, should_stop)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Sums are split by the number of threads: with one, the same seed has the same bits on any number of cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _run_job(job: Job, on_progress: Callable[[Progress], None], should_stop: Callable[[], bool]) -> bool:
    for experiment in job.experiments:
        records.prepare_folder(job.results, experiment.to_dict(), experiment.id)
    started = run_meta()["started"]
    several = len(job.experiments) > 1
    members: Trainer | None = None
    watch = _Watch(job.deadline, should_stop)

    def report(state: Trainer) -> None:
        watch.task_done()
        for progress in _progress(state):
            on_progress(progress)

    try:
        members = trainer_of(job.experiments[0])(
            job.experiments,
            job.seeds,
            job.folder,
            stacked=job.stacked,
            checkpoint_every=job.checkpoint_every,
            should_stop=watch,
        )
        watch.last = time.time()
        members.run(report)
        if several:  # killed while the many records are written, it has nothing to compute again
            members.save()
    except Stopped:
        return False
    except RecordError:
        raise
    except Exception as error:
        if not several:
            where = "" if members is None else f" in task {members.next_task}"
            text = str(error) if isinstance(error, PliantError) else f"{type(error).__name__}: {error}"
            write_failed(job, f"{text}{where}", "exception", members)
            return True
    else:
        write_missing(job, _records_of(members, started))
        return True
    finally:
        if members is not None:
            members.close()
    job.forget()
    finished = [_run_job(alone, on_progress, should_stop) for alone in job.alone()]
    return all(finished)


def _summary(experiments: Sequence[Experiment], seeds: Sequence[int], report: RunReport) -> RunReport:
    report.num_wanted = len(experiments) * len(seeds)
    for experiment in experiments:
        for seed in seeds:
            path = records.record_path(report.results, experiment.id, seed)
            if not path.exists():
                continue
            record = records.read_record(path)
            if record.status == "complete":
                report.num_complete += 1
            else:
                report.num_failed += 1
                report.failures.append(f"failed: {experiment.label} ({experiment.id}), seed {seed}: {record.error}")
    return report


def run_experiments(
    experiments: Sequence[Experiment],
    seeds: Sequence[int],
    results: str | os.PathLike[str],
    *,
    num_workers: int | None = 1,
    backend: str = "local",
    on_progress: Callable[[Progress], None] = lambda progress: None,
    checkpoint_every: float = 30.0,
    max_seconds: float | None = None,
    max_stacked: int | None = None,
    max_settings: int = 1,
) -> RunReport:
    """Run every experiment with every seed and leave one record for each.

    Seeds that have a complete record are skipped, those that stopped half way go on from their checkpoint with
    the same bits, and those that failed for a reason that may pass are tried again. Diverged seeds stay failed.

    Args:
        experiments: what to run; equal experiments run once.
        seeds: seeds of every experiment; may be extended in a later call.
        results: results folder; may hold further experiments.
        num_workers: jobs at a time, each with one torch thread. ``"local"``: processes; 0 runs everything in this one.
            ``"ray"``: at most so many of the cluster's CPUs; None: all of them.
        backend: ``"local"``, or ``"ray"``: on the machines of a Ray cluster, see ``pliant.bench.ray_workers``.
        on_progress: called in this process after every task of every job.
        checkpoint_every: seconds between checkpoints of a job; 0 is after every task.
        max_seconds: stop after this time, each job at a task boundary, before a task that would last longer; the next
            call goes on there. None: no limit.
        max_stacked: at most so many seeds in one stack; None: all seeds of an experiment that can be stacked.
        max_settings: at most so many experiments in one stack, which differ in numbers only (step size, options of the
            methods); each then has these seeds in it, and its records are what they would be alone, up to rounding.

    Returns:
        The numbers of complete and failed records and, after Ctrl-C or at the end of the time, how to resume.

    Raises:
        RecordError: the results folder is that of a different experiment, damaged, or in use by another run.
        StorageError: the disk is full; what was finished is kept, and a later call goes on.
        IllegalConfiguration: seeds that repeat or are negative, an experiment that cannot work, or no worker process
            could be started. Nothing is written then.
    """
    deadline = None if max_seconds is None else time.time() + max_seconds
    _check(num_workers, backend, max_seconds)
    root = Path(results)
    unique = list(dict.fromkeys(experiments))
    report = RunReport(str(results))
    with contextlib.ExitStack() as locks:
        try:
            plans, stacks = survey_all(unique, seeds, root, max_stacked, max_settings)
            tidy_stacks(root)
            jobs = [make_stack(stack, root, checkpoint_every, deadline) for stack in stacks]
            for plan in plans:
                planned = make_jobs(plan, root, checkpoint_every, deadline)
                if planned or any(plan.experiment in stack.experiments for stack in stacks):
                    locks.enter_context(_locked(root / plan.experiment.id))
                jobs += planned
            ending = _run(jobs, backend, num_workers, on_progress)
        except KeyboardInterrupt:
            ending = Ending(interrupted=True)
        except StorageError as error:
            raise StorageError(
                f"{error}; what was finished is kept, and the same command goes on from there"
            ) from error
    report.interrupted = ending.interrupted
    report.out_of_time = bool(ending.num_stopped) and not ending.interrupted
    return _summary(unique, seeds, report)


def _check(num_workers: int | None, backend: str, max_seconds: float | None) -> None:
    if backend not in BACKENDS:
        raise IllegalConfiguration(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}")
    if backend == "ray" and importlib.util.find_spec("ray") is None:
        raise IllegalConfiguration("the backend ray needs Ray, which is not installed: pip install 'pliant[ray]'")
    least = 0 if backend == "local" else 1
    if (num_workers is None and backend == "local") or (num_workers is not None and num_workers < least):
        raise IllegalConfiguration(f"num_workers must be at least {least} for the backend {backend}, got {num_workers}")
    if max_seconds is not None and not max_seconds > 0:
        raise IllegalConfiguration(f"max_seconds must be positive, got {max_seconds}")


def _run(jobs: Sequence[Job], backend: str, num_workers: int | None, on_progress: Callable[[Progress], None]) -> Ending:
    if not jobs:
        return Ending()
    if backend == "ray":
        from pliant.bench.ray_workers import run_on_ray

        return run_on_ray(jobs, num_workers, on_progress)
    if num_workers:
        from pliant.bench.workers import run_in_workers

        return run_in_workers(jobs, num_workers, on_progress)
    return Ending(num_stopped=sum(not run_job(job, on_progress) for job in jobs))
