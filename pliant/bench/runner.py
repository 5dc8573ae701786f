"""Runs experiments: several at once over worker processes, resumable, with one record per experiment and seed."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import torch

from pliant import records
from pliant.bench import checkpoint
from pliant.bench.engine import Members, Stopped, can_stack
from pliant.bench.environment import run_meta
from pliant.bench.experiment import Experiment
from pliant.errors import IllegalConfiguration, PliantError, RecordError
from pliant.records import Record

__all__ = ["Job", "Progress", "RunReport", "plan_jobs", "run_experiments", "run_job", "write_failed"]

DIVERGED = "diverged"
"""``meta["failure"]`` of a seed that would fail in the same way again; other failures are tried again."""


@dataclass(frozen=True)
class Progress:
    """Where a job is: sent after every task.

    Attributes:
        experiment_id: which experiment.
        label: its name for people.
        seeds: the seeds of the job.
        num_done: tasks finished.
        num_tasks: tasks in all.
        accuracy: online accuracy of the last task, mean over the seeds that have not failed.
        mean_accuracy: its running mean over all tasks so far.
        num_failed: seeds that failed so far.
        seconds: computing time so far, that before an interruption included.
    """

    experiment_id: str
    label: str
    seeds: tuple[int, ...]
    num_done: int
    num_tasks: int
    accuracy: float
    mean_accuracy: float
    num_failed: int
    seconds: float


@dataclass(frozen=True)
class Job:
    """What one process does at a time: some seeds of one experiment, stacked or a single one."""

    experiment: Experiment
    seeds: tuple[int, ...]
    results: str
    stacked: bool
    checkpoint_every: float = 30.0


@dataclass
class RunReport:
    """What came of a run: numbers of records by outcome, and the message for people."""

    results: str
    num_complete: int = 0
    num_failed: int = 0
    num_wanted: int = 0
    interrupted: bool = False
    failures: list[str] = field(default_factory=list)

    @property
    def message(self) -> str:
        """One line, and one more per failure."""
        lines = [f"{self.num_complete} of {self.num_wanted} records complete in {self.results}"]
        if self.interrupted:
            lines[0] = (
                f"interrupted: {lines[0]}; run the same command again to continue where it stopped (nothing is lost)"
            )
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


def _pending(experiment: Experiment, seeds: Iterable[int], results: Path) -> list[int]:
    """Return the seeds without a final record: a damaged record is an error, a failure that may pass is tried again."""
    pending = []
    for seed in seeds:
        path = records.record_path(results, experiment.id, seed)
        if path.exists():
            record = records.read_record(path)
            if record.status == "complete" or record.meta.get("failure") == DIVERGED:
                continue
        pending.append(seed)
    return pending


def _tidy(experiment: Experiment, results: Path) -> None:
    """Remove checkpoints whose seeds are all final: killed between the last record and the removal."""
    folder = results / experiment.id
    for group in checkpoint.find_checkpoints(folder):
        if not _pending(experiment, group, results):
            checkpoint.remove_checkpoint(folder, group)


def plan_jobs(
    experiment: Experiment, seeds: Sequence[int], results: str | os.PathLike[str], checkpoint_every: float = 30.0
) -> list[Job]:
    """Return the jobs that are left to do; seeds with a checkpoint go on together, as they were.

    Raises:
        RecordError: the results folder is that of one experiment, holds a different one, or is damaged.
        IllegalConfiguration: seeds that repeat or are negative.
    """
    if len(set(seeds)) != len(seeds) or any(seed < 0 for seed in seeds):
        raise IllegalConfiguration(f"seeds must be different and not negative, got {list(seeds)}")
    root = Path(results)
    if (root / "experiment.json").exists():
        raise RecordError(f"{root} is the folder of one experiment; as results folder, name the one it lies in")
    if (root / experiment.id).exists():
        records.prepare_folder(root, experiment.to_dict(), experiment.id)
    pending = _pending(experiment, seeds, root)
    if not pending:
        _tidy(experiment, root)
        return []
    # Everything is put together once before anything runs: a wrong setting is an error now, not a failed seed.
    stream = experiment.build_stream()
    prepare = getattr(stream, "prepare", None)
    if prepare is not None:
        prepare()
    Members(experiment, pending[:1], None, stacked=False).close()
    stacked = can_stack(experiment)
    folder = records.prepare_folder(root, experiment.to_dict(), experiment.id)
    _tidy(experiment, root)
    groups: list[tuple[int, ...]] = []
    for group in checkpoint.find_checkpoints(folder):
        # Killed while the records of a finished group were written, some seeds are final; the others go on with them.
        wanted = set(_pending(experiment, group, root)) <= set(pending)
        if wanted and not any(set(group) & set(other) for other in groups):
            groups.append(group)
    rest = [seed for seed in pending if not any(seed in group for group in groups)]
    if rest:
        groups += [tuple(rest)] if stacked else [(seed,) for seed in rest]
    return [Job(experiment, group, str(root), stacked or len(group) > 1, checkpoint_every) for group in sorted(groups)]


def _progress(members: Members) -> Progress:
    alive = [k for k in range(len(members.seeds)) if k not in members.failures]
    rows = [row[alive].mean() for row in members.series["online_accuracy"]] if alive else []
    experiment = members.experiment
    return Progress(
        experiment_id=experiment.id,
        label=experiment.label,
        seeds=members.seeds,
        num_done=members.next_task,
        num_tasks=experiment.num_tasks,
        accuracy=float(rows[-1]) if rows else float("nan"),
        mean_accuracy=float(sum(rows) / len(rows)) if rows else float("nan"),
        num_failed=len(members.failures),
        seconds=members.seconds,
    )


def write_failed(
    job: Job, error: str, failure: str, series: Mapping[int, dict[str, list[float]]] | None = None
) -> None:
    """Record all seeds of a job as failed, except those that have a complete record already."""
    for seed in _pending(job.experiment, job.seeds, Path(job.results)):
        record = Record(
            experiment=job.experiment.to_dict(),
            experiment_id=job.experiment.id,
            seed=seed,
            status="failed",
            error=error,
            series={} if series is None else series[seed],
            meta={**run_meta(), **job.experiment.about(), "failure": failure},
        )
        records.write_record(record, job.results)


def _write_records(job: Job, members: Members, started: str) -> None:
    pending = set(_pending(job.experiment, job.seeds, Path(job.results)))
    for position, seed in enumerate(job.seeds):
        if seed not in pending:  # written before a kill; it stays as it is
            continue
        failure = members.failures.get(position)
        meta: dict[str, Any] = {
            **run_meta(),
            "started": started,
            "seconds": round(members.seconds, 3),
            "num_stacked": len(job.seeds),
            **job.experiment.about(),
        }
        if failure is not None:
            meta |= {"failure": DIVERGED, "failed_task": failure.task}
        record = Record(
            experiment=job.experiment.to_dict(),
            experiment_id=job.experiment.id,
            seed=seed,
            status="complete" if failure is None else "failed",
            error=None if failure is None else failure.message,
            series=members.series_of(position),
            meta=meta,
        )
        records.write_record(record, job.results)


def run_job(
    job: Job,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> bool:
    """Run one job in this process and write its records; returns False when it was stopped before its end.

    An exception inside the run becomes failed records of all its seeds; only errors about the results folder
    itself are raised.

    Raises:
        RecordError: the results folder cannot be used, or another process runs this experiment's seeds.
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
    folder = records.prepare_folder(job.results, job.experiment.to_dict(), job.experiment.id)
    meta = run_meta()
    members: Members | None = None
    try:
        members = Members(
            job.experiment,
            job.seeds,
            folder,
            stacked=job.stacked,
            checkpoint_every=job.checkpoint_every,
            should_stop=should_stop,
        )
        members.run(lambda state: on_progress(_progress(state)))
    except Stopped:
        return False
    except RecordError:
        raise
    except Exception as error:
        done = None if members is None else {seed: members.series_of(k) for k, seed in enumerate(job.seeds)}
        where = "" if members is None else f" in task {members.next_task}"
        text = str(error) if isinstance(error, PliantError) else f"{type(error).__name__}: {error}"
        write_failed(job, f"{text}{where}", "exception", done)
        return True
    finally:
        if members is not None:
            members.close()
    _write_records(job, members, meta["started"])
    checkpoint.remove_checkpoint(folder, job.seeds)
    return True


def _summary(experiments: Sequence[Experiment], seeds: Sequence[int], results: Path, interrupted: bool) -> RunReport:
    report = RunReport(str(results), num_wanted=len(experiments) * len(seeds), interrupted=interrupted)
    for experiment in experiments:
        for seed in seeds:
            path = records.record_path(results, experiment.id, seed)
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
    num_workers: int = 1,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    checkpoint_every: float = 30.0,
) -> RunReport:
    """Run every experiment with every seed and leave one record for each.

    Seeds that have a complete record are skipped, those that stopped half way go on from their checkpoint with
    the same bits, and those that failed for a reason that may pass are tried again. Diverged seeds stay failed.

    Args:
        experiments: what to run; equal experiments run once.
        seeds: seeds of every experiment; may be extended in a later call.
        results: results folder; may hold further experiments.
        num_workers: processes; 0 runs everything in this process. Each job uses one torch thread, here too.
        on_progress: called in this process after every task of every job.
        checkpoint_every: seconds between checkpoints of a job; 0 is after every task.

    Returns:
        The numbers of complete and failed records and, after Ctrl-C, how to resume.

    Raises:
        RecordError: the results folder is that of a different experiment, damaged, or in use by another run.
        IllegalConfiguration: seeds that repeat or are negative.
    """
    root = Path(results)
    unique = list(dict.fromkeys(experiments))
    interrupted = False
    with contextlib.ExitStack() as locks:
        try:
            jobs: list[Job] = []
            for experiment in unique:
                planned = plan_jobs(experiment, seeds, root, checkpoint_every)
                if planned:
                    locks.enter_context(_locked(root / experiment.id))
                jobs += planned
            if num_workers == 0:
                for job in jobs:
                    run_job(job, on_progress)
            elif jobs:
                from pliant.bench.workers import run_in_workers

                interrupted = run_in_workers(jobs, num_workers, on_progress)
        except KeyboardInterrupt:
            interrupted = True
    return _summary(unique, seeds, root, interrupted)
